"""The pages of the demonstration application: HTML and styles. Every value in a page is escaped."""

from __future__ import annotations

from typing import Any, Final

import jinja2

_PAGES: Final = {
    "page": """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{{ title }} · Events directory</title>
<style>
:root { color-scheme: light; --ink: #1c2733; --dim: #55616e; --line: #d5dbe1; --deep: #0b5c6b; --pale: #eef5f6; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #fff; font: 17px/1.5 system-ui, sans-serif; }
header, main, footer { max-width: 46rem; margin: 0 auto; padding: 0 1.25rem; }
.made-up { background: var(--deep); color: #fff; font-size: .9rem; text-align: center; padding: .4rem 1rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; margin: 0; padding: .9rem 0; list-style: none; }
nav { border-bottom: 1px solid var(--line); }
a { color: var(--deep); }
nav a[aria-current] { color: var(--ink); font-weight: 600; text-decoration: none; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 1.6rem 0 .8rem; }
h2 { font-size: 1.15rem; margin: 1.8rem 0 .6rem; }
ul.list { margin: 0; padding: 0; list-style: none; border-top: 1px solid var(--line); }
ul.list li { display: flex; justify-content: space-between; align-items: center; gap: 1rem;
  padding: .45rem 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
label { display: block; margin: .7rem 0 .15rem; font-weight: 600; }
label.tick { font-weight: 400; }
input:not([type=checkbox]) { width: 100%; max-width: 24rem; padding: .4rem .55rem; font: inherit; color: inherit;
  border: 1px solid #7b8794; border-radius: 4px; }
button { padding: .4rem .9rem; font: inherit; color: #fff; background: var(--deep); border: 1px solid var(--deep);
  border-radius: 4px; cursor: pointer; }
button.plain { color: var(--deep); background: #fff; }
:focus-visible { outline: 3px solid #e08a00; outline-offset: 2px; }
form.search { display: flex; gap: .5rem; align-items: end; margin: .8rem 0 1.2rem; }
form.search div { flex: 1; max-width: 24rem; }
form.search label { margin-top: 0; }
p.actions, div.actions { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1rem 0; }
.problem { padding: .6rem .9rem; border-left: 4px solid #b3261e; background: #fdf0ef; }
.note { padding: .6rem .9rem; border-left: 4px solid var(--deep); background: var(--pale); }
.dim { color: var(--dim); }
footer { margin-top: 3rem; padding-bottom: 2rem; color: var(--dim); font-size: .9rem; }
footer > p:first-child { padding-top: 1rem; border-top: 1px solid var(--line); }
</style>
</head>
<body>
<div class="made-up">This is a demo application with made-up people. Please do not enter real data.</div>
<header>
<nav aria-label="Pages"><ul>
<li><a href="/events"{% if not event and title == "Events" %} aria-current="page"{% endif %}>Events</a></li>
{% for text, path in (("Event", ""), ("Directory", "/directory")) if event %}
{% set target = "/events/%d%s" % (event.id, path) %}
<li><a href="{{ target }}"{% if path_now == target %} aria-current="page"{% endif %}>{{ text }}</a></li>
{% endfor %}
{% if event %}
{% set target = "/organizer/events/%d/signups" % event.id %}
<li><a href="{{ target }}"{% if path_now == target %} aria-current="page"{% endif %}>For organizers</a></li>
{% endif %}
<li><a href="/broken">Trigger an error</a></li>
</ul></nav>
</header>
<main>
<h1>{{ title }}</h1>
{% block main %}{% endblock %}
</main>
<footer>
<p>This site counts per day: directory views, searches (without the search text), and responses by page and status code.
Sign-ups and changes of visibility and consent are counted from the database. No count contains anything about you.</p>
{% if has_opt_out_signal() %}
<p>Your browser asks not to be tracked (Do Not Track or Global Privacy Control), so your views, searches and responses
are not counted.</p>
{% else %}
<form method="post" action="/counting">
{% if has_opted_out() %}
<p>You have opted out: your views, searches and responses
are not counted. <button class="plain" name="counted" value="yes">Count me again</button></p>
{% else %}
<p><button class="plain" name="counted" value="no">Do not count me</button></p>
{% endif %}
</form>
{% endif %}
</footer>
</body>
</html>
""",
    "form": """{% macro fields(person, whom) %}
<label for="name">Name</label>
<input id="name" name="name" required value="{{ person.name }}">
<label for="email">Email</label>
<input id="email" name="email" type="email" required value="{{ person.email }}">
<label for="dietary_notes">Dietary notes</label>
<input id="dietary_notes" name="dietary_notes" value="{{ person.dietary_notes }}">
<p><label class="tick"><input type="checkbox" name="visible" value="on"{% if person.visible %} checked{% endif %}>
Show {{ whom }} in the directory</label>
<label class="tick"><input type="checkbox" name="consent" value="on"{% if person.consent %} checked{% endif %}>
Email {{ whom }} about this event</label></p>
{% endmacro %}
""",
    "events": """{% extends "page" %}
{% block main %}
<ul class="list">
{% for event in events %}
<li><a href="/events/{{ event.id }}">{{ event.title }}</a>
<a href="/events/{{ event.id }}/directory" aria-label="Who is coming? {{ event.title }}">Who is coming?</a></li>
{% endfor %}
</ul>
{% endblock %}
""",
    "event": """{% extends "page" %}
{% from "form" import fields %}
{% block main %}
<p><a href="/events/{{ event.id }}/directory">Who is coming?</a></p>
{% if attendee %}
<h2>You are signed up</h2>
<p>{{ attendee.name }}: you are {{ "shown in" if attendee.visible else "hidden from" }} the directory, and we
{{ "may" if attendee.consents else "may not" }} email you.</p>
<div class="actions">
<form method="post" action="/events/{{ event.id }}/visibility">
<button name="visible" value="{{ "no" if attendee.visible else "yes" }}">
{{- "Hide me from" if attendee.visible else "Show me in" }} the directory</button></form>
<form method="post" action="/events/{{ event.id }}/consent">
<button name="given" value="{{ "no" if attendee.consents else "yes" }}">
{{- "Do not email me" if attendee.consents else "You may email me" }}</button></form>
<form method="post" action="/events/{{ event.id }}/cancel"><button class="plain">Cancel my sign-up</button></form>
</div>
{% else %}
<h2>Sign up</h2>
{% if problem %}<p class="problem" role="alert">{{ problem }}</p>{% endif %}
<form method="post" action="/events/{{ event.id }}/signup">
{{ fields(person, "me") }}
<button>Sign up</button>
</form>
{% endif %}
{% endblock %}
""",
    "directory": """{% extends "page" %}
{% block main %}
<form class="search" method="get" action="/events/{{ event.id }}/directory/search" role="search">
<div><label for="q">Name</label><input id="q" name="q" type="search" value="{{ query }}"></div><button>Search</button>
</form>
{% if attendees %}
<ul class="list">
{% for attendee in attendees %}
<li>{{ attendee.name }}</li>
{% endfor %}
</ul>
{% if attendees|length == page_size %}<p class="dim">Only the latest {{ page_size }} are shown; search for others.</p>
{% endif %}
{% else %}
<p>{{ "No listed attendee has this name." if query else "Nobody is listed yet." }}</p>
{% endif %}
<p class="note">This list shows only people who want to be seen.
<a href="/events/{{ event.id }}">Sign up or change your visibility</a></p>
{% endblock %}
""",
    "organizer": """{% extends "page" %}
{% from "form" import fields %}
{% block main %}
<p class="note">Views of this page and changes made here are counted with the source <code>admin</code>.</p>
{% if attendees %}
<ul class="list">
{% for attendee in attendees %}
<li>{{ attendee.name }}
<form method="post" action="/organizer/events/{{ event.id }}/visibility">
<input type="hidden" name="profile" value="{{ attendee.profile_id }}">
<button class="plain" name="visible" value="{{ "no" if attendee.visible else "yes" }}"
 aria-label="{{ "Hide" if attendee.visible else "Show" }} {{ attendee.name }}">
{{- "Hide" if attendee.visible else "Show" }}</button></form></li>
{% endfor %}
</ul>
{% if attendees|length == page_size %}<p class="dim">Only the latest {{ page_size }} are shown.</p>{% endif %}
{% else %}
<p>Nobody has signed up yet.</p>
{% endif %}
<h2>Sign up an attendee</h2>
{% if problem %}<p class="problem" role="alert">{{ problem }}</p>{% endif %}
<form method="post" action="/organizer/events/{{ event.id }}/signups">
{{ fields(person, "them") }}
<button>Sign up</button>
</form>
{% endblock %}
""",
    "problem": """{% extends "page" %}
{% block main %}
<p>{{ problem }}</p>
<p><a href="/events">All events</a></p>
{% endblock %}
""",
}

_environment = jinja2.Environment(
    loader=jinja2.DictLoader(_PAGES), autoescape=True, auto_reload=False, undefined=jinja2.StrictUndefined
)
_environment.trim_blocks = True


def render(page: str, **values: Any) -> str:
    """HTML of a page."""
    return _environment.get_template(page).render(values)

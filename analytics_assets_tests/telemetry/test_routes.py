"""Route templates of anything that an application may put into its routing table."""

import re
import string
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from analytics_assets.contract import ENDPOINT, METHODS, OTHER
from analytics_assets.guard import obeys
from analytics_assets.telemetry import routes
from analytics_assets.telemetry.routes import StarletteRoutes, django_route, flask_route, normalize_template


def of_django(route: str, language: str | None = None) -> str | None:
    return django_route(SimpleNamespace(resolver_match=SimpleNamespace(route=route), LANGUAGE_CODE=language))


def of_flask(rule: str) -> str | None:
    return flask_route({"werkzeug.request": SimpleNamespace(url_rule=SimpleNamespace(rule=rule))})


DJANGO = {
    "": "/",
    "^$": "/",
    # path()
    "events/": "/events/",
    "events": "/events",
    "/events/": "/events/",
    "<event>/": "/{event}/",
    "<slug:event>/talk/<code>.ics": "/{event}/talk/{code}.ics",
    "<my-own:x>/<a.b:y>": "/{x}/{y}",
    "a b/é/@/%20/": "/a~b/~/~/~20/",
    "2024/<x>/007": "/~2024/{x}/~007",
    "<größe>/": "/{gr__e}/",
    "events//<x>": "/events//{x}",
    # re_path()
    r"^events/$": "/events/",
    r"^events/\Z": "/events/",
    r"\Aevents\b/": "/events/",
    r"^events/(?P<pk>\d+)/$": "/events/{pk}/",
    r"^events/(?P<pk>[^/]+)\.(?P<format>[a-z0-9]+)/?$": "/events/{pk}.{format}/",
    r"^(?P<a>(?P<b>x)(y))/(z)/$": "/{a}/{var}/",
    r"^(\d+)/([^/]*)/$": "/{var}/{var}/",
    r"^(\d+)(-)([a-z]+)/$": "/{var}/",
    r"^page(?:-(?P<n>\d+))?/$": "/page-{n}/",
    r"^(?:(?:a/)?b/)*c$": "/a/b/c",
    r"^(?:new|old)/$": "/{var}/",
    r"^new/$|^old/$": "/new/~old/",
    r"^[a-z]+/$": "/{var}/",
    r"^[^/]+/$": "/{var}/",
    r"^[^]/]+/[])]/(?P<x>[(])/$": "/{var}/{var}/{x}/",
    r"^[\]\[]/(?P<x>\)\()/$": "/{var}/{x}/",
    r"^\d{4}/\w+/\S*/$": "/{var}/{var}/{var}/",
    r"^[a-z]\d+\w/$": "/{var}/",
    r"^.*$": "/{var}",
    r"^.+\.html$": "/{var}.html",
    r"^robots.txt$": "/robots.txt",
    r"^a\-b\_c\/d\.e$": "/a-b_c/d.e",
    r"^a{2,3}b*c+?/$": "/abc/",
    r"^(?!admin/)(?=.)(?<!x)(?<=y)(?#note)x/$": "/x/",
    r"^(?i)x/(?i:Y)/(?-i:Z)/(?>w)/$": "/x/Y/Z/w/",
    r"^(?P<x>a)/(?P=x)/$": "/{x}//",
    r"^2024/(?:2025)/$": "/~2024/~2025/",
    # Both notations, joined as Django joins includes.
    r"<slug:event>/^x/": "/{event}/x/",
    r"api/(?P<v>v\d)/talks/<int:pk>/": "/api/{v}/talks/{pk}/",
    r"api/events/<slug:event>/speakers/(?P<user__code__iexact>[^/.]+)/$": (
        "/api/events/{event}/speakers/{user__code__iexact}/"
    ),
    # Invalid regular expressions, and routes that are too long.
    "((((": "/{var}",
    "a)b": "/a~b",
    "[": "/~",
    "\\": "/~",
    "(?P<": "/",
    "x" * 191: "/" + "x" * 191,
    "x" * 192: None,
}


@pytest.mark.parametrize(("route", "template"), DJANGO.items())
def test_django_routes(route: str, template: str | None) -> None:
    assert of_django(route) == template


@pytest.mark.parametrize(
    ("language", "route", "template"),
    [
        ("de", "de/events/", "/{language}/events/"),
        ("pt-br", "pt-br/", "/{language}/"),
        ("de", r"de/^x/(?P<y>\d+)$", "/{language}/x/{y}"),
        ("de", "de", "/de"),
        ("de", "den/events/", "/den/events/"),
        ("de", "events/de/", "/events/de/"),
        ("", "/events/", "/events/"),
        (None, "de/events/", "/de/events/"),
    ],
)
def test_django_routes_with_a_language(language: str | None, route: str, template: str) -> None:
    assert of_django(route, language) == template


FLASK = {
    "/": "/",
    "/events/<event>": "/events/{event}",
    "/<int:a>/<path:b>/<c>.x": "/{a}/{b}/{c}.x",
    "/<int(min=1):a>/<any(a, 'b:c', \"<d>\"):e>/": "/{a}/{e}/",
    "/<re('[^<>:]+(x)'):a>-<b>": "/{a}-{b}",
    "/2024/<x>": "/~2024/{x}",
    "/a b/@<x>": "/a~b/~{x}",
    "/a<b": "/a~b",
    "/" + "x" * 200: None,
}


@pytest.mark.parametrize(("rule", "template"), FLASK.items())
def test_flask_rules(rule: str, template: str | None) -> None:
    assert of_flask(rule) == template


def test_where_nothing_is_found_there_is_no_template() -> None:
    assert django_route(SimpleNamespace(resolver_match=None)) is None
    assert flask_route({}) is None
    assert flask_route({"werkzeug.request": None}) is None
    assert flask_route({"werkzeug.request": SimpleNamespace(url_rule=None)}) is None
    assert StarletteRoutes().template({"type": "http", "path": "/"}) is None


def is_allowed(template: str | None) -> bool:
    """Whether the template is None, or a valid endpoint with every method."""
    return template is None or all(obeys(ENDPOINT, f"{method} {template}") for method in (*METHODS, OTHER))


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=220)
"""Lone surrogates too, which a percent-encoded path turns into."""

_SCRAPS = r"""
\d \w \Z \. \( \[ \] \\ (?: (?P<a> (?P<1> (?P=a) (?i) (?i: (?! (?> (?# [^ []] [^]] {2} {2,} {} {a} {ä} {1}
<a> <int:a> <x(a='>'):b> // /12/ /1 a 7 é
"""
SCRAPS = st.sampled_from([*_SCRAPS.split(), *string.punctuation, "\n", " ", "\0", "\ud800", "x" * 60])
"""Parts of regular expressions and rules, which the tests also combine into invalid ones."""

REGEX = st.recursive(
    st.lists(SCRAPS, max_size=8).map("".join),
    lambda inner: st.tuples(
        st.sampled_from(["(", "(?:", "(?P<name>", "(?i:", "(?=", "["]),
        st.lists(inner, max_size=3),
        st.sampled_from(")]"),
    ).map(lambda parts: f"{parts[0]}{'|'.join(parts[1])}{parts[2]}"),
    max_leaves=12,
)


@settings(deadline=None, max_examples=400, derandomize=True)
@given(ANY_TEXT | REGEX)
@example("(" * 150 + ")" * 150)
@example("(?:" * 80 + "a" + ")" * 80)
@example("[" * 300)
@example("(" * 3000)
@example("{" * 300 + "}" * 300)
@example("/1" * 100)
@example("/%canary@example.org?q=1#x")
def test_whatever_an_application_declares_is_a_template_or_none(text: str) -> None:
    for find in (normalize_template, of_django, of_flask, lambda route: of_django(f"de/{route}", "de")):
        assert is_allowed(find(text))


# Each route is parsed only once, but even a pathological one must be parsed in reasonable time.
@pytest.mark.parametrize("scrap", ["(", "[", "<", "{", "(?:", "\\", "<a(", "[^]", "a|", "{1}", "/1"])
def test_a_long_pattern_takes_no_more_than_its_length_squared(scrap: str) -> None:
    for find in (normalize_template, routes._flask_template, lambda route: routes._django_template("", route)):
        assert is_allowed(find(scrap * (300 if scrap == "(?:" else 3000)))


SEGMENT = st.text(string.ascii_lowercase + string.digits + "-._~", min_size=1, max_size=8)
NAME = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


@settings(deadline=None, derandomize=True)
@given(st.lists(SEGMENT | NAME.map("<{}>".format), min_size=1, max_size=8), st.booleans())
def test_an_ordinary_route_keeps_its_segments(segments: list[str], slash: bool) -> None:
    def kept(segment: str) -> str:
        if segment.startswith("<"):
            return f"{{{segment[1:-1]}}}"
        return f"~{segment}" if segment.isdecimal() else segment

    route = "/".join(segments) + "/" * slash
    template = "/" + "/".join(map(kept, segments)) + "/" * slash
    assert of_django(route) == template
    assert of_flask(f"/{route}") == template
    assert normalize_template("/" + re.sub("<(.*?)>", r"{\1}", route)) == template


class Endpoint:
    """Something that answers."""


ROUTE = st.builds(
    lambda path: SimpleNamespace(
        path_format=path, path_regex=re.compile("^" + re.escape(path) + "$"), endpoint=Endpoint()
    ),
    ANY_TEXT,
)
MOUNTS = st.recursive(
    ROUTE,
    lambda inner: st.builds(
        lambda path, held: SimpleNamespace(
            path_format=path + "/{path}",
            path_regex=re.compile("^" + re.escape(path) + "/(?P<path>.*)$"),
            app=SimpleNamespace(routes=held),
        ),
        ANY_TEXT,
        st.lists(inner, max_size=3),
    ),
    max_leaves=6,
)


def endpoints(routes: list[Any]) -> list[object]:
    return [
        found
        for route in routes
        for found in (endpoints(route.app.routes) if hasattr(route, "app") else [route.endpoint])
    ]


@settings(deadline=None, derandomize=True)
@given(st.lists(MOUNTS, max_size=3), ANY_TEXT)
def test_whatever_is_mounted_in_whatever_has_a_template_or_none(mounts: list[Any], path: str) -> None:
    router, found = SimpleNamespace(routes=mounts), StarletteRoutes()
    for endpoint in endpoints(mounts):
        scope = {"router": router, "endpoint": endpoint, "path": path}
        template = found.template(scope)
        assert is_allowed(template)
        assert found.template(scope) == template


def test_the_routes_of_an_application_that_makes_its_endpoints_as_it_goes_are_bounded() -> None:
    kept = object()
    router, found = SimpleNamespace(routes=[SimpleNamespace(path_format="/kept", endpoint=kept)]), StarletteRoutes()
    for _ in range(3 * routes._CACHE_SIZE):
        assert found.template({"router": router, "endpoint": object(), "path": "/canary"}) is None
    assert len(found._entries) < 2 * routes._CACHE_SIZE
    assert found.template({"router": router, "endpoint": kept, "path": "/canary"}) == "/kept"

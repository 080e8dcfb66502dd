"""Route templates as web frameworks declare them, in the contract's notation: `/events/{event_id}`.

Only what the application wrote into its routing table is read, never the requested path. The frameworks' objects are
used as they are found in scope, environ and request; nothing is imported from them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from analytics_assets.contract import ENDPOINT, METHODS
from analytics_assets.guard import obeys

_LONGEST_METHOD: Final = max(METHODS, key=len)
_ANYTHING: Final = "{var}"
_MANY: Final = 4096


@lru_cache(maxsize=_MANY)
def legal(path: str) -> str | None:
    """A template with `{name}` parameters, made to fit the contract; None when it is too long.

    What the contract does not know in a literal becomes `~`, and a literal segment of digits only, which would look
    like a filled-in parameter, gets one in front.
    """
    pieces = re.split(r"(\{[^{}]*\})", path if path.startswith("/") else f"/{path}")
    for place, piece in enumerate(pieces):
        if place % 2:
            pieces[place] = "{" + re.sub(r"^(?![A-Za-z_])|[^A-Za-z0-9_]", "_", piece[1:-1]) + "}"
        else:
            pieces[place] = re.sub(r"[^A-Za-z0-9._~/-]", "~", piece)
    template = re.sub(r"/([0-9]+|[0-9A-Fa-f-]{20,})(?=/|$)", r"/~\1", "".join(pieces))
    return template if obeys(ENDPOINT, f"{_LONGEST_METHOD} {template}") else None


def flask_route(environ: Mapping[str, Any]) -> str | None:
    """Template of the rule that Flask (or Werkzeug) has matched, None when there is none."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return None if rule is None else _of_flask(rule.rule)


@lru_cache(maxsize=_MANY)
def _of_flask(rule: str) -> str | None:
    # `<converter(arguments):name>`, where the arguments may hold anything, as Werkzeug reads it.
    return legal(re.sub(r"<(?:[A-Za-z_]\w*(?:\(.*?\))?:)?([A-Za-z_]\w*)>", r"{\1}", rule))


def django_route(request: Any) -> str | None:
    """Template of the pattern that Django has resolved, with those of its includes; None when there is none.

    The language prefix of `i18n_patterns` is `{language}`, whichever it was.
    """
    match = request.resolver_match
    if match is None:
        return None
    route, language = match.route, getattr(request, "LANGUAGE_CODE", None)
    if language and route.startswith(f"{language}/"):
        return _of_django("{language}/", route[len(language) + 1 :])
    return _of_django("", route)


@lru_cache(maxsize=_MANY)
def _of_django(prefix: str, route: str) -> str | None:
    return legal(prefix + re.sub(r"(?:\{var\}){2,}", _ANYTHING, "".join(_simplified(route))))


_CLASS: Final = r"\[\^?\]?(?:\\.|[^\]\\])*\]"  # a bracket at the beginning stands for itself
_TOKEN: Final = re.compile(
    rf"""
      <(?:[^<>]*:)?(?P<parameter>[^<>:]+)>          # of path(): <converter:name>
    | (?P<nothing> \^ | \$ | \\[AZbB] | [?*+] | \{{[0-9,]*\}} )    # anchors, quantifiers
    | (?P<anything> \\[A-Za-z0-9] | \.(?=[?*+{{]) | {_CLASS} )
    | \\(?P<escaped> .)
    | (?P<literal> .)
    """,
    re.VERBOSE | re.DOTALL,
)


def _simplified(pattern: str) -> Iterator[str]:
    """Pieces of the template of a route: `path()` notation, a regular expression of `re_path()`, or one after another.

    A group that captures is a parameter, one that only groups is what it holds, everything else that may match this or
    that is `{var}`.
    """
    at = 0
    while at < len(pattern):
        if pattern[at] == "(":
            end = _closing(pattern, at)
            group = pattern[at + 1 : end]
            if named := re.match(r"\?P<(\w+)>", group):
                yield f"{{{named[1]}}}"
            elif (opened := re.match(r"\?(?:[aiLmsux-]*:|>)", group)) and "|" not in group:
                yield from _simplified(group[opened.end() :])
            elif opened or not group.startswith("?"):
                yield _ANYTHING
            at = end + 1
            continue
        token = _TOKEN.match(pattern, at)
        assert token is not None  # noqa: S101 # the last alternative matches any character
        if token["parameter"]:
            yield f"{{{token['parameter']}}}"
        elif token["anything"]:
            yield _ANYTHING
        else:
            yield token["escaped"] or token["literal"] or ""
        at = token.end()


def _closing(pattern: str, start: int) -> int:
    """Where the group that starts at `start` ends."""
    depth = 0
    for token in re.finditer(rf"\\.|{_CLASS}|[()]", pattern[start:], re.DOTALL):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if not depth:
            return start + token.start()
    return len(pattern)


_Route = tuple[str | None, str]
"""Template, regular expression of the paths."""


class StarletteRoutes:
    """Templates of Starlette and FastAPI applications, with those of mounts and included routers.

    A scope tells which endpoint was found but not what its mounts were declared as, so the routing table is walked,
    once and again when an endpoint turns up anew.
    """

    def __init__(self) -> None:
        # By id, since routers and endpoints need not be hashable. Both are kept, so that nothing else gets their ids.
        self._found: dict[tuple[int, int], tuple[Any, Any, list[_Route]]] = {}

    def template(self, scope: Mapping[str, Any]) -> str | None:
        """Template of the route that has been found for a scope, None when there is none."""
        endpoint, router = scope.get("endpoint"), scope.get("router")
        if endpoint is None or router is None:
            return None
        found = self._found.get((id(router), id(endpoint)))
        _, _, routes = found or self._walk(router, endpoint)
        if len(routes) > 1:
            # One endpoint for several routes.
            path = scope["path"].removeprefix(scope.get("app_root_path", scope.get("root_path", "")))
            routes = [route for route in routes if _compiled(route[1]).match(path)]
        return routes[0][0] if routes else None

    def _walk(self, router: Any, sought: object) -> tuple[Any, Any, list[_Route]]:
        if len(self._found) > _MANY:  # an application that makes its endpoints as it goes
            self._found.clear()
        walked: dict[tuple[int, int], tuple[Any, Any, list[_Route]]] = {}
        for endpoint, route in _endpoints(router.routes, "", "^"):
            _, _, routes = walked.setdefault((id(router), id(endpoint)), (router, endpoint, []))
            routes.extend([route] if route else [])
        for _, _, routes in walked.values():
            if len({template for template, _ in routes}) == 1:
                del routes[1:]
        self._found |= walked
        return self._found.setdefault((id(router), id(sought)), (router, sought, []))


def _endpoints(routes: Iterable[Any], prefix: str, pattern: str) -> Iterator[tuple[object, _Route | None]]:
    """Endpoints and their routes; no route for the application of a mount that has routes of its own."""
    for found in routes:
        if hasattr(found, "effective_route_contexts"):  # FastAPI: an included router, and its routes with their prefix
            yield from _endpoints(found.effective_route_contexts(), prefix, pattern)
            continue
        route = getattr(found, "starlette_route", None) or found
        # A host's route has no path.
        template = prefix + getattr(route, "path_format", "/{path}")
        paths = pattern + (_unnamed(route.path_regex.pattern) if hasattr(route, "path_regex") else "/(?:.*)")
        inner = _routes_inside(route)
        if inner is None:
            yield getattr(route, "endpoint", None) or getattr(route, "app", None), (legal(template), f"{paths}$")
        else:
            yield route.app, None
            yield from _endpoints(inner, template.removesuffix("/{path}"), paths.removesuffix("/(?:.*)"))


def _routes_inside(route: Any) -> Iterable[Any] | None:
    """Routes of the application of a mount, also when middlewares stand around it; None when it has none."""
    if routes := getattr(route, "routes", None):
        return routes  # type: ignore[no-any-return]
    app = getattr(route, "app", None)
    while app is not None:
        if hasattr(app, "routes"):
            return app.routes  # type: ignore[no-any-return]
        app = getattr(app, "app", None)
    return None


def _unnamed(pattern: str) -> str:
    """Of a route, without its anchors; a mount and what stands inside may have parameters of the same name."""
    return re.sub(r"\(\?P<\w+>", "(?:", pattern.removeprefix("^").removesuffix("$"))


@lru_cache(maxsize=_MANY)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)

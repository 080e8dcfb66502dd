"""Route templates of web frameworks in the contract's notation: `/events/{event_id}`.

Templates come from the application's routing table, never from the requested path. The frameworks' objects are read
from scope, environ and request; no framework is imported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Final

from analytics_assets.contract import ENDPOINT, METHODS
from analytics_assets.guard import obeys

_LONGEST_METHOD: Final = max(METHODS, key=len)
_WILDCARD: Final = "{var}"
_CACHE_SIZE: Final = 4096


@lru_cache(maxsize=_CACHE_SIZE)
def normalize_template(path: str) -> str | None:
    """Fit a template with `{name}` parameters to the contract; None when it is too long.

    A literal character that the contract does not allow becomes `~`. A literal segment of digits only looks like a
    filled-in parameter, so it is prefixed with `~`.
    """
    pieces = re.split(r"(\{[^{}]*\})", path if path.startswith("/") else f"/{path}")
    for index, piece in enumerate(pieces):
        if index % 2:
            pieces[index] = "{" + re.sub(r"^(?![A-Za-z_])|[^A-Za-z0-9_]", "_", piece[1:-1]) + "}"
        else:
            pieces[index] = re.sub(r"[^A-Za-z0-9._~/-]", "~", piece)
    template = re.sub(r"/([0-9]+|[0-9A-Fa-f-]{20,})(?=/|$)", r"/~\1", "".join(pieces))
    return template if obeys(ENDPOINT, f"{_LONGEST_METHOD} {template}") else None


def flask_route(environ: Mapping[str, Any]) -> str | None:
    """Template of the rule that Flask (or Werkzeug) has matched, None when none matched."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
    return None if rule is None else _flask_template(rule.rule)


@lru_cache(maxsize=_CACHE_SIZE)
def _flask_template(rule: str) -> str | None:
    # `<converter(arguments):name>`, parsed like Werkzeug does: the arguments may contain any character.
    return normalize_template(re.sub(r"<(?:[A-Za-z_]\w*(?:\(.*?\))?:)?([A-Za-z_]\w*)>", r"{\1}", rule))


def django_route(request: Any) -> str | None:
    """Template of the pattern that Django has resolved, with those of its includes; None when none matched.

    The language prefix of `i18n_patterns` is always `{language}`.
    """
    match = request.resolver_match
    if match is None:
        return None
    route, language = match.route, getattr(request, "LANGUAGE_CODE", None)
    if language and route.startswith(f"{language}/"):
        return _django_template("{language}/", route[len(language) + 1 :])
    return _django_template("", route)


@lru_cache(maxsize=_CACHE_SIZE)
def _django_template(prefix: str, route: str) -> str | None:
    return normalize_template(prefix + re.sub(r"(?:\{var\}){2,}", _WILDCARD, "".join(_template_pieces(route))))


_CLASS: Final = r"\[\^?\]?(?:\\.|[^\]\\])*\]"  # a `]` right after the opening bracket is a literal
_TOKEN: Final = re.compile(
    rf"""
      <(?:[^<>]*:)?(?P<parameter>[^<>:]+)>          # of path(): <converter:name>
    | (?P<nothing> \^ | \$ | \\[AZbB] | [?*+] | \{{[0-9,]*\}} )    # anchors, quantifiers
    | (?P<wildcard> \\[A-Za-z0-9] | \.(?=[?*+{{]) | {_CLASS} )
    | \\(?P<escaped> .)
    | (?P<literal> .)
    """,
    re.VERBOSE | re.DOTALL,
)


def _template_pieces(pattern: str) -> Iterator[str]:
    """Yield the template of a route, which mixes `path()` notation and regular expressions of `re_path()`.

    A capturing group is a parameter. A non-capturing group yields its content. Everything else that may match different
    texts is `{var}`.
    """
    position = 0
    while position < len(pattern):
        if pattern[position] == "(":
            end = _find_group_end(pattern, position)
            group = pattern[position + 1 : end]
            if named := re.match(r"\?P<(\w+)>", group):
                yield f"{{{named[1]}}}"
            elif (opening := re.match(r"\?(?:[aiLmsux-]*:|>)", group)) and "|" not in group:
                yield from _template_pieces(group[opening.end() :])
            elif opening or not group.startswith("?"):
                yield _WILDCARD
            position = end + 1
            continue
        token = _TOKEN.match(pattern, position)
        assert token is not None  # noqa: S101 # the last alternative matches any character
        if token["parameter"]:
            yield f"{{{token['parameter']}}}"
        elif token["wildcard"]:
            yield _WILDCARD
        else:
            yield token["escaped"] or token["literal"] or ""
        position = token.end()


def _find_group_end(pattern: str, start: int) -> int:
    """Position of the bracket that closes the group at `start`; the end of the pattern when none does."""
    depth = 0
    for token in re.finditer(rf"\\.|{_CLASS}|[()]", pattern[start:], re.DOTALL):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if not depth:
            return start + token.start()
    return len(pattern)


def _strip_root(path: str, root: str) -> str:
    """Remove the root path, like Starlette: where it is a prefix in whole segments. Some servers leave it out."""
    return path.removeprefix(root) if path == root or path.startswith(f"{root}/") else path


_Route = tuple[str | None, str]
"""Template, regular expression of the paths."""


class StarletteRoutes:
    """Templates of Starlette and FastAPI applications, including the prefixes of mounts and included routers.

    A scope holds the matched endpoint but not the templates of its mounts, so the routing table is walked: at the first
    request, and again for an endpoint that is not known yet.
    """

    def __init__(self) -> None:
        # Keyed by id, because routers and endpoints need not be hashable. The entry keeps both alive, so that no other
        # object gets their ids.
        self._entries: dict[tuple[int, int], tuple[Any, Any, list[_Route]]] = {}

    def template(self, scope: Mapping[str, Any]) -> str | None:
        """Template of the route that has been matched for a scope, None when none matched."""
        endpoint, router = scope.get("endpoint"), scope.get("router")
        if endpoint is None or router is None:
            return None
        _, _, routes = self._entries.get((id(router), id(endpoint))) or self._walk(router, endpoint)
        if len(routes) > 1:
            # One endpoint serves several routes, so match the path against each of them.
            path = _strip_root(scope["path"], scope.get("app_root_path", scope.get("root_path", "")))
            routes = [route for route in routes if _compile(route[1]).match(path)]
        return routes[0][0] if routes else None

    def _walk(self, router: Any, endpoint: object) -> tuple[Any, Any, list[_Route]]:
        """Store the routes of all endpoints of a router. Returns the entry of `endpoint`."""
        if len(self._entries) > _CACHE_SIZE:  # an application that creates endpoints while it runs
            self._entries.clear()
        entries: dict[tuple[int, int], tuple[Any, Any, list[_Route]]] = {}
        for found, route in _iterate_endpoints(router.routes, "", "^"):
            _, _, routes = entries.setdefault((id(router), id(found)), (router, found, []))
            routes.extend([route] if route else [])
        for _, _, routes in entries.values():
            if len({template for template, _ in routes}) == 1:
                del routes[1:]
        self._entries |= entries
        return self._entries.setdefault((id(router), id(endpoint)), (router, endpoint, []))


def _iterate_endpoints(routes: Iterable[Any], prefix: str, pattern: str) -> Iterator[tuple[object, _Route | None]]:
    """Yield each endpoint with its route; None instead of a route for a mounted application with its own routes."""
    for entry in routes:
        if hasattr(entry, "effective_route_contexts"):  # FastAPI: an included router, and its routes with their prefix
            yield from _iterate_endpoints(entry.effective_route_contexts(), prefix, pattern)
            continue
        route = getattr(entry, "starlette_route", None) or entry
        # The route of a host has no path.
        template = prefix + getattr(route, "path_format", "/{path}")
        paths = pattern + (_strip_names(route.path_regex.pattern) if hasattr(route, "path_regex") else "/(?:.*)")
        inner = _inner_routes(route)
        if inner is None:
            endpoint = getattr(route, "endpoint", None) or getattr(route, "app", None)
            yield endpoint, (normalize_template(template), f"{paths}$")
        else:
            yield route.app, None
            yield from _iterate_endpoints(inner, template.removesuffix("/{path}"), paths.removesuffix("/(?:.*)"))


def _inner_routes(route: Any) -> Iterable[Any] | None:
    """Routes of a mounted application, also inside middlewares; None when it has none."""
    if routes := getattr(route, "routes", None):
        return routes  # type: ignore[no-any-return]  # of any framework
    app = getattr(route, "app", None)
    while app is not None:
        if hasattr(app, "routes"):
            return app.routes  # type: ignore[no-any-return]  # of any framework
        app = getattr(app, "app", None)
    return None


def _strip_names(pattern: str) -> str:
    """Remove group names and anchors, because a mount and its inner routes may have parameters of the same name."""
    return re.sub(r"\(\?P<\w+>", "(?:", pattern.removeprefix("^").removesuffix("$"))


@lru_cache(maxsize=_CACHE_SIZE)
def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)

"""The pages on loopback, to look at them before nginx serves them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from analytics_assets.local.processes import ServerError
from analytics_assets.local.server import HOST, require_free_port
from analytics_assets.publication.pages.html import HEADERS

_INDEXES: Final = ("core/", "overview/")

_NO_PAGE: Final = (
    'no page has been written yet: the daily job writes them, if the extra "pages" is installed, and'
    " `analytics-assets publish` writes the published ones. The pages of the demonstration are in its own folder:"
    " ANALYTICS_DATA_DIR=.analytics/demo analytics-assets serve"
)


class _Handler(SimpleHTTPRequestHandler):
    """Files with the headers of the pages; no listings, no log of who looked at what."""

    extensions_map: Final = {".html": "text/html; charset=utf-8", ".csv": "text/csv", ".json": "application/json"}  # type: ignore[misc]
    server_version = "analytics-assets"
    sys_version = ""

    def end_headers(self) -> None:
        """Add the headers."""
        for name, value in HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def send_head(self) -> Any:
        """Serve a page, or links to where to begin, or answer 404."""
        if self.path == "/":
            return self._send_links()
        if Path(self.translate_path(self.path)).name.startswith("."):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def _send_links(self) -> io.BytesIO:
        links = "".join(f'<p><a href="{path}">{path}</a></p>' for path in list_indexes(Path(self.directory)))
        body = f'<!doctype html><html lang="en"><title>Usage</title>{links}'.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", self.extensions_map[".html"])
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return io.BytesIO(body)

    def list_directory(self, path: Any) -> Any:
        """Answer 404: a listing would name every event."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: object) -> None:  # as in the base class
        """Write no log."""


def list_indexes(folder: Path) -> list[str]:
    """Return where to begin, of what has been written. A published page of an event is linked from nowhere."""
    return [path for path in _INDEXES if (folder / path / "index.html").exists()]


@contextmanager
def serve(folder: Path, port: int) -> Iterator[ThreadingHTTPServer]:
    """Yield a server of the pages on loopback; the caller lets it serve.

    Raises:
        ServerError: no page has been written, or the port is in use.
    """
    if not list_indexes(folder):
        raise ServerError(_NO_PAGE)
    if port:
        require_free_port(port, "--port")
    with ThreadingHTTPServer((HOST, port), partial(_Handler, directory=str(folder))) as server:
        yield server

"""The pages on loopback, to look at them before nginx serves them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from analytics_assets.local.server import HOST, require_free_port
from analytics_assets.publication.pages.html import HEADERS

INDEXES: Final = ("core/", "overview/")
"""Where to begin. A published page of an event is linked from nowhere."""


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
        """Serve a page, or answer 404."""
        if Path(self.translate_path(self.path)).name.startswith("."):
            self.send_error(HTTPStatus.NOT_FOUND)
            return None
        return super().send_head()

    def list_directory(self, path: Any) -> Any:
        """Answer 404: a listing would name every event."""
        self.send_error(HTTPStatus.NOT_FOUND)

    def log_message(self, format: str, *args: object) -> None:  # as in the base class
        """Write no log."""


@contextmanager
def serve(folder: Path, port: int) -> Iterator[ThreadingHTTPServer]:
    """Yield a server of the pages on loopback; the caller lets it serve. Raises ServerError when the port is taken."""
    if port:
        require_free_port(port, "--port")
    with ThreadingHTTPServer((HOST, port), partial(_Handler, directory=str(folder))) as server:
        yield server

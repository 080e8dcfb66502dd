"""Requests as a server hands them to an application, by the protocol of ASGI and of WSGI."""

import asyncio
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes
from wsgiref.util import setup_testing_defaults

from starlette.types import Message


@dataclass
class Answer:
    """What a server would have sent."""

    messages: list[Message] = field(default_factory=list)
    error: BaseException | None = None

    @property
    def status(self) -> int:
        (status,) = (m["status"] for m in self.messages if m["type"] == "http.response.start")
        return int(status)

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages if m["type"] == "http.response.body")


def http_scope(
    target: str | bytes, method: str = "GET", headers: Mapping[str, str] | None = None, root_path: str = ""
) -> MutableMapping[str, Any]:
    """The scope that a server makes of a request line: the path percent-decoded, beside its raw form."""
    raw_path, _, query = (target.encode() if isinstance(target, str) else target).partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote_to_bytes(raw_path).decode("utf-8", "replace"),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": root_path,
        "headers": [
            (name.encode(), value.encode("latin-1"))
            for name, value in {"host": "example.test", **{k.lower(): v for k, v in (headers or {}).items()}}.items()
        ],
        "client": ("192.0.2.1", 50_000),
        "server": ("example.test", 80),
        "state": {},
    }


async def send_request(app: Any, scope: MutableMapping[str, Any], body: bytes = b"") -> Answer:
    """One request, whose client stays until it is answered."""
    answer, done, asked = Answer(), asyncio.Event(), False

    async def receive() -> Message:
        nonlocal asked
        if not asked:
            asked = True
            return {"type": "http.request", "body": body, "more_body": False}
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        answer.messages.append(message)

    try:
        await app(scope, receive, send)
    except Exception as error:
        answer.error = error
    finally:
        done.set()
    return answer


Environ = dict[str, Any]


def environ_of(path: str = "/", method: str = "GET", more: Environ | None = None) -> Environ:
    environ: Environ = {"PATH_INFO": path, "REQUEST_METHOD": method, "SCRIPT_NAME": "", "QUERY_STRING": ""}
    environ |= more or {}
    setup_testing_defaults(environ)
    return environ

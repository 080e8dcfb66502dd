"""Receivers of alerts on loopback: a real SMTP server and a real HTTP server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

HOST = "127.0.0.1"


def webhook_url(port: int) -> str:
    """The URL of the webhook, with a password that must not show up anywhere."""
    return f"json://someone:canary@{HOST}:{port}/canary"


def mail_url(port: int) -> str:
    """The URL of the mail server."""
    return f"mailto://{HOST}:{port}?from=analytics@example.org&to=team@example.org"


@contextmanager
def webhook(port: int, status: int = 200) -> Iterator[list[dict[str, Any]]]:
    """A web server that takes messages, or answers with a status of failure; it yields what it was sent."""
    taken: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            taken.append(json.loads(body))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Write no log."""

    with ThreadingHTTPServer((HOST, port), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield taken
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def mail_server(port: int) -> Iterator[list[EmailMessage]]:
    """A mail server; it yields the mails that it was sent."""
    taken: list[EmailMessage] = []

    class Handler:
        async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
            assert isinstance(envelope.content, bytes)
            mail = message_from_bytes(envelope.content, policy=policy.default)
            assert isinstance(mail, EmailMessage)
            taken.append(mail)
            return "250 OK"

    controller = Controller(Handler(), hostname=HOST, port=port)
    controller.start()
    try:
        yield taken
    finally:
        controller.stop()


def text_of(mail: EmailMessage) -> str:
    """The plain text of a mail."""
    part = mail.get_body(("plain", "html"))
    assert part
    return str(part.get_content())

"""Sending to real servers on loopback, and to none: what arrives, and that nothing else is contacted or said."""

import logging
import os
import sys
from pathlib import Path

import pytest

from analytics_assets.operations import Level
from analytics_assets.operations.alerts import Message
from analytics_assets.operations.receiver import ReceiverError, open_receiver, send
from analytics_assets_tests.support.processes import free_port
from analytics_assets_tests.support.receivers import mail_server, mail_url, text_of, webhook, webhook_url

MESSAGE = Message(7, Level.RED, "analytics red: days: event_signups", "177 days; missing: 2026-11-24\nMessage: 7")

_contacted: list[object] | None = None


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    if _contacted is not None and event in {"socket.connect", "socket.getaddrinfo"}:
        _contacted.append(arguments[1] if event == "socket.connect" else arguments[:2])


sys.addaudithook(_listen)


def test_a_webhook_is_sent_the_message() -> None:
    port = free_port()
    with webhook(port) as taken:
        assert send(webhook_url(port), MESSAGE)
    (sent,) = taken
    assert (sent["title"], sent["message"], sent["type"]) == (MESSAGE.title, MESSAGE.body, "failure")
    assert not [text for text in map(str, sent.values()) if "http" in text]


@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_a_receiver_on_this_machine_is_not_asked_for_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv(variable, "intranet.example.org")
    port = free_port()
    with webhook(port) as taken:
        assert send(webhook_url(port), MESSAGE)
    assert len(taken) == 1
    assert os.environ["no_proxy"].startswith("intranet.example.org,"), "the other hosts are still exempt"


def test_a_mail_server_is_sent_the_message() -> None:
    port = free_port()
    with mail_server(port) as taken:
        assert send(mail_url(port), MESSAGE)
    (mail,) = taken
    assert mail["subject"] == MESSAGE.title
    assert mail["to"] == "team@example.org"
    assert text_of(mail).splitlines() == MESSAGE.body.splitlines()


@pytest.mark.parametrize("make_url", [webhook_url, mail_url])
def test_only_the_receiver_is_contacted(make_url: object) -> None:
    global _contacted  # noqa: PLW0603  # an audit hook cannot be removed
    assert callable(make_url)
    port = free_port()
    with webhook(port) if make_url is webhook_url else mail_server(port):
        _contacted = []
        assert send(make_url(port), MESSAGE)
        contacted, _contacted = _contacted, None
    assert contacted
    assert {address for address in contacted if address[:2] != ("127.0.0.1", port)} == set()  # type: ignore[index]


def test_a_receiver_that_is_down_takes_nothing_and_says_nothing_of_its_url(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    with caplog.at_level(logging.INFO):
        assert not send(webhook_url(port), MESSAGE)
        assert not send(mail_url(port), MESSAGE)
        with webhook(port, status=500) as refused:
            assert not send(webhook_url(port), MESSAGE)
        assert len(refused) == 1
        with webhook(port) as taken:
            assert send(webhook_url(port), MESSAGE)
        assert len(taken) == 1
    assert "canary" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "canary://someone:canary@127.0.0.1/",
        "mailto://",
        "json://someone:canary@127.0.0.1/,json://someone:canary@127.0.0.2/",
        "slack://canary",
    ],
)
def test_a_url_that_apprise_does_not_know_is_refused_without_being_shown(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ReceiverError, match="ANALYTICS_ALERT_URL is not one URL that Apprise knows") as refusal:
        open_receiver(url)
    assert "canary" not in f"{refusal.value} {caplog.text}"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(ReceiverError, match="analytics-assets\\[alerts\\]"):
        open_receiver(webhook_url(1))


def test_nothing_is_kept_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    port = free_port()
    with webhook(port):
        assert send(webhook_url(port), MESSAGE)
    assert list(tmp_path.iterdir()) == []

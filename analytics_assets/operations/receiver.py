"""Sending a message to where ANALYTICS_ALERT_URL leads, through Apprise: mail, Slack, Matrix, ntfy, a webhook, ...

The URL may hold a password. It is in no error, and Apprise, whose log would name hosts, does not log here.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Final

from analytics_assets.operations import Level
from analytics_assets.operations.alerts import Message

if TYPE_CHECKING:
    from apprise import Apprise

_SECONDS: Final = 10
"""The longest time for one message."""
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")

_KINDS: Final = {Level.OK: "success", Level.WARNING: "warning", Level.RED: "failure"}


class ReceiverError(RuntimeError):
    """The receiver cannot be used. The text does not hold the URL."""


def open_receiver(url: str) -> Apprise:
    """Return the receiver of a URL. Nothing is contacted.

    Raises:
        ReceiverError: Apprise is not installed, or does not know such a URL.
    """
    # Imported here: it is an extra, and slow.
    try:
        import apprise
    except ModuleNotFoundError:
        raise ReceiverError(
            "ANALYTICS_ALERT_URL needs the extra \"alerts\": pip install 'analytics-assets[alerts]'"
        ) from None
    logging.getLogger("apprise").disabled = True
    # Its defaults would show pictures from its own site, and keep files in the home folder.
    asset = apprise.AppriseAsset(
        app_id="analytics_assets",
        app_desc="analytics_assets",
        app_url="",
        image_url_mask="",
        image_url_logo="",
        async_mode=False,
        pgp_autogen=False,
        pem_autogen=False,
        http_redirects=False,
        storage_mode=apprise.PersistentStoreMode.MEMORY,
        service_timeout=_SECONDS,
        allow_templates=False,
    )
    receiver = apprise.Apprise(asset=asset)
    # One: with several, one that is down would have the others told again.
    if not receiver.add(url) or len(receiver) != 1:
        raise ReceiverError("ANALYTICS_ALERT_URL is not one URL that Apprise knows: its documentation lists them")
    return receiver


def send(url: str, message: Message) -> bool:
    """Send a message, and return whether it was taken.

    Raises:
        ReceiverError: see `open_receiver`.
    """
    receiver = open_receiver(url)
    _let_loopback_pass_the_proxy()
    sent = receiver.notify(
        title=message.title,
        body=message.body,
        notify_type=_KINDS[message.level],
        body_format="text",
        timeout=_SECONDS,
    )
    return bool(sent)


def _let_loopback_pass_the_proxy() -> None:
    """Keep a receiver on this machine reachable under `http_proxy`. Apprise has no setting for it."""
    # `requests` looks at the second only if the first is unset or empty.
    hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY", "")
    os.environ["no_proxy"] = ",".join(dict.fromkeys([*filter(None, hosts.split(",")), *_LOOPBACK]))

"""Processes beside the test's own: how they are started, free ports for them, and waiting for what they do."""

import multiprocessing
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess

SPAWN = multiprocessing.get_context("spawn")

PATIENCE = 120
"""Seconds after which something is not going to happen any more, however busy other tests keep the machine."""


def free_port() -> int:
    """A port that nothing listens on.

    It is below those that the system itself hands out, where a client's end of a connection, or another worker of
    pytest-xdist, could take it before the process that is given it here does.
    """
    while True:
        port = 11_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], bool], process: BaseProcess | None = None, seconds: float = PATIENCE) -> None:
    """Wait for something that another process does, unless it is `process` and has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.is_alive(), "the process has ended before what was waited for"
        assert time.monotonic() < deadline, f"did not happen within {seconds} seconds"
        time.sleep(0.05)

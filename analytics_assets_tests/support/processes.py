"""Processes beside the test's own: how they are started, free ports for them, and waiting for what they do."""

import multiprocessing
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess

SPAWN = multiprocessing.get_context("spawn")

PATIENCE = 120
"""Seconds after which something is not going to happen any more, however busy other tests keep the machine."""


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], process: BaseProcess | None = None, seconds: float = PATIENCE) -> None:
    """Wait for something that another process does, unless it is `process` and has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.is_alive(), "the process has ended before what was waited for"
        assert time.monotonic() < deadline, f"did not happen within {seconds} seconds"
        time.sleep(0.05)

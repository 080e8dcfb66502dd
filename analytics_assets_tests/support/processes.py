"""Processes beside the test's own: how they are started, free ports for them, and waiting for what they do."""

import multiprocessing
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil

from analytics_assets.contract import RETENTION_DAYS
from analytics_assets.local.processes import stop
from analytics_assets.local.server import ROOT

COMMAND = [sys.executable, "-m", "analytics_assets"]

SPAWN = multiprocessing.get_context("spawn")

LOOPBACK = "127.0.0.1"

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
            probe.bind((LOOPBACK, port))
            return port


def wait_until(
    condition: Callable[[], bool],
    process: BaseProcess | None = None,
    seconds: float = PATIENCE,
    pause: float = 0.05,
) -> None:
    """Wait for something that another process does, unless it is `process` and has ended.

    A condition that takes a while to look at needs a longer `pause`, or it takes the time of those it waits for.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.is_alive(), "the process has ended before what was waited for"
        assert time.monotonic() < deadline, f"did not happen within {seconds} seconds"
        time.sleep(pause)


def environment(data_dir: Path, retention_days: int = RETENTION_DAYS) -> dict[str, str]:
    """Of a command that keeps everything in a folder."""
    return os.environ | {
        "ANALYTICS_DATA_DIR": str(data_dir),
        "ANALYTICS_RETENTION_DAYS": str(retention_days),
        "COLUMNS": "120",
    }


def left_running(data_dir: Path) -> list[str]:
    """Command lines of processes that work in the data folder; the dead that nobody has buried do not count."""
    found = []
    for process in psutil.process_iter():
        try:
            mine = str(data_dir) in " ".join(process.cmdline()) or process.environ().get("ANALYTICS_DATA_DIR") == str(
                data_dir
            )
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


@contextmanager
def running(command: list[str], env: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a session of its own, as a terminal would start it; its output goes to ours."""
    process = subprocess.Popen(command, env=env, cwd=ROOT, start_new_session=True)
    try:
        yield process
    finally:
        stop(process)

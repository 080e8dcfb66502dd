"""Processes that this package starts: how they end, whatever they are doing."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psutil

LONGEST_SOCKET: Final = 100
"""Bytes of a socket's path that every supported system takes."""
_GRACE: Final = 2
"""Seconds that a process has to end by itself. Nothing is lost when it is killed: a day is replaced as a whole."""


class ServerError(RuntimeError):
    """A server could not be started; the text says what to do."""


class DataFolderError(ServerError):
    """The data folder cannot be used. The text says why."""

    def __init__(self, why: OSError | str) -> None:
        what = why if isinstance(why, str) else f"{type(why).__name__}: {why.strerror}"
        super().__init__(f"the data folder (ANALYTICS_DATA_DIR) cannot be used: {what}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process and its childless children, and kill the others. Kill everything that runs after two seconds.

    All at once: Dagster ends its processes one after the other, and its code server waits for its runs and for the
    webserver. A run is a descendant. Interrupted, it would be recorded as failed.
    """
    with uninterrupted():
        family = _family(process)
        parents = {member.pid: _parent(member) for member in family}
        for member in family:
            child = parents[member.pid] == process.pid and member.pid not in parents.values()
            with suppress(psutil.NoSuchProcess):
                member.send_signal(signal.SIGINT if child or member.pid == process.pid else signal.SIGKILL)
        _wait(family)
        while alive := _family(process):  # again: the last moment may have brought another one
            for member in alive:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            _wait(alive)
        process.wait()


def _wait(members: list[psutil.Process]) -> None:
    """Wait until none of these runs, at most two seconds.

    Not until they are gone: that takes until a parent asks for them, and the parent of orphans may be slow.
    """
    deadline = time.monotonic() + _GRACE
    while any(map(_runs, members)) and time.monotonic() < deadline:
        time.sleep(0.02)


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return a process, its descendants, and, if it leads a session, those of it whose parent has ended."""
    found: set[psutil.Process] = set()
    with suppress(psutil.NoSuchProcess):
        found |= {psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)}
    for pid in psutil.pids():
        with suppress(psutil.NoSuchProcess, ProcessLookupError, PermissionError):
            if os.getsid(pid) == process.pid:
                found.add(psutil.Process(pid))
    return [member for member in found if _runs(member)]


def _parent(process: psutil.Process) -> int | None:
    try:
        return int(process.ppid())
    except psutil.NoSuchProcess:
        return None


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ignore further signals that end this process: an impatient second Ctrl-C would leave some processes running."""
    # Only the main thread is interrupted, and may say what becomes of signals.
    numbers = (
        (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if threading.current_thread() is threading.main_thread() else ()
    )
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

"""What the web application calls to count: keys, days, threads, forks, and what happens when counting goes wrong.

A key is checked against the contract when it is first seen; after that, counting it is a dictionary lookup and a store
into the dump of the day. How a dump is laid out stands in `dumps`; what may be counted stands in the contract. Nothing
here knows requests or frameworks.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Self
from uuid import UUID

from analytics_assets.contract import (
    COUNT,
    ENDPOINT,
    EVENT_NAME,
    MAX_COUNT,
    METHODS,
    METRICS,
    OTHER,
    OVERFLOW,
    SOURCE,
    UNMATCHED,
    CounterDumps,
)
from analytics_assets.days import bounds, zone
from analytics_assets.guard import row_violations
from analytics_assets.telemetry.dumps import DumpFile, Line

REFUSED: Final = "refused"
"""The contract does not allow the row."""
CAPPED: Final = "capped"
"""There are too many keys already."""
IO: Final = "io"
"""The dump cannot be written."""
REMOVED: Final = "removed"
"""Somebody removed the dump that already held the counts."""
BUSY: Final = "busy"
"""Another thread has been writing for longer than a request may wait."""
FAILED: Final = "failed"
"""Anything else."""

_Key = tuple[Any, ...]

_METRICS: Final = {name: m for m in METRICS if isinstance(m.origin, CounterDumps) for name in m.event_names}
HTTP_RESPONSE: Final = "http_response"
_ONCE: Final = 1

_LOOK_SECONDS: Final = 1.0
"""How often a look at the file system tells whether the dump is still there; after trouble, when to try again."""
_PATIENCE_SECONDS: Final = 1.0
"""How long a count waits for another thread's."""
_HANGING_SECONDS: Final = 0.005
"""How long, after one has waited in vain."""
_LOG_SECONDS: Final = 60.0

_log = logging.getLogger("analytics_assets.telemetry")
_uncounted: ContextVar[bool] = ContextVar("analytics_assets_uncounted", default=False)


class TelemetryError(ValueError):
    """A count that the contract does not allow. The text names field and rule, never the value."""


class _CapError(Exception):
    """A key too many."""


@contextmanager
def do_not_count(when: bool = True) -> Iterator[None]:
    """Count nothing inside the block: for staff, for bots, for visitors who have opted out.

    It holds for everything that the block calls or awaits, and for the asyncio tasks and `asyncio.to_thread` calls it
    starts. That something was left out, and why, is written nowhere.

    Never `yield` inside the block (a dependency, a streamed body): what runs then may have another context.

    Args:
        when: False counts as usual, so that a condition needs no second branch.
    """
    token = _uncounted.set(bool(when) or _uncounted.get())
    try:
        yield
    finally:
        # A generator that yields inside the block may be ended in another context, where nothing is to be undone.
        with suppress(ValueError):
            _uncounted.reset(token)


class Telemetry:
    """Daily counts of one process, kept in counter dumps below `dump_dir`.

    One instance serves all threads. A forked child starts files of its own and inherits no counts. A file is complete
    at any time and needs no closing, which only frees memory. Counting after `close` starts a new file.

    Counting never raises, does not wait for what hangs (once for a second, then for milliseconds), and is bounded in
    memory: what cannot be counted is dropped, `dropped` says how much, and the logger `analytics_assets.telemetry` says
    so once a minute and reason, without values.

    Args:
        dump_dir: made, with one folder a day, when something is first counted.
        source: `web` or `admin`: what `count` takes when the call names none.
        time_zone: IANA name of the zone whose calendar days are counted.
        max_keys: how many different keys of one event name are counted a day; what is over is dropped, and counted as
            `(overflow)` where the metric has endpoints.
        strict: raise TelemetryError for what the contract does not allow; for tests and development.
        clock: seconds since the epoch; called while a lock is held, so it must not count.

    Raises:
        zoneinfo.ZoneInfoNotFoundError: there is no such time zone.
        TelemetryError: there is no such source.
    """

    def __init__(
        self,
        dump_dir: str | os.PathLike[str],
        *,
        source: str | None = None,
        time_zone: str = "UTC",
        max_keys: int = 2000,
        strict: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if source is not None and source not in (SOURCE.choices or ()):
            raise TelemetryError(f"{SOURCE.name} {SOURCE.rule}")
        self._copy = partial(
            Telemetry,
            dump_dir,
            source=source,
            time_zone=time_zone,
            max_keys=max_keys,
            strict=strict,
            clock=clock,
        )
        self._dump_dir = Path(dump_dir)
        self.source = source
        self._time_zone = time_zone
        self._zone = zone(time_zone)
        self._max_keys = max_keys
        self._strict = strict
        self._clock = clock
        self._event_date = ""
        self._day_start = self._day_end = self._look_again = 0.0
        self._reset()
        _instances.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._dump: DumpFile | None = None
        self._lines: dict[_Key, Line] = {}  # by row: at most one line each
        self._seen: dict[_Key, Line] = {}  # by arguments, of which several may mean the same row
        self._keys: Counter[str] = Counter()  # by event name
        self._drops = threading.RLock()
        self._dropped: Counter[str] = Counter()
        self._log_again: dict[str, float] = {}
        self._trouble = 0
        self._try_again = 0.0
        self._hanging_until = 0.0

    def count(
        self,
        event_name: str,
        *,
        event_id: int | str | UUID | None = None,
        source: str | None = None,
        times: int = 1,
    ) -> None:
        """Count `times` occurrences, now, of an event whose origin in the contract is the counter dumps.

        Raises:
            TelemetryError: only with `strict`: the contract does not allow it.
        """
        # Types belong to the key because True equals 1, and would pass unchecked once that was seen.
        key = (event_name, event_id, type(event_id), source)
        self._add(key, times, _event_row)

    def count_response(self, method: str, route: str | None, status_code: int, *, times: int = 1) -> None:
        """Count `times` responses, now.

        Args:
            method: of the request; one that HTTP does not define counts as `(other)`.
            route: the template that the application declares, like `/events/{event_id}`, never the path; None when no
                route produced the response.
            status_code: 100 to 599.
            times: how many.

        Raises:
            TelemetryError: only with `strict`: the contract does not allow it.
        """
        if method not in METHODS:  # a tuple, which may be asked for what has no hash
            method = OTHER
        key = (method, route, status_code, type(status_code))
        self._add(key, times, _response_row)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Reason -> how much this process has not counted since it started."""
        return dict(self._dropped)

    def close(self) -> None:
        """Let go of the current file, which stays. Closing again does nothing."""
        # In a signal handler, or behind a file system that hangs, the lock may never come free.
        if self._lock.acquire(timeout=_PATIENCE_SECONDS):
            try:
                self._close_dump()
            finally:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[], Telemetry], tuple[()]]:
        """Pickled (multiprocessing does that), it is a new one with the same arguments."""
        return self._copy, ()

    def _add(self, key: _Key, times: int, row_of: Callable[[Telemetry, _Key], dict[str, object]]) -> None:
        """Count, or drop and say so. `row_of` tells the row of a key that has not been seen."""
        if _uncounted.get():
            return
        try:
            lock = self._lock
            if not lock.acquire(False) and not self._wait_for(lock):  # at once it takes less time than with a limit
                self.drop(BUSY, times, "another thread has been writing for too long")
                return
            try:
                # Inside the lock, or threads that read the clock around midnight would turn the day to and fro.
                now = self._clock()
                if not self._day_start <= now < self._look_again:
                    self._look(now)
                try:
                    line = self._seen.get(key)
                except TypeError:  # unhashable, hence never seen, and refused below
                    line = None
                dump = self._dump
                if line is None or dump is None:
                    self._first(key, times, row_of(self, key))
                elif not (times is _ONCE and dump.increment(line)):  # by identity, because True and 1.0 equal it
                    _add_to(dump, line, times)
            finally:
                lock.release()
        except TelemetryError as error:
            if self._strict:
                raise
            self.drop(REFUSED, times, str(error))
        except _CapError:
            self.drop(CAPPED, times, f"there are more than {self._max_keys} keys of one event name")
        except OSError as error:
            self.drop(IO, times, f"the dump cannot be written: {os.strerror(error.errno or errno.EIO)}")
        except Exception as error:  # whatever it is, the request it happened in must not notice
            self.drop(FAILED, times, type(error).__name__)

    def _wait_for(self, lock: threading.Lock) -> bool:
        """Wait for whoever is writing, but not for ever, and not every time for one that hangs.

        A file system may hang; and a signal handler may find the lock taken by the very thread it has interrupted.
        """
        hanging = time.monotonic() < self._hanging_until
        if lock.acquire(True, min(_PATIENCE_SECONDS, _HANGING_SECONDS) if hanging else _PATIENCE_SECONDS):
            return True
        self._hanging_until = time.monotonic() + _LOG_SECONDS
        return False

    def _first(self, key: _Key, times: int, row: dict[str, object]) -> None:
        """Count arguments that have not been seen today."""
        written = _dump_row({"event_date": self._event_date, **row, "count": times})
        event_name = str(written[EVENT_NAME.name])
        known = tuple(written.values())
        line = self._lines.get(known)
        overflow = line is None and self._keys[event_name] >= self._max_keys
        if overflow:
            if ENDPOINT.name not in written:
                raise _CapError
            written[ENDPOINT.name] = OVERFLOW
            known = tuple(written.values())
            line = self._lines.get(known)
        if line is None:
            line = self._lines[known] = self._append(written, times)
            self._keys[event_name] += 1
        elif self._dump is not None:
            _add_to(self._dump, line, times)
        if not overflow:
            self._seen[key] = line

    def _append(self, written: Mapping[str, object], times: int) -> Line:
        if time.monotonic() < self._try_again:
            raise OSError(self._trouble, "")
        try:
            if self._dump is None:
                self._dump = DumpFile(self._dump_dir, self._event_date)
            return self._dump.append(written, times)
        except OSError as error:
            # Every request would try, and a failing file system is slow to say no.
            self._trouble, self._try_again = error.errno or errno.EIO, time.monotonic() + _LOOK_SECONDS
            raise

    def _look(self, now: float) -> None:
        """Turn the day when it is over; find out whether somebody has removed the dump."""
        # First, because nobody would ever notice it once the day has turned.
        if self._dump is not None and self._dump.is_removed():
            lost = sum(line.count for line in self._lines.values())
            self.drop(REMOVED, lost, "the dump was removed, with what it had counted")
            self._close_dump()
        if not self._day_start <= now < self._day_end:
            self._close_dump()
            day = datetime.fromtimestamp(now, self._zone).date()
            self._event_date = day.isoformat()
            self._day_start, self._day_end = (instant.timestamp() for instant in bounds(day, self._time_zone))
        self._look_again = min(now + _LOOK_SECONDS, self._day_end)
        # The file system has answered. Threads that wait for each other longer than this are no sign that it hangs.
        self._hanging_until = 0.0

    def _close_dump(self) -> None:
        dump, self._dump = self._dump, None
        self._lines, self._seen, self._keys = {}, {}, Counter()
        if dump is not None:
            dump.close()

    def drop(self, reason: str, times: object, told: str) -> None:
        """Note what is not counted, and log it once a minute. `told` holds no value."""
        # What is no count at all is one call; as it stands, it could be a number too large to be printed.
        number = times if type(times) is int and 0 < times <= MAX_COUNT else 1
        now = time.monotonic()
        with self._drops:
            # A signal handler may come in at any call, and drop too; so there is none between reading and writing.
            self._dropped.setdefault(reason, 0)
            self._dropped[reason] += number
            total, due = self._dropped[reason], now >= self._log_again.get(reason, now)
            if due:
                self._log_again[reason] = now + _LOG_SECONDS
        if due:
            with suppress(Exception):  # the handlers and filters are the application's, and may fail
                _log.warning("not counted (%s): %s; %d since this process started", reason, told, total)

    def _start_afresh(self) -> None:
        """Forget, in a forked child, what belongs to the parent: its file, its counts, and locks some thread held."""
        self._close_dump()
        self._reset()


def _add_to(dump: DumpFile, line: Line, times: object) -> None:
    if type(times) is not int or not 0 < times <= MAX_COUNT - line.count:
        raise TelemetryError(f"{COUNT.name} {COUNT.rule}")
    dump.add(line, times)


def _event_row(telemetry: Telemetry, key: _Key) -> dict[str, object]:
    event_name, event_id, _, source = key
    # Past 64 bits an integer is no id, and `str` raises for the very long; as it is, the guard refuses it.
    if (type(event_id) is int and event_id.bit_length() <= 64) or isinstance(event_id, UUID):
        event_id = str(event_id)
    return {"event_name": event_name, "event_id": event_id, "source": telemetry.source if source is None else source}


def _response_row(_: Telemetry, key: _Key) -> dict[str, object]:
    method, route, status_code, _type = key
    endpoint = UNMATCHED if route is None else f"{method} {route}"
    return {"event_name": HTTP_RESPONSE, "endpoint": endpoint, "status_code": status_code}


def _dump_row(row: Mapping[str, object]) -> dict[str, object]:
    """The row in the contract's order, without its count and what is absent, or TelemetryError."""
    row = {name: value for name, value in row.items() if value is not None}
    event_name = row.get(EVENT_NAME.name)
    # Asked beforehand: the KeyError of a look-up holds the value, and would hang on to the error raised here.
    metric = _METRICS.get(event_name) if isinstance(event_name, str) else None
    if metric is None:
        raise TelemetryError(f"{EVENT_NAME.name} must be one that telemetry counts: {', '.join(_METRICS)}")
    fields = metric.dump_fields
    # Safe to name: what a row can hold too much are parameters of `count`, not somebody's data.
    unknown = row.keys() - {field.name for field in fields}
    problems = [f"{name} is no field of this metric" for name in sorted(unknown)]
    problems = problems or [str(violation) for violation in row_violations(row, fields, metric.event_names)]
    if problems:
        raise TelemetryError(f"{metric.asset}: {'; '.join(problems)}")
    return {field.name: row[field.name] for field in fields if field is not COUNT and field.name in row}


_instances: weakref.WeakSet[Telemetry] = weakref.WeakSet()


def _start_all_afresh() -> None:
    for telemetry in _instances:
        telemetry._start_afresh()


os.register_at_fork(after_in_child=_start_all_afresh)

"""What the web application calls to count: keys, days, threads, forks, and dropped counts.

A key is checked against the contract when it is first seen. After that, a count is a dictionary lookup and a store into
the dump of the day. `dumps` defines the file layout and the contract defines what may be counted. This module knows
nothing about requests or frameworks.
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
    BUSY,
    CAPPED,
    COUNT,
    DROP_REASON,
    ENDPOINT,
    EVENT_DATE,
    EVENT_NAME,
    FAILED,
    IO,
    MAX_COUNT,
    METHODS,
    METRICS,
    OTHER,
    OVERFLOW,
    REFUSED,
    REMOVED,
    SOURCE,
    UNMATCHED,
    CounterDumps,
)
from analytics_assets.days import bounds, zone
from analytics_assets.guard import row_violations
from analytics_assets.telemetry.dumps import DumpFile, Line

_Key = tuple[Any, ...]

_METRICS: Final = {name: m for m in METRICS if isinstance(m.origin, CounterDumps) for name in m.event_names}
HTTP_RESPONSE: Final = "http_response"
_ONCE: Final = 1
_ZERO: Final = ord("0")

_RETRY_SECONDS: Final = 1.0
"""How often to check that the dump still exists, and how long to wait before another attempt after an OSError."""
_LOCK_SECONDS: Final = 1.0
"""How long a count waits for the lock."""
_HANGING_LOCK_SECONDS: Final = 0.005
"""How long a count waits for the lock during the minute after another wait has timed out."""
_LOG_SECONDS: Final = 60.0

_log = logging.getLogger("analytics_assets.telemetry")
_disabled: ContextVar[bool] = ContextVar("analytics_assets_do_not_count", default=False)


class TelemetryError(ValueError):
    """The contract does not allow the count. The text names the field and the rule, never the value."""


class _CapError(Exception):
    """The event name already has `max_keys` keys."""


@contextmanager
def do_not_count(when: bool = True) -> Iterator[None]:
    """Count nothing inside the block: for staff, for bots, for visitors who have opted out.

    This covers everything that the block calls or awaits, and the asyncio tasks and `asyncio.to_thread` calls that it
    starts. Nothing records what was left out, or why.

    Never `yield` inside the block (a dependency, a streamed body): the code that runs then may have another context.

    Args:
        when: False counts as usual, so that a condition needs no second branch.
    """
    token = _disabled.set(bool(when) or _disabled.get())
    try:
        yield
    finally:
        # A generator that yields inside the block may be closed in another context, which has nothing to reset.
        with suppress(ValueError):
            _disabled.reset(token)


class Telemetry:
    """Daily counts of one process, kept in counter dumps below `dump_dir`.

    One instance serves all threads. A forked child starts its own files and inherits no counts. A file is complete at
    any time; closing it only frees memory. Counting after `close` starts a new file.

    Counting never raises, and its memory is bounded. When the file system hangs, one count waits for a second and later
    ones for milliseconds. What cannot be counted is dropped: `dropped` has the number, and the logger
    `analytics_assets.telemetry` reports it once per minute and reason, without values.

    Args:
        dump_dir: created, with one folder per day, by the first count. A relative path means the working directory of
            this call, whatever it is later.
        source: `web` or `admin`: the default of `count`.
        time_zone: IANA name of the zone whose calendar days are counted.
        max_keys: how many different keys of one event name are counted per day. Further keys are dropped; where the
            metric has endpoints, they are counted as `(overflow)`.
        strict: raise TelemetryError for what the contract does not allow; for tests and development.
        clock: returns seconds since the epoch. It is called under a lock, so it must not count.

    Raises:
        zoneinfo.ZoneInfoNotFoundError: the time zone does not exist.
        TelemetryError: the source does not exist, or the folder is a URL.
        FileNotFoundError: the path is relative, and the working directory no longer exists.
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
        if "://" in os.fspath(dump_dir):
            raise TelemetryError(
                "the dump folder is a URL: name a folder of this machine; `analytics-assets ship` copies it to the URL"
            )
        # Absolute from the start: the application may change its working directory.
        self._dump_dir = Path(dump_dir).absolute()
        self._recreate = partial(
            Telemetry, self._dump_dir, source=source, time_zone=time_zone, max_keys=max_keys, strict=strict, clock=clock
        )
        self.source = source
        self._time_zone = time_zone
        self._zone = zone(time_zone)
        self._max_keys = max_keys
        self._strict = strict
        self._clock = clock
        self._event_date = ""
        self._day_start = self._day_end = self._next_check = 0.0
        self._reset()
        _instances.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._dump: DumpFile | None = None
        self._line_of_row: dict[_Key, Line] = {}
        self._line_of_key: dict[_Key, tuple[DumpFile, Line]] = {}  # several keys may mean one row: event_id 42 and "42"
        self._rows_per_event_name: Counter[str] = Counter()
        self._drops: DumpFile | None = None
        self._line_of_reason: dict[str, Line] = {}
        self._drop_lock = threading.RLock()
        self._dropped: Counter[str] = Counter()
        self._removed = False  # whether that is to be logged
        self._unwritten: dict[str, int] = {}  # reason -> drops that are not in the drop file yet
        self._next_log: dict[str, float] = {}
        self._last_errno = 0
        self._next_attempt = self._next_drop_attempt = 0.0
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
        # The type belongs to the key: True equals 1, so it would pass unchecked once 1 has been seen.
        key = (event_name, event_id, type(event_id), source)
        self._add(key, times, _event_row)

    def count_response(self, method: str, route: str | None, status_code: int, *, times: int = 1) -> None:
        """Count `times` responses, now.

        Args:
            method: of the request; a method that HTTP does not define counts as `(other)`.
            route: the route template that the application declares, like `/events/{event_id}`, never the path; None
                when no route produced the response.
            status_code: 100 to 599.
            times: how many.

        Raises:
            TelemetryError: only with `strict`: the contract does not allow it.
        """
        if method not in METHODS:  # METHODS is a tuple because `in` must accept an unhashable method
            method = OTHER
        key = (method, route, status_code, type(status_code))
        self._add(key, times, _response_row)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Reason -> number of counts that this process has dropped since it started."""
        return dict(self._dropped)

    def close(self) -> None:
        """Close the current file, which stays on disk. Closing again does nothing."""
        # In a signal handler or behind a hanging file system, the lock may never be released.
        if self._lock.acquire(timeout=_LOCK_SECONDS):
            try:
                self._write_drops()
                self._close_dump()
                self._close_drops()
            finally:
                self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[], Telemetry], tuple[()]]:
        """Pickle the arguments only (multiprocessing pickles): the copy is a new instance with files of its own."""
        return self._recreate, ()

    def _add(self, key: _Key, times: int, make_row: Callable[[Telemetry, _Key], dict[str, object]]) -> None:
        """Count, or drop and log. `make_row` returns the row of a key that has not been seen."""
        if _disabled.get():
            return
        try:
            lock = self._lock
            # `acquire(False)` is faster than an acquire with a timeout.
            if not lock.acquire(False) and not self._wait_for(lock):
                self.drop(BUSY, times, "another thread has been writing for too long")
                return
            try:
                # Read the clock under the lock: threads racing past midnight would flip the current day back and forth.
                now = self._clock()
                if self._day_start <= now < self._next_check:
                    try:
                        dump, line = self._line_of_key[key]
                    except (KeyError, TypeError):  # a new key, or an unhashable one, which is refused below
                        pass
                    else:
                        count = line.count + 1
                        digit = count % 10
                        if digit and times is _ONCE:  # `is`, because True and 1.0 equal 1
                            # Nine of ten counts end here. A method for it would take a tenth of their time.
                            dump.map[line.end - 1] = _ZERO + digit
                            line.count = count
                        else:
                            _add_to_line(dump, line, times)
                        return
                else:
                    self._check_dump_and_day(now)
                self._count_new_key(key, times, make_row(self, key))
            finally:
                lock.release()
        except Exception as error:  # no error may reach the request that counts
            if self._strict and isinstance(error, TelemetryError):
                raise
            reason, detail = self._explain(error)
            self.drop(reason, times, detail)
        self._log_removed()

    def _explain(self, error: Exception) -> tuple[str, str]:
        """Return why a count is dropped, and the detail for the log, which has no value."""
        match error:
            case TelemetryError():
                return REFUSED, str(error)
            case _CapError():
                return CAPPED, f"there are more than {self._max_keys} keys of one event name"
            case OSError():
                return IO, f"the dump cannot be written: {os.strerror(error.errno or errno.EIO)}"
        return FAILED, type(error).__name__

    def _wait_for(self, lock: threading.Lock) -> bool:
        """Wait a limited time for the lock, and a shorter time after a wait has timed out.

        The file system of the thread that holds it may hang, or a signal handler may have interrupted that very thread.
        """
        hanging = time.monotonic() < self._hanging_until
        if lock.acquire(True, min(_LOCK_SECONDS, _HANGING_LOCK_SECONDS) if hanging else _LOCK_SECONDS):
            return True
        self._hanging_until = time.monotonic() + _LOG_SECONDS
        return False

    def _count_new_key(self, key: _Key, times: int, row: dict[str, object]) -> None:
        """Count a key that has not been seen today, or any key after the dump was checked."""
        row = _dump_row({"event_date": self._event_date, **row, "count": times})
        event_name = str(row[EVENT_NAME.name])
        values = tuple(row.values())
        line = self._line_of_row.get(values)
        overflow = line is None and self._rows_per_event_name[event_name] >= self._max_keys
        if overflow:
            if ENDPOINT.name not in row:
                raise _CapError
            row[ENDPOINT.name] = OVERFLOW
            values = tuple(row.values())
            line = self._line_of_row.get(values)
        if line is None:
            line = self._line_of_row[values] = self._append_line(row, times)
            self._rows_per_event_name[event_name] += 1
            self._write_drops()  # those of the threads that could not wait for this line
        elif self._dump is not None:
            _add_to_line(self._dump, line, times)
        if not overflow and self._dump is not None:
            self._line_of_key[key] = self._dump, line

    def _append_line(self, row: Mapping[str, object], times: int) -> Line:
        if time.monotonic() < self._next_attempt:
            raise OSError(self._last_errno, "")
        try:
            if self._dump is None:
                self._dump = DumpFile(self._dump_dir, self._event_date)
            return self._dump.append(row, times)
        except OSError as error:
            # Without a pause, every request would try again, and a failing file system is slow to report an error.
            self._last_errno, self._next_attempt = error.errno or errno.EIO, time.monotonic() + _RETRY_SECONDS
            raise

    def _check_dump_and_day(self, now: float) -> None:
        """Drop the counts of a dump that was removed, and start the next day when it has begun.

        The caller calls `_log_removed` when it has released the lock, because a log handler may be slow.
        """
        # Check the dump first: after the day has changed, nothing would notice that it was removed.
        if self._dump is not None and self._dump.is_removed():
            self._record_drop(REMOVED, sum(line.count for line in self._line_of_row.values()))
            self._removed = True
            self._close_dump()
        if self._drops is not None and self._drops.is_removed():
            for reason, line in self._line_of_reason.items():
                self._record_unwritten(reason, line.count)
            self._close_drops()
        if not self._day_start <= now < self._day_end:
            self._write_drops()  # to the file of the day that has ended
            self._close_dump()
            self._close_drops()
            day = datetime.fromtimestamp(now, self._zone).date()
            self._event_date = day.isoformat()
            self._day_start, self._day_end = (instant.timestamp() for instant in bounds(day, self._time_zone))
        # Set it before the drops are written: a drop that comes later sets it to 0, and is written by the next count.
        self._next_check = min(now + _RETRY_SECONDS, self._day_end)
        # The file system has answered, so it does not hang, even if threads waited long for each other.
        self._hanging_until = 0.0
        self._write_drops()

    def _close_dump(self) -> None:
        dump, self._dump = self._dump, None
        self._line_of_row, self._line_of_key, self._rows_per_event_name = {}, {}, Counter()
        if dump is not None:
            dump.close()

    def _close_drops(self) -> None:
        drops, self._drops = self._drops, None
        self._line_of_reason = {}
        if drops is not None:
            drops.close()

    def drop(self, reason: str, times: object, detail: str) -> None:
        """Write a dropped count to the drop file, and log the reason once per minute.

        Args:
            reason: one of DROP_REASONS.
            times: how many counts.
            detail: for the log. It must not contain a value.
        """
        # An invalid `times` is recorded as one dropped call, because the value itself may be huge.
        self._record_drop(reason, times if type(times) is int and 0 < times <= MAX_COUNT else 1)
        problem = self._try_to_write_drops(reason)
        self._log_removed()
        self._log_drop(reason, detail)
        if problem:
            self._log("drop file", "the number of dropped counts cannot be written: %s", problem)

    def _record_drop(self, reason: str, number: int) -> None:
        with self._drop_lock:
            # A signal handler may run at any function call, and drop too. `setdefault` keeps calls out of the `+=`:
            # for a missing key it would call Counter.__missing__ between reading and writing.
            self._dropped.setdefault(reason, 0)
            self._dropped[reason] += number
        self._record_unwritten(reason, number)

    def _record_unwritten(self, reason: str, number: int) -> None:
        with self._drop_lock:
            self._unwritten.setdefault(reason, 0)
            self._unwritten[reason] += number

    def _try_to_write_drops(self, reason: str) -> str:
        """Write the drops, unless another thread holds the lock for too long. Returns why it failed, or nothing."""
        lock = self._lock
        # A count that was dropped because it waited for the lock does not wait again.
        if reason == BUSY or (not lock.acquire(False) and not self._wait_for(lock)):
            self._next_check = 0.0  # the next count writes them
            return ""
        try:
            now = self._clock()
            if not self._day_start <= now < self._next_check:
                self._check_dump_and_day(now)
            return self._write_drops()
        except Exception as error:  # of the clock
            return type(error).__name__
        finally:
            lock.release()

    def _write_drops(self) -> str:
        """Add the unwritten drops to the drop file of the current day. Returns why it failed, or nothing.

        The caller holds the lock. What cannot be written is kept, and written later.
        """
        try:
            for reason, number in list(self._unwritten.items()):
                if number and self._event_date:
                    self._write_drop(reason, number)
                    with self._drop_lock:
                        self._unwritten[reason] -= number
        except OSError as error:
            return os.strerror(error.errno or errno.EIO)
        except Exception as error:  # no error may harm the count that writes the drops along
            return type(error).__name__
        return ""

    def _write_drop(self, reason: str, number: int) -> None:
        line = self._line_of_reason.get(reason)
        if line is not None and self._drops is not None:
            self._drops.add(line, min(number, MAX_COUNT - line.count))
            return
        if time.monotonic() < max(self._next_attempt, self._next_drop_attempt):
            raise OSError(self._last_errno, "")
        try:
            if self._drops is None:
                self._drops = DumpFile(self._dump_dir, self._event_date, ".drops")
            row = {EVENT_DATE.name: self._event_date, DROP_REASON.name: reason}
            self._line_of_reason[reason] = self._drops.append(row, min(number, MAX_COUNT))
        except OSError as error:
            # Not `_next_attempt`: where no new file can be created, the dump may still take new keys.
            self._last_errno = error.errno or errno.EIO
            self._next_drop_attempt = time.monotonic() + _RETRY_SECONDS
            raise

    def _log_drop(self, reason: str, detail: str) -> None:
        text = "not counted (%s): %s; %d since this process started"
        self._log(reason, text, reason, detail, self._dropped[reason])

    def _log_removed(self) -> None:
        """Log that the dump was removed, if `_check_dump_and_day` has found that."""
        if self._removed:
            self._removed = False
            self._log_drop(REMOVED, "the dump was removed together with its counts")

    def _log(self, subject: str, text: str, *arguments: object) -> None:
        """Log once per minute and subject. The caller holds no lock, because a log handler may be slow."""
        now = time.monotonic()
        with self._drop_lock:
            due = now >= self._next_log.get(subject, now)
            if due:
                self._next_log[subject] = now + _LOG_SECONDS
        if due:
            with suppress(Exception):  # the application's own log handlers and filters may raise
                _log.warning(text, *arguments)

    def _reset_after_fork(self) -> None:
        """Discard, in a forked child, the parent's file, counts, and locks that another thread may have held."""
        self._close_dump()
        self._close_drops()
        self._reset()


def _add_to_line(dump: DumpFile, line: Line, times: object) -> None:
    if type(times) is not int or not 0 < times <= MAX_COUNT - line.count:
        raise TelemetryError(f"{COUNT.name} {COUNT.rule}")
    dump.add(line, times)


def _event_row(telemetry: Telemetry, key: _Key) -> dict[str, object]:
    event_name, event_id, _, source = key
    # `str` raises for an integer of more than 4,300 digits. One past 64 bits is no id, and the guard refuses it.
    if (type(event_id) is int and event_id.bit_length() <= 64) or isinstance(event_id, UUID):
        event_id = str(event_id)
    return {"event_name": event_name, "event_id": event_id, "source": telemetry.source if source is None else source}


def _response_row(_: Telemetry, key: _Key) -> dict[str, object]:
    method, route, status_code, _type = key
    endpoint = UNMATCHED if route is None else f"{method} {route}"
    return {"event_name": HTTP_RESPONSE, "endpoint": endpoint, "status_code": status_code}


def _dump_row(row: Mapping[str, object]) -> dict[str, object]:
    """Return the row in the contract's order, without its count and absent values. Raises TelemetryError."""
    row = {name: value for name, value in row.items() if value is not None}
    event_name = row.get(EVENT_NAME.name)
    # Use `get()`: a KeyError would carry the value as this error's context.
    metric = _METRICS.get(event_name) if isinstance(event_name, str) else None
    if metric is None:
        raise TelemetryError(f"{EVENT_NAME.name} must be one that telemetry counts: {', '.join(_METRICS)}")
    fields = metric.dump_fields
    # An unknown name may be shown: it is a parameter of `count`, not somebody's data.
    unknown = row.keys() - {field.name for field in fields}
    problems = [f"{name} is not a field of this metric" for name in sorted(unknown)]
    problems = problems or [str(violation) for violation in row_violations(row, fields, metric.event_names)]
    if problems:
        raise TelemetryError(f"{metric.asset}: {'; '.join(problems)}")
    return {field.name: row[field.name] for field in fields if field is not COUNT and field.name in row}


_instances: weakref.WeakSet[Telemetry] = weakref.WeakSet()


def _reset_all_after_fork() -> None:
    for telemetry in _instances:
        telemetry._reset_after_fork()


os.register_at_fork(after_in_child=_reset_all_after_fork)

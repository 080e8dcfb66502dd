"""Reading the counter dumps of a day: `<dump dir>/<event_date>/<hex>.ndjson`, one JSON object per line.

The drop files beside them (`drops`) are not counted. `merge` makes one dump of many: a list `<hex>.merged` beside it
names the dumps that it replaces, which are not counted either.

A day's total is the sum over its files. Every line is read strictly, even where a lenient JSON reader would accept it.
One reading counts every metric. A line that belongs to no known metric (broken, or with an unknown
event name) may belong to any of them, so none of the day is counted until somebody corrects or removes that line.

The lines of one key differ in their last 13 bytes only, where telemetry writes the count. What is before them is parsed
when it is first seen; after that, a line costs a dictionary lookup. A line that is written in another way is parsed by
itself.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from pydantic_core import SchemaValidator, core_schema

from analytics_assets.contract import (
    COUNT,
    EVENT_DATE,
    EVENT_NAME,
    MAX_COUNT,
    METRICS,
    SOURCE,
    CounterDumps,
    Metric,
)
from analytics_assets.database import UnreachableError
from analytics_assets.dump_files import (
    day_of,
    find_replaced,
    is_drop_file,
    is_dump,
    is_list,
    is_of_file_system,
    is_unfinished,
)
from analytics_assets.folders import lock_shared
from analytics_assets.guard import NOT_AN_OBJECT, UNKNOWN_FIELD, Violation, count_violations, obeys, row_violations
from analytics_assets.remote import RemoteError
from analytics_assets.settings import Settings
from analytics_assets.sources import Counted, OriginRefusedError, Problem, Reader
from analytics_assets.sources.dump_folder import DayFolders, NothingThereError, everything, open_folder

NOT_A_DUMP: Final = Violation("(file)", "is not a counter dump; remove it from the day's folder")
UNREADABLE: Final = Violation(
    "(file)", "cannot be read; add the pipeline's login to the web application's group, which may read dumps"
)
NOT_A_LIST: Final = Violation(
    "(file)", "is not a list of merged dumps; restore it, or remove it if no listed dump is left"
)
NOT_JSON: Final = Violation("(row)", "is not a line of JSON with distinct keys")
_NEWER: Final = (
    "; if the web application is newer than the pipeline, upgrade the pipeline first, then materialize the day again"
)
UNKNOWN_NAME: Final = Violation(EVENT_NAME.name, EVENT_NAME.rule + _NEWER)
WRONG_DAY: Final = Violation(EVENT_DATE.name, "must be the day of its folder")
FOREIGN_FOLDER: Final = Problem(
    "dump folder",
    Violation(
        "(folder)", "has a folder that is not a day: move that away, or name the right folder in ANALYTICS_DUMP_DIR"
    ),
)

_FOLDER_RECOVERY: Final = "`analytics-assets sources` says when it is right."

MAX_LINE: Final = 4096
"""In bytes. A line of a dump never crosses a page of this size, so a longer line is not parsed."""

_BLOCK: Final = 1 << 20
"""In bytes, of a file that are read at once."""

_TAIL: Final = len(f"{MAX_COUNT}}}")
"""In bytes: the count of a line, padded with blanks, and the brace that ends it."""
_POWERS: Final = np.array([10**place for place in reversed(range(_TAIL - 1))], np.float64)
_SMALLEST: Final = np.append(MAX_COUNT + 1, _POWERS[::-1])
"""The smallest count of so many digits, because it has no leading zero. No count has none."""
_ZERO: Final = np.uint8(ord("0"))
_BLANK: Final = ord(" ")
_BRACE: Final = ord("}")
_LINE_FEED: Final = ord("\n")

_SHARED_ROWS: Final = 100_000
"""Rows that the metrics of a run share: some 50 MB. Days beyond are read by each metric."""

DUMP_FED: Final = tuple(metric for metric in METRICS if isinstance(metric.origin, CounterDumps))
_FIELDS: Final = {metric.asset: metric.dump_fields for metric in DUMP_FED}
_METRICS: Final = {name: metric for metric in DUMP_FED for name in metric.event_names}
_KEYS: Final = {
    metric.asset: [field.name for field in metric.fields if field not in {EVENT_DATE, COUNT}] for metric in DUMP_FED
}
"""Asset -> the fields that tell one row of a day from another."""

_COMPARED: Final = SchemaValidator(
    core_schema.typed_dict_schema(
        {
            EVENT_NAME.name: core_schema.typed_dict_field(core_schema.str_schema()),
            COUNT.name: core_schema.typed_dict_field(core_schema.int_schema(strict=True)),
        }
    ),
    core_schema.CoreConfig(cache_strings="keys", hide_input_in_errors=True),
)
"""Second parser, for the comparison: it parses a line, and validates the event name and the count only."""

_Key = tuple[Any, ...]
"""An asset, and the values of its _KEYS."""
_Numbers = npt.NDArray[np.int64]


@contextmanager
def open_dumps(metric: Metric, settings: Settings, run_id: str = "") -> Iterator[Reader]:
    """Open the dump folder for reading.

    The metrics of one run share what was read of a day, as far as memory allows.

    Raises:
        OriginRefusedError: the dump folder does not exist or cannot be read. An empty result would look like a day
            without events.
        UnreachableError: what is behind the URL is out of reach, also when a day is counted.
    """
    with _reaching():
        problem = _find_problem(settings)
    if problem:
        raise OriginRefusedError([problem], _FOLDER_RECOVERY)
    days = _days_of_run(settings, run_id) if run_id else _Days(settings)
    yield Reader(count=lambda day: days.count(metric, day), total=lambda day: days.total(metric, day))


class _Days:
    """The days of one run. It forgets nothing, so it takes no further days when it is full."""

    def __init__(self, settings: Settings) -> None:
        self._folders = DayFolders(settings)
        self._counted: dict[date, dict[str, Counted]] = {}
        self._totals: dict[date, Counter[str]] = {}
        self._room = _SHARED_ROWS

    def count(self, metric: Metric, day: date) -> Counted:
        if day in self._counted:
            return self._counted[day][metric.asset]
        with _reaching(), self._folders.open(day) as folder:
            counted = read_day(folder, day)
        size = sum(len(each.rows) + len(each.problems) for each in counted.values())
        if size <= self._room:
            self._counted[day] = counted
            self._room -= size
        self._totals.pop(day, None)  # an older reading than this one
        return counted[metric.asset]

    def total(self, metric: Metric, day: date) -> int:
        if day not in self._totals:
            with _reaching(), self._folders.open(day) as folder:
                self._totals[day] = _sum_again(folder)
        return sum(self._totals[day][name] for name in metric.event_names)


@lru_cache(maxsize=1)
def _days_of_run(settings: Settings, run_id: str) -> _Days:
    return _Days(settings)


def find_problem(settings: Settings) -> Problem | None:
    """Return what is wrong with the dump folder, or what is behind its URL, or with the newest day in it."""
    try:
        return _find_problem(settings)
    except RemoteError as error:
        return remote_problem(error)


def _find_problem(settings: Settings) -> Problem | None:
    try:
        with open_folder(settings) as folder:
            return find_folder_problem(folder)
    except NothingThereError as error:
        return remote_problem(error)


@contextmanager
def _reaching() -> Iterator[None]:
    """Let a step be tried again when what is behind the URL is out of reach, as when a database is."""
    try:
        yield
    except RemoteError as error:
        raise UnreachableError(str(remote_problem(error))) from None


def remote_problem(error: RemoteError) -> Problem:
    """Return an error of the storage behind the URL as a problem."""
    return Problem("dump folder", Violation("(ANALYTICS_DUMP_DIR)", str(error)))


def find_folder_problem(folder: Path) -> Problem | None:
    """Return what is wrong with the dump folder, or with the newest day in it."""
    try:
        entries = list_entries(folder)
        if any(map(is_foreign, entries)):
            return FOREIGN_FOLDER
        folders = [path for path in entries if path.is_dir()]
        if not folders:
            return None
        with lock_shared(folders[-1]):
            _, _, problems = list_dumps(folders[-1])
    except FileNotFoundError:
        return Problem(
            "dump folder", Violation("(folder)", "does not exist: set ANALYTICS_DUMP_DIR to the telemetry's")
        )
    except NotADirectoryError:
        return Problem(
            "dump folder", Violation("(folder)", "is a file: set ANALYTICS_DUMP_DIR to the telemetry's folder")
        )
    except OSError:
        return Problem("dump folder", UNREADABLE)
    return problems[0] if problems else None


def count_dumps(folder: Path, day: date) -> int:
    """Return how many dump files a day has so far: one per process of the web application."""
    return len(list_dumps(folder / day.isoformat())[0])


def list_entries(folder: Path) -> list[Path]:
    """Return what is in the dump folder, sorted, without the folders of the file system and its snapshots.

    Raises:
        OSError: the folder does not exist or cannot be read.
    """
    return sorted(path for path in folder.iterdir() if not (is_of_file_system(path.name) and path.is_dir()))


def is_foreign(path: Path) -> bool:
    """Return whether a folder in the dump folder is not a day's."""
    return path.is_dir() and not path.is_symlink() and parse_day(path) is None


def parse_day(path: Path) -> date | None:
    """Return the day of a day's folder, None for anything else, such as a link."""
    return None if path.is_symlink() or not path.is_dir() else day_of(path.name)


def check_newest_days(settings: Settings) -> tuple[list[date], list[Problem]]:
    """Parse the newest finished day and today for every metric, as collecting does.

    Returns the days that were parsed, and what collecting refuses of them or of the folder.
    """
    if problem := find_problem(settings):
        return [], [problem]
    today, days = str(settings.today()), list[date]()
    try:
        with open_folder(settings) as folder:
            names = {path.name for path in folder.iterdir() if obeys(EVENT_DATE, path.name)}
        newest_finished = max((name for name in names if name < today), default=today)
        days = sorted(date.fromisoformat(name) for name in {newest_finished, today} & names)
        with open_folder(settings, days, everything) as folder:
            problems = [
                problem
                for day in days
                for counted in read_day(folder / str(day), day).values()
                for problem in counted.problems
            ]
    except RemoteError as error:
        problems = [remote_problem(error)]
    except OSError:
        problems = [Problem("dump folder", UNREADABLE)]
    return days, list(dict.fromkeys(problems))


def read_day(folder: Path, day: date) -> dict[str, Counted]:
    """Sum the lines of each metric over the files of a day's folder. A missing folder is a day without lines.

    Returns what each metric has, by its asset. Memory grows with the number of keys, not of files or lines.

    Raises:
        OSError: a file cannot be read.
    """
    with lock_shared(folder):
        dumps, others, problems = list_dumps(folder)
        if others:
            problems.append(Problem(f"{folder.name}/", NOT_A_DUMP, others))  # their names may hold anything
        return read_files(folder, dumps, day, problems)


def read_files(folder: Path, dumps: Iterable[str], day: date, of_all: Sequence[Problem] = ()) -> dict[str, Counted]:
    """Sum the lines of each metric over some files of a day's folder.

    `of_all` are problems of every metric. Returns and raises as `read_day`.
    """
    problems = {metric.asset: list(of_all) for metric in DUMP_FED}
    heads, totals, unusual = _Heads(day), list[int](), Counter[_Key]()
    for batch in _batches(folder, dumps):
        for name, number, line in _add_lines(batch, heads, totals):
            metric, row, violations = _parse(line, day)
            found = [Problem(f"{folder.name}/{name} line {number}", violation) for violation in violations]
            for asset in problems if metric is None else [metric.asset]:
                problems[asset] += found
            if metric is not None and not violations:
                unusual[_key(metric, row)] += row[COUNT.name]
    by_key = Counter(dict(zip(heads.keys_in_order(), totals, strict=False)))
    by_key.update(unusual)
    rows: dict[str, list[dict[str, Any]]] = {metric.asset: [] for metric in DUMP_FED}
    for (asset, *values), total in by_key.items():
        row = {EVENT_DATE.name: day, **dict(zip(_KEYS[asset], values, strict=True)), COUNT.name: total}
        rows[asset].append(row)
    for metric in DUMP_FED:
        problems[metric.asset] += [
            Problem(f"{folder.name}/", violation, number)
            for violation, number in count_violations(rows[metric.asset], metric.fields, metric.event_names).items()
        ]
    return {asset: Counted(rows[asset], problems[asset]) for asset in rows}


def read_replaced(folder: Path, dumps: Collection[str], lists: Iterable[str]) -> set[str]:
    """Return the names of the dumps that merged dumps of a day replace. A list without its dump replaces nothing.

    Raises:
        OSError: a list cannot be read.
        ValueError: it has something else than names of dumps.
    """
    return find_replaced({*dumps, *lists}, lambda name: Path(folder, name).read_bytes())


class _Heads(dict[bytes, int]):
    """What is before the last 13 bytes of a line -> the index of its key.

    Looking up an unknown one gives -1 unless every line that begins so is valid when a count follows.
    """

    def __init__(self, day: date) -> None:
        super().__init__()
        self._day = day
        self._of_key: dict[_Key, int] = {}
        self._of_text: dict[bytes, int] = {}

    def __missing__(self, head: bytes) -> int:
        if len(head) + _TAIL > MAX_LINE:
            return -1
        text = head.rstrip(b" ")  # telemetry aligns the count with up to seven blanks more
        if text not in self._of_text:
            # The count of a valid line may be replaced by any other, because it is the last thing in it.
            metric, row, violations = _parse(text + b"1}", self._day)
            if metric is None or violations or not text.endswith(b'"count":'):
                return -1
            self._of_text[text] = self._of_key.setdefault(_key(metric, row), len(self._of_key))
        self[head] = self._of_text[text]
        return self[head]

    def keys_in_order(self) -> Iterable[_Key]:
        """Return the key of each index."""
        return self._of_key


def _key(metric: Metric, row: dict[str, Any]) -> _Key:
    return (metric.asset, *map(row.get, _KEYS[metric.asset]))


class _Piece(NamedTuple):
    """Whole lines of a file, each with its line feed."""

    dump: str
    first: int
    """The number of the first line in the file, from 1."""
    text: bytes


def _add_lines(pieces: Sequence[_Piece], heads: _Heads, totals: list[int]) -> Iterator[tuple[str, int, bytes]]:
    """Add the counts of lines that are as telemetry writes them to the totals of their keys' indexes.

    Yields the dump, the number and the text of any other line. Blank lines are skipped: they end a page early.
    """
    text = b"".join([piece.text for piece in pieces]).rjust(_TAIL, b"\n")
    starts, ends, counts = _read_counts(text)
    is_usual = counts > 0
    of_heads = zip(starts[is_usual].tolist(), (ends[is_usual] - _TAIL).tolist(), strict=True)
    index = np.full(len(counts), -1)
    # Slice one head at a time: each reuses the memory of the one before. A list of all takes twice as long.
    index[is_usual] = [heads[text[start:end]] for start, end in of_heads]
    known = index >= 0
    sums = np.zeros(len(heads), np.int64)  # at least as many as there are keys
    np.add.at(sums, index[known], counts[known])
    totals += [0] * (len(heads) - len(totals))
    counted = np.flatnonzero(sums)
    for number, total in zip(counted.tolist(), sums[counted].tolist(), strict=True):
        totals[number] += total
    if not known.all():
        numbered = [
            (piece.dump, number, line)
            for piece in pieces
            for number, line in enumerate(piece.text.split(b"\n"), piece.first)
            if line
        ]
        yield from compress(numbered, (~known).tolist())


def _read_counts(text: bytes) -> tuple[_Numbers, _Numbers, _Numbers]:
    """Return where each line that is not blank starts and ends, and its count.

    The count is 0 unless it is written as telemetry writes it: blanks, a number without a leading zero, and the brace.
    The text is not shorter than a count.
    """
    data = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(data == _LINE_FEED)
    lengths = np.diff(ends, prepend=-1) - 1
    ends, lengths = ends[lengths > 0], lengths[lengths > 0]
    starts = ends - lengths
    # A row per byte, because numpy is much faster along many lines than along few bytes.
    tails = np.ascontiguousarray(sliding_window_view(data, _TAIL)[np.maximum(ends - _TAIL, 0)].T)
    digits = tails[:-1] - _ZERO  # below zero, these unsigned numbers are large
    is_digit = digits < 10  # the base
    counts = (_POWERS @ np.where(is_digit, digits, 0)).astype(np.int64)
    is_count = (
        (lengths >= _TAIL)
        & (tails[-1] == _BRACE)
        & (is_digit | (tails[:-1] == _BLANK)).all(axis=0)
        & (is_digit[:-1] <= is_digit[1:]).all(axis=0)
        & (counts >= _SMALLEST[is_digit.sum(axis=0)])
    )
    return starts, ends, np.where(is_count, counts, 0)


def _batches(folder: Path, dumps: Iterable[str]) -> Iterator[list[_Piece]]:
    """Yield pieces of the files, so many together that they fill a block: most files are small."""
    batch, size = [], 0
    for dump in dumps:
        piece = None
        for text in _blocks(f"{folder}/{dump}"):
            # Most files are one piece, so its lines are not counted before there is another.
            piece = _Piece(dump, piece.first + piece.text.count(b"\n") if piece else 1, text)
            batch.append(piece)
            size += len(text)
            if size >= _BLOCK:
                yield batch
                batch, size = [], 0
    yield batch


def _blocks(path: str) -> Iterator[bytes]:
    """Yield a file in pieces of whole lines, each with its line feed.

    A line that is far too long is cut, and stays too long.
    """
    with open(path, "rb", buffering=0) as file:  # opening a Path takes longer than reading a small file
        rest = b""
        while piece := file.read(_BLOCK):
            if end := piece.rfind(b"\n") + 1:
                yield rest + piece[:end]  # no copy of a file that is one piece
                rest = piece[end:]
            else:
                rest = (rest + piece)[: MAX_LINE + 1]
        if rest:
            yield rest + b"\n"


def list_dumps(folder: Path) -> tuple[list[str], int, list[Problem]]:
    """Return the names of the dumps to be counted of a day, the number of foreign entries, and what cannot be read.

    A missing folder has no files. `Path.glob` is not used: it takes an unreadable folder for an empty one.
    """
    names, lists, others = [], [], 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                is_file = entry.is_file(follow_symlinks=False)
                if is_file and is_dump(entry.name):
                    names.append(entry.name)
                elif is_file and is_list(entry.name):
                    lists.append(entry.name)
                elif not (is_file and (is_drop_file(entry.name) or is_unfinished(entry.name))):
                    others += 1
    except FileNotFoundError:
        return [], 0, []
    except OSError:
        return [], 0, [Problem(f"{folder.name}/", UNREADABLE)]
    try:
        replaced = read_replaced(folder, names, lists)
    except OSError:
        return [], others, [Problem(f"{folder.name}/", UNREADABLE)]
    except ValueError:
        return [], others, [Problem(f"{folder.name}/", NOT_A_LIST)]
    names = sorted(set(names) - replaced)
    closed = [name for name in names if not os.access(f"{folder}/{name}", os.R_OK)]
    if closed:
        return [], others, [Problem(f"{folder.name}/{name}", UNREADABLE) for name in closed]
    return names, others, []


def _parse(line: bytes, day: date) -> tuple[Metric | None, dict[str, Any], list[Violation]]:
    """Return the metric that the line belongs to, its row, and what is wrong with the line.

    No metric means that the line may belong to any of them.
    """
    try:
        if len(line) > MAX_LINE:
            raise ValueError
        row = _STRICT.decode(line.decode("ascii"))
    except (ValueError, RecursionError):
        return None, {}, [NOT_JSON]
    if not isinstance(row, dict):
        return None, {}, [NOT_AN_OBJECT]
    name = row.get(EVENT_NAME.name)
    metric = _METRICS.get(name) if isinstance(name, str) else None
    if metric is None:
        return None, {}, [UNKNOWN_NAME]
    violations = [
        Violation(v.field, v.rule + _NEWER) if v == UNKNOWN_FIELD or v.field == SOURCE.name else v
        for v in row_violations(row, _FIELDS[metric.asset], metric.event_names)
    ]
    if not violations and row[EVENT_DATE.name] != day.isoformat():
        violations = [WRONG_DAY]
    return metric, row, violations


def _require_distinct_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # json silently keeps the last of two equal keys.
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError
    return row


def _refuse_constant(_: str) -> None:
    # json accepts NaN and Infinity, which JSON does not have.
    raise ValueError


_STRICT: Final = json.JSONDecoder(object_pairs_hook=_require_distinct_keys, parse_constant=_refuse_constant)


def _sum_again(folder: Path) -> Counter[str]:
    """Sum the same lines per event name with another parser, for the comparison with what is stored.

    Every line is parsed, and no value is remembered.

    Raises:
        OriginRefusedError: a file cannot be read.
        OSError: as `read_day`.
    """
    with lock_shared(folder):
        dumps, _, problems = list_dumps(folder)
        if problems:
            raise OriginRefusedError(problems, _FOLDER_RECOVERY)
        return sum_files(folder, dumps)


def sum_files(folder: Path, dumps: Iterable[str]) -> Counter[str]:
    """Sum the lines of some files of a day's folder per event name. Raises as `_sum_again`."""
    totals = Counter[str]()
    for name in dumps:
        # Nothing is raised while the parser's error is handled: its text has the line.
        with suppress(ValueError), open(f"{folder}/{name}", "rb") as file:
            for row in map(_COMPARED.validate_json, filter(b"\n".__ne__, file)):
                totals[row[EVENT_NAME.name]] += row[COUNT.name]
            continue
        unreadable = Problem(f"{folder.name}/{name}", NOT_JSON)
        raise OriginRefusedError([unreadable], "Correct or remove the line or the file.")
    return totals

"""Compare the cost of reading a day of counter dumps with DuckDB reading the same files: `make bench-dumps`.

DuckDB reads each file once, sums per key and checks nothing. It takes turns with:

* count one metric: what collecting one metric reads;
* count and compare one metric: the same, and the independent sum that a check compares with what is stored;
* count and compare every metric: the same for each metric that is counted from dumps, as one run does it.

All must find the same counts, or it fails with status 1. Then a day of one-line files is counted, beside the same lines
in one file. Last, a process counts and compares a day of many lines, and says how much memory it took.

A missed target is printed but does not fail the run, because the machine may be the reason.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from pathlib import Path
from secrets import token_hex
from statistics import median
from time import perf_counter
from typing import Final

import duckdb
from rich.progress import track

from analytics_assets.contract import METRICS, CounterDumps, Metric
from analytics_assets.settings import Settings
from analytics_assets.sources import Reader
from analytics_assets.sources.counter_dumps import open_dumps
from analytics_assets.telemetry.dumps import DumpFile

DAY: Final = date(2026, 11, 22)
DUMP_FED: Final = tuple(metric for metric in METRICS if isinstance(metric.origin, CounterDumps))
MEMORY: Final = 1024
"""In MiB: the target for the day of many lines."""
SUMS: Final = """
select event_name, event_id, source, endpoint, status_code, sum(count) as total
from read_json(?, format = 'newline_delimited', columns = {
    event_name: 'VARCHAR', event_id: 'VARCHAR', source: 'VARCHAR', endpoint: 'VARCHAR', status_code: 'BIGINT',
    count: 'BIGINT'
})
group by all
"""

Counts = Mapping[tuple[object, ...], int]


def make_keys(number: int, on: date = DAY) -> list[dict[str, object]]:
    """Rows without their count: a third of each metric."""
    keys: list[dict[str, object]] = []
    for index in range(number):
        day: dict[str, object] = {"event_date": str(on)}
        if index % 3 == 2:
            endpoint = f"GET /page{index}/{{event_id}}"
            keys.append(day | {"event_name": "http_response", "endpoint": endpoint, "status_code": 200})
        else:
            name = ("directory_page_viewed", "directory_searched")[index % 3]
            keys.append(day | {"event_name": name, "event_id": str(index), "source": "web"})
    return keys


def write_dumps(dump_dir: Path, files: int, keys: int, seed: int) -> None:
    """Write the dumps of so many processes, each of which has counted every key, in an order of its own."""
    rng, rows = random.Random(seed), make_keys(keys)  # noqa: S311  # no secret
    for _ in track(range(files), "writing dumps", transient=True):
        dump = DumpFile(dump_dir, str(DAY))
        for row in rng.sample(rows, len(rows)):
            dump.append(row, int(rng.paretovariate(0.5)) % 100_000 + 1)
        dump.close()


def write_lines(one_line_files: Path, one_file: Path, number: int) -> None:
    """Write so many lines twice: in a file each, and in one file."""
    merged = DumpFile(one_file, str(DAY))
    for count, row in enumerate(track(make_keys(number), "writing small dumps", transient=True), 1):
        for dump in (DumpFile(one_line_files, str(DAY)), merged):
            dump.append(row, count)
            if dump is not merged:
                dump.close()
    merged.close()


def read_with_duckdb(dump_dir: Path) -> Counts:
    """Sum per key, in one pass and without a check."""
    paths = [str(path) for path in (dump_dir / str(DAY)).iterdir()]
    with duckdb.connect(config={"threads": 2, "autoinstall_known_extensions": False}) as connection:
        return {tuple(row[:-1]): int(row[-1]) for row in connection.execute(SUMS, [paths]).fetchall()}


def read_with_ours(dump_dir: Path, metrics: int, *, compare: bool) -> Counts:
    """Count the first so many metrics, each with a reader of its own, and compare their totals when asked to."""
    found, run_id = Counter[tuple[object, ...]](), token_hex()
    for metric in DUMP_FED[:metrics]:
        with ExitStack() as stack:
            reader = open_reader(stack, dump_dir, metric, run_id)
            counted = reader.count(DAY)
            if counted.problems:
                sys.exit(f"{metric.asset}: {counted.problems[0]}; no comparison")
            total = sum(row["count"] for row in counted.rows)
            if compare and reader.total(DAY) != total:
                sys.exit(f"{metric.asset}: its total differs; no comparison")
        for row in counted.rows:
            key = (metric.event_names[0], *map(row.get, ("event_id", "source", "endpoint", "status_code")))
            found[key] = row["count"]
    return found


def open_reader(stack: ExitStack, dump_dir: Path, metric: Metric, run_id: str) -> Reader:
    """Open the dumps as a run does."""
    settings = replace(Settings.from_env({}), dump_dir=dump_dir)
    return stack.enter_context(open_dumps(metric, settings, run_id))


def compare_readers(dump_dir: Path, rounds: int) -> bool:
    """Print the seconds of each reader. Returns whether all have found the same counts."""
    readers: dict[str, tuple[Callable[[], Counts], float]] = {
        "DuckDB, nothing checked": (lambda: read_with_duckdb(dump_dir), 1),
        "count one metric": (lambda: read_with_ours(dump_dir, 1, compare=False), 3),
        "count and compare one metric": (lambda: read_with_ours(dump_dir, 1, compare=True), 8),
        "count and compare every metric": (lambda: read_with_ours(dump_dir, len(DUMP_FED), compare=True), 8),
    }
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    expected = read_with_duckdb(dump_dir)
    for _ in track(range(rounds), "rounds", transient=True):
        for name, (read, _target) in readers.items():
            started = perf_counter()
            found = read()
            seconds[name].append(perf_counter() - started)
            names = {key[0] for key in found}
            if found != {key: count for key, count in expected.items() if key[0] in names}:
                print(f"{name}: other counts than DuckDB's; no comparison", file=sys.stderr)
                return False
    lines = sum(path.read_bytes().count(b"}\n") for path in (dump_dir / str(DAY)).iterdir())
    print(f"a day of {lines:,} lines, {len(expected):,} keys, {rounds} rounds, all with the same counts")
    print(f"  {'seconds':<32} {'median':>8} {'from':>8} {'to':>8} {'ratio':>8} {'target':>8}")
    floor = seconds["DuckDB, nothing checked"]
    for name, taken in seconds.items():
        ratio = median(value / bare for value, bare in zip(taken, floor, strict=True))
        target = readers[name][1]
        print(
            f"  {name:<32} {median(taken):8.2f} {min(taken):8.2f} {max(taken):8.2f} {ratio:8.2f} {target:8.0f}"
            f"{'' if ratio <= target else ' MISSED'}"
        )
    return True


def compare_sizes(one_line_files: Path, one_file: Path, rounds: int) -> bool:
    """Print the seconds of counting the same lines in many files and in one. Returns whether the counts are equal."""
    folders = {"a file per line": one_line_files, "one file": one_file}
    seconds: dict[str, list[float]] = {name: [] for name in folders}
    for _ in track(range(rounds), "rounds", transient=True):
        found = []
        for name, folder in folders.items():
            started = perf_counter()
            found.append(read_with_ours(folder, len(DUMP_FED), compare=True))
            seconds[name].append(perf_counter() - started)
        if found[0] != found[1]:
            print("small files: other counts than in one file; no comparison", file=sys.stderr)
            return False
    ratio = median(many / one for many, one in zip(*seconds.values(), strict=True))
    print(f"the same {len(found[0]):,} lines, every metric counted and compared, {rounds} rounds")
    for name, taken in seconds.items():
        print(f"  {name:<32} {median(taken):8.2f} {min(taken):8.2f} {max(taken):8.2f}")
    print(f"  many / one: {ratio:.2f} (target: at most 5){'' if ratio <= 5 else ' MISSED'}")
    return True


def measure_memory(dump_dir: Path, times: int, folder: Path) -> bool:
    """Print the peak memory of a process that reads the day with every file so many times. Returns whether it did."""
    many = folder / str(DAY)
    many.mkdir(parents=True)
    paths = list((dump_dir / str(DAY)).iterdir())
    for number in range(times * len(paths)):
        (many / f"{number:032x}.ndjson").hardlink_to(paths[number % len(paths)])
    ran = subprocess.run([sys.executable, __file__, "--only-read", str(folder)], check=False)
    return ran.returncode == 0


def read_and_tell_memory(dump_dir: Path) -> None:
    """Count and compare every metric, and print the peak memory of this process."""
    found = read_with_ours(dump_dir, len(DUMP_FED), compare=True)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    files = sum(1 for _ in (dump_dir / str(DAY)).iterdir())
    missed = "" if peak <= MEMORY else " MISSED"
    print(f"peak memory, {files:,} files, {len(found):,} keys: {peak:.0f} MiB (target: at most {MEMORY}){missed}")


def main() -> int:
    """Run the comparisons. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200, help="dumps of the day (200)")
    parser.add_argument("--keys", type=int, default=5_000, help="keys in each of them (5,000)")
    parser.add_argument("--small", type=int, default=20_000, help="one-line dumps of another day (20,000)")
    parser.add_argument("--times", type=int, default=5, help="how many times the day is read to measure memory (5)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random numbers (1)")
    parser.add_argument("--only-read", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only_read:
        read_and_tell_memory(options.only_read)
        return 0
    with tempfile.TemporaryDirectory(prefix="analytics-benchmark-") as name:
        folder = Path(name)
        write_dumps(folder / "day", options.files, options.keys, options.seed)
        write_lines(folder / "small", folder / "merged", options.small)
        done = compare_readers(folder / "day", options.rounds)
        done = done and compare_sizes(folder / "small", folder / "merged", options.rounds)
        done = done and measure_memory(folder / "day", options.times, folder / "many")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())

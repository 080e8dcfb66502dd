"""Compare the cost of reading a day of counter dumps behind a URL with that of the local folder: `make bench-ship`.

The same dumps are shipped to a share (`file://`) and to a server of S3 on this machine, which is moto: a process in
Python that takes milliseconds per request, so that the figures of S3 are those of moto rather than of a storage. Every
metric is counted and compared, each with a download of its own, from:

* the local folder;
* the share, and the server of S3;
* the server of S3, downloads only: all that is not ours.

All must find the same counts, or it fails with status 1. Shipping is measured, too: all dumps, none when this was a
process's first round, none in a later round.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from secrets import randbelow, token_hex
from statistics import median
from time import perf_counter

import requests
from dumps import DAY, DUMP_FED, Counts, write_dumps
from rich.progress import track

from analytics_assets.remote import RemoteFolder
from analytics_assets.settings import Settings
from analytics_assets.ship import Fate, Shipper
from analytics_assets.sources.counter_dumps import open_dumps

PATIENCE = 60
"""Seconds for the server to start."""


def free_port() -> int:
    """Return a port that nobody uses now.

    It is below those that the system hands out, where another connection could take it before it is used.
    """
    while True:
        port = 11_000 + randbelow(20_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def s3_server() -> Iterator[str]:
    """Start a server of S3. Yields the URL of a folder in it; the environment has what its library reads."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process,
        requests.Session() as session,
    ):
        try:
            session.trust_env = False  # loopback never goes through a proxy
            for _ in range(PATIENCE * 10):
                with suppress(requests.ConnectionError):
                    session.put(f"http://127.0.0.1:{port}/benchmark", timeout=PATIENCE).raise_for_status()
                    break
                time.sleep(0.1)
            names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
            os.environ.update(dict.fromkeys(names, "benchmark"), AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
            yield "s3://benchmark/dumps"
        finally:
            process.terminate()


def read(settings: Settings) -> Counts:
    """Count and compare every metric, as one run does."""
    found: dict[tuple[object, ...], int] = {}
    run_id = token_hex()
    for metric in DUMP_FED:
        with open_dumps(metric, settings, run_id) as reader:
            counted = reader.count(DAY)
            if counted.problems or reader.total(DAY) != sum(row["count"] for row in counted.rows):
                sys.exit(f"{metric.asset}: it is refused or its total differs; no comparison")
        for row in counted.rows:
            found[metric.asset, *(value for name, value in row.items() if name != "count")] = row["count"]
    return found


def download(url: str, times: int) -> None:
    """Read every dump of the day so many times, and nothing else."""
    folder = RemoteFolder(url)
    for _ in range(times):
        with folder.in_parallel() as executor:
            for _content in executor.map(folder.read, [f"{DAY}/{name}" for name in folder.list(str(DAY))]):
                pass


def compare_places(dump_dir: Path, urls: dict[str, str], rounds: int) -> bool:
    """Print the seconds of reading from each place. Returns whether all have found the same counts."""
    local = replace(Settings.from_env({}), dump_dir=dump_dir)
    readers: dict[str, Callable[[], Counts]] = {"the local folder": lambda: read(local)}
    for name, url in urls.items():
        readers[name] = lambda url=url: read(replace(local, dump_url=url))  # type: ignore[misc]  # the default binds it
    seconds: dict[str, list[float]] = {name: [] for name in (*readers, "S3, downloads only")}
    expected = read(local)
    for _ in track(range(rounds), "rounds", transient=True):
        for name, action in readers.items():
            started = perf_counter()
            found = action()
            seconds[name].append(perf_counter() - started)
            if found != expected:
                print(f"{name}: other counts than in the local folder; no comparison", file=sys.stderr)
                return False
        started = perf_counter()
        download(urls["S3"], 2)
        seconds["S3, downloads only"].append(perf_counter() - started)
    files = len(list((dump_dir / str(DAY)).iterdir()))
    print(f"a day of {files:,} files, every metric counted and compared, {rounds} rounds, all with the same counts")
    print(f"  {'seconds':<32} {'median':>8} {'from':>8} {'to':>8} {'ratio':>8}")
    floor = median(seconds["the local folder"])
    for name, taken in seconds.items():
        ratio = median(taken) / floor
        print(f"  {name:<32} {median(taken):8.2f} {min(taken):8.2f} {max(taken):8.2f} {ratio:8.1f}")
    return True


def measure_shipping(dump_dir: Path, urls: dict[str, str]) -> bool:
    """Ship the dumps to each place, and print the seconds of each round. Returns whether all went well."""
    print(f"  {'seconds to ship':<24}{'all':>14}{'none, first':>14}{'none, later':>14}")
    for name, url in urls.items():
        shipper, later = (Shipper(dump_dir, RemoteFolder(url), 180) for _ in range(2))
        taken = []
        for each, fate in ((shipper, Fate.SHIPPED), (later, Fate.UNCHANGED), (later, Fate.UNCHANGED)):
            started = perf_counter()
            done = each.ship(DAY + timedelta(days=1))
            taken.append(perf_counter() - started)
            if done.problems or set(done.fates) != {fate}:
                print(f"{name}: {done}; no comparison", file=sys.stderr)
                return False
        print(f"  {name:<24}" + "".join(f"{value:14.2f}" for value in taken))
    return True


def main() -> int:
    """Run the comparison. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000, help="dumps of the day (1,000)")
    parser.add_argument("--keys", type=int, default=100, help="keys in each of them (100)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (5)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random numbers (1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="analytics-benchmark-") as name, s3_server() as url:
        folder = Path(name)
        (folder / "share").mkdir()
        write_dumps(folder / "dumps", options.files, options.keys, options.seed)
        urls = {"a share (file://)": f"file://{folder}/share", "S3": url}
        done = measure_shipping(folder / "dumps", urls)
        done = done and compare_places(folder / "dumps", urls, options.rounds)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())

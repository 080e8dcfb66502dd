"""Run every benchmark, one after the other, and write what they print into a page: `make bench`.

The full sizes take about half an hour on two cores, and want a machine that does nothing else. `--quick` runs small
sizes, which show that everything works and say nothing about the cost.

A benchmark that fails ends this with its status, and no page is written.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import psutil

from analytics_assets.local.postgres import VERSION

FOLDER: Final = Path(__file__).parent
HEAD: Final = """\
# Benchmarks

Each comparison ran in one go on one machine. The alternatives take turns, and all that count must find the same
numbers. A ratio is the time of ours in times of the alternative, unless the line says otherwise: below one, ours is
faster. A target is a goal, not a result; MISSED says that it was not reached in this run. Ratios hold on other machines
better than seconds do. `make bench` writes this page; the head of each script in `benchmarks/` says what it
compares."""


@dataclass(frozen=True)
class Benchmark:
    """A script of this folder."""

    title: str
    quick: str
    """Options of the small size."""
    plot: str = ""
    """What its plot shows, if it draws one: `<name>.svg` beside the page."""


BENCHMARKS: Final = {
    "collect": Benchmark(
        "Counting, storing and checking a day of a source view", "--rows 20000 --events 20 --days 5 --rounds 1 --runs 1"
    ),
    "dumps": Benchmark("Reading counter dumps", "--files 3 --keys 50 --small 20 --times 1 --rounds 1"),
    "ship": Benchmark("Dumps of many machines", "--files 3 --keys 5 --rounds 1"),
    "runs": Benchmark("Whole runs", "--days 3 --rounds 1"),
    "demo": Benchmark("The first demonstration", "--days 4 --rounds 1"),
    "storage": Benchmark("The event log, and removing a day", "--days 3 --rounds 1 --small 10 --large 100"),
    "publish": Benchmark("Publishing", "--events 20 --nightly-events 30 --pages 3 --rounds 1"),
    "telemetry": Benchmark("Counting in the web application", "--rounds 2 --calls 3"),
    # Last: its plot must not be drawn when another fails.
    "scaling": Benchmark(
        "How the cost of collecting grows",
        "--reduce 50 --steps 2 --rounds 1",
        "Seconds to collect against rows, events, days, files and keys, on logarithmic axes, each beside a linear cost",
    ),
}
PACKAGES: Final = (
    *("dagster", "dagster-postgres", "sqlalchemy", "psycopg2-binary", "pandas", "duckdb", "s3fs", "moto"),
    *("prometheus_client", "prometheus-fastapi-instrumentator"),
)


def run(name: str, *, quick: bool, beside: Path | None) -> str:
    """Return what a benchmark prints, and print it, too. Its plot is drawn beside the page, where there is one.

    Ends the program when the benchmark fails.
    """
    benchmark = BENCHMARKS[name]
    print(f"== {benchmark.title}", flush=True)
    command = [sys.executable, str(FOLDER / f"{name}.py"), *(benchmark.quick.split() if quick else ())]
    if benchmark.plot and beside:
        command += ["--plot", str(beside.with_name(f"{name}.svg"))]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        sys.exit(process.returncode)
    return "".join(lines).strip()


def describe_machine() -> str:
    """Return a table of the machine and the versions of what was measured."""
    facts = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "PostgreSQL": VERSION,
    } | {package: version(package) for package in PACKAGES}
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in facts.items())])


def processor() -> str:
    """Return the name of the processor as Linux knows it, or as Python does."""
    try:
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        return names[0].split(":")[1].strip()
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


def page(outputs: dict[str, str]) -> str:
    """Return the page in Markdown."""
    parts = [
        HEAD,
        describe_machine(),
    ]
    for name, output in outputs.items():
        benchmark = BENCHMARKS[name]
        parts += [f"## {benchmark.title}", f"`benchmarks/{name}.py`", f"```text\n{output}\n```"]
        if benchmark.plot:
            parts.append(f"![{benchmark.plot}]({name}.svg)")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run the benchmarks and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS), help="benchmarks to run")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything works")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put machine, versions and outputs in this page")
    options = parser.parse_args()
    outputs = {
        name: run(name, quick=options.quick, beside=options.write) for name in BENCHMARKS if name in options.only
    }
    if options.write:
        options.write.write_text(page(outputs), encoding="utf-8")


if __name__ == "__main__":
    main()

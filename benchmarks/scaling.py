"""How the cost of collecting grows when its input grows ten times, and again ten times: `make bench-scaling`.

There are five curves. Each makes one thing larger and leaves the others as they are:

* rows: sign-ups of one day, of as many events;
* events: events that the same number of sign-ups is about;
* days: days of one run of the sign-ups, in this process;
* files: counter dumps of one day, with the same lines in all of them together;
* keys: keys of the same number of lines in the same number of dumps.

The pipeline's own code counts a day at its source, stores it, and checks what is stored against the contract and the
source, on the embedded PostgreSQL. Nothing is stored before each measurement. The sizes of a curve take turns, and the
first turn only warms up.

What is stored must be what was put in, or it fails with status 1. From each size to the next, the cost may grow at most
linearly. A missed target is printed but does not fail the run, because the machine may be the reason.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from secrets import token_hex
from statistics import median
from typing import Any, Final, NamedTuple

import altair as alt
import dagster as dg
import vl_convert
from collect import SIGNUPS, Databases, DifferentError, timed
from dumps import DUMP_FED, make_keys
from rich.progress import track

from analytics_assets.contract import Metric, metric
from analytics_assets.days import bounds
from analytics_assets.definitions import build_definitions
from analytics_assets.defs.evaluation import MATCHES, STORED, evaluate, open_reader
from analytics_assets.defs.partitions import range_tags
from analytics_assets.local.postgres import embedded_postgres
from analytics_assets.local.server import dagster_instance, databases
from analytics_assets.settings import Settings
from analytics_assets.store import Store, open_store
from analytics_assets.store.counts import Stored, read_days, replace_days
from analytics_assets.telemetry.dumps import DumpFile

TIMES: Final = 10
"""One size of a curve is so many times the size before."""
TOLERANCE: Final = 1.05
"""Of the measurement: a cost that grows by at most TIMES * TOLERANCE counts as linear."""

OF_DAY: Final = """
select count(distinct event_id) as events, count(distinct (event_id, source)) as rows, count(*) as total
from signups where occurred_at >= %(start)s and occurred_at < %(end)s
"""

Expected = Mapping[tuple[str, date], Stored]
"""An asset and a day -> what must be stored."""


class Size(NamedTuple):
    """One size of a curve."""

    number: int
    collect: Callable[[], object]
    expected: Expected


@dataclass(frozen=True)
class Curve:
    """What grows, and what does not."""

    title: str
    fixed: str
    sizes: Sequence[Size]


class Cost(NamedTuple):
    """What one size took, in seconds."""

    size: int
    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Plan:
    """Where the curves get their data from. Every curve takes days that no other has."""

    found: Databases
    store: Store
    reduce: int
    """Every number of rows, events, lines, files and keys is divided by this."""
    steps: int
    """Sizes of a curve."""

    def of(self, number: int) -> int:
        """Return a number, reduced."""
        return max(1, number // self.reduce)

    def sizes(self, smallest: int) -> list[int]:
        """Return the sizes of a curve, without reducing them."""
        return [smallest * TIMES**step for step in range(self.steps)]

    def rows(self) -> Curve:
        """More sign-ups of a day."""
        events, days = self.of(100), self.found.days[:3]
        numbers = zip(self.sizes(self.of(30_000)), days, strict=False)
        sizes = [self._day_of_signups(number, day, number, events) for number, day in numbers]
        return Curve("sign-ups of a day", f"{events:,} events", sizes)

    def events(self) -> Curve:
        """More events of the same sign-ups."""
        rows, days = self.of(600_000), self.found.days[3:6]
        numbers = zip(self.sizes(self.of(300)), days, strict=False)
        sizes = [self._day_of_signups(number, day, rows, number) for number, day in numbers]
        return Curve("events of a day", f"{rows:,} sign-ups", sizes)

    def _day_of_signups(self, number: int, day: date, rows: int, events: int) -> Size:
        self.found.add_signups([day], rows, events)
        collect = partial(collect_day, self.store, [SIGNUPS], day)
        return Size(number, collect, self._expected_of_host([day], rows, events))

    def _expected_of_host(self, days: Sequence[date], rows: int, events: int) -> Expected:
        expected = {}
        for day in days:
            start, end = bounds(day, self.found.settings.time_zone)
            row = self.found.host.exec_driver_sql(OF_DAY, {"start": start, "end": end}).one()
            if (row.events, row.total) != (events, rows):
                raise DifferentError("the host's table has not the events and rows that the size says")
            expected[SIGNUPS.asset, day] = Stored(row.rows, row.total)
        return expected

    @contextmanager
    def days(self) -> Iterator[Curve]:
        """More days of one run. The run is open meanwhile."""
        rows, events = self.of(1_000), self.of(50)
        numbers = self.sizes(1)
        days = self.found.days[-numbers[-1] :]
        self.found.add_signups(days, rows * len(days), events)
        settings = self.found.settings
        job = build_definitions(settings).resolve_implicit_global_asset_job_def()
        with dagster_instance(settings) as instance:

            def run(days: Sequence[date]) -> None:
                job.execute_in_process(
                    instance=instance,
                    tags=range_tags(days[0], days[-1]),
                    asset_selection=[dg.AssetKey(SIGNUPS.asset)],
                    run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
                )

            sizes = [
                Size(number, partial(run, days[-number:]), self._expected_of_host(days[-number:], rows, events))
                for number in numbers
            ]
            yield Curve("days of a run", f"{rows:,} sign-ups of {events:,} events per day", sizes)

    def files(self) -> Curve:
        """More dumps of the same lines."""
        lines, keys, days = self.of(40_000), self.of(600), self.found.days[:3]
        numbers = zip(self.sizes(self.of(200)), days, strict=False)
        sizes = [self._day_of_dumps(number, day, lines, keys, files=number) for number, day in numbers]
        return Curve("dumps of a day", f"{lines:,} lines, {keys:,} keys", sizes)

    def keys(self) -> Curve:
        """More keys of the same lines."""
        lines, files, days = self.of(200_000), self.of(50), self.found.days[3:6]
        numbers = zip(self.sizes(self.of(600)), days, strict=False)
        sizes = [self._day_of_dumps(number, day, lines, keys=number, files=files) for number, day in numbers]
        return Curve("keys of a day", f"{lines:,} lines, {files:,} dumps", sizes)

    def _day_of_dumps(self, number: int, day: date, lines: int, keys: int, files: int) -> Size:
        expected = write_day(self.found.settings.dump_dir, day, lines, keys, files)
        return Size(number, partial(collect_day, self.store, DUMP_FED, day), expected)


def write_day(dump_dir: Path, day: date, lines: int, keys: int, files: int) -> Expected:
    """Write so many lines in so many dumps, with each key equally often. Returns what each metric has then."""
    rows = make_keys(keys, day)
    totals, written = Counter[str](), Counter[str](str(row["event_name"]) for row in rows)
    for file in range(files):
        dump = DumpFile(dump_dir, str(day))
        for number in range(file * lines // files, (file + 1) * lines // files):
            row, count = rows[number % keys], 1 + number % 7
            dump.append(row, count)
            totals[str(row["event_name"])] += count
        dump.close()
    return {
        (each.asset, day): Stored(sum(written[name] for name in each.event_names), sum(totals[name] for name in names))
        for each in DUMP_FED
        for names in [each.event_names]
    }


def collect_day(store: Store, metrics: Sequence[Metric], day: date) -> None:
    """Count, store and check a day of each metric, as one run does. Raises DifferentError when a check fails."""
    run_id = token_hex()
    for each in metrics:
        with open_reader(each, store.settings, [day], run_id) as reader:
            replace_days(store, each, {day: reader.count(day).rows})
        results = evaluate(store, each, [day], run_id=run_id, names=[STORED, MATCHES])
        if failed := [str(result.check_name) for result in results if not result.passed]:
            raise DifferentError(f"{each.asset}: {', '.join(failed)} failed; nothing is measured")


def measure(curve: Curve, found: Databases, store: Store, rounds: int) -> list[Cost]:
    """Return what each size takes.

    Raises:
        DifferentError: what is stored is not what was put in.
    """
    seconds: dict[int, list[float]] = {size.number: [] for size in curve.sizes}
    for number in track(range(rounds + 1), f"{curve.title}: rounds", transient=True):
        for size in curve.sizes:
            found.forget_days()
            taken, _ = timed(size.collect)
            for (asset, day), expected in size.expected.items():
                if read_days(store, metric(asset), [day])[day] != expected:
                    raise DifferentError(
                        f"{curve.title}, {size.number:,}: what is stored of {asset} is not what was put in;"
                        " nothing is measured"
                    )
            if number:
                seconds[size.number].append(taken)
    return [Cost(size, median(taken), min(taken), max(taken)) for size, taken in seconds.items()]


def factors(costs: Sequence[Cost]) -> list[float]:
    """Return how many times as much each size costs as the size before."""
    return [after.median / before.median for before, after in pairwise(costs)]


def report(curve: Curve, costs: Sequence[Cost]) -> None:
    """Print what each size takes, and whether it grows at most linearly."""
    print(f"{curve.title}; {curve.fixed}")
    for cost, factor in zip(costs, [None, *factors(costs)], strict=True):
        times = f", {factor:.2f} times the size before" if factor else ""
        spread = f"({1000 * cost.least:.1f} to {1000 * cost.most:.1f})"
        print(f"  {cost.size:>9,} {1000 * cost.median:9.1f} {spread} ms{times}")
    steepest = max(factors(costs))
    verdict = "met: at most linear" if steepest <= TIMES * TOLERANCE else "MISSED: worse than linear"
    target = f"target: at most x{TIMES}, {TOLERANCE - 1:.0%} tolerance"
    print(f"  cost per x{TIMES}: at most x{steepest:.2f} ({target}) {verdict}")


def draw(measured: Sequence[tuple[Curve, Sequence[Cost]]], path: Path) -> None:
    """Write the curves as SVG, on logarithmic axes: a line as steep as the dashed one is linear."""
    every = [cost for _, costs in measured for cost in costs]
    domain = [min(cost.median for cost in every) / 2, max(cost.median for cost in every) * 2]
    charts = [_draw_curve(curve, costs, domain) for curve, costs in measured]
    chart: Any = (
        alt.concat(*charts, columns=3, spacing=24)
        .properties(
            background="white",
            padding=12,
            title=alt.TitleParams(
                "Seconds to collect, by size",
                subtitle="Dashed: a linear cost. Beside a point: how many times as much as the size before.",
                anchor="start",
                offset=16,
                subtitlePadding=6,
            ),
        )
        .configure(font="sans-serif")
        .configure_view(stroke=None)
        .configure_axis(gridColor="#e3e7eb", labelColor="#55616e", titleColor="#1c2733", titleFontWeight="normal")
    )
    path.write_text(vl_convert.vegalite_to_svg(chart.to_json()), encoding="utf-8")


def _draw_curve(curve: Curve, costs: Sequence[Cost], domain: list[float]) -> alt.LayerChart:
    first = costs[0]
    rows = [
        {
            "size": cost.size,
            "seconds": cost.median,
            "linear": first.median * cost.size / first.size,
            "factor": f"x{factor:.1f}" if factor else "",
        }
        for cost, factor in zip(costs, [None, *factors(costs)], strict=True)
    ]
    sizes = [cost.size for cost in costs]
    axis = alt.Axis(values=sizes, format=",d", title=None, grid=False)
    size = alt.X("size:Q", scale=alt.Scale(type="log", domain=[sizes[0] / 1.5, sizes[-1] * 1.5]), axis=axis)
    ticks = [step * 10.0**power for power in range(-4, 4) for step in (1, 3)]
    scale = alt.Scale(type="log", domain=domain, nice=False)
    base = alt.Chart(alt.InlineData(rows)).encode(x=size)
    shown = [tick for tick in ticks if domain[0] <= tick <= domain[1]]
    left = alt.Axis(values=shown, format="~g", title=None, domain=False, ticks=False)
    seconds = base.encode(y=alt.Y("seconds:Q", scale=scale, axis=left))
    return alt.LayerChart(
        layer=[
            base.mark_line(clip=True, strokeDash=[4, 4], color="#7b8794").encode(y=alt.Y("linear:Q", scale=scale)),
            seconds.mark_line(color="#0b5c6b", strokeWidth=2),
            seconds.mark_point(color="#0b5c6b", filled=True, size=45, opacity=1),
            seconds.mark_text(dy=16, dx=2, color="#1c2733").encode(text="factor:N"),
        ]
    ).properties(
        width=210,
        height=170,
        title=alt.TitleParams(
            curve.title.capitalize(), subtitle=curve.fixed, anchor="start", fontSize=12, subtitleFontSize=11
        ),
    )


def main() -> int:
    """Measure every curve. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reduce", type=int, default=1, help="divide rows, events, lines, files and keys by this (1)")
    parser.add_argument("--steps", type=int, choices=(2, 3), default=3, help="sizes of each curve (3)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each size (5)")
    parser.add_argument("--plot", type=Path, metavar="SVG", help="draw the curves in this file")
    options = parser.parse_args()
    os.environ.setdefault("DAGSTER_EVENT_BATCH_SIZE", "1000")  # like `analytics-assets up`
    measured = []
    with tempfile.TemporaryDirectory(prefix="analytics-benchmark-") as folder:
        Path(folder).chmod(0o755)  # as root, the embedded server runs as another user
        settings = Settings.from_env({"ANALYTICS_DATA_DIR": folder})
        settings.dump_dir.mkdir()
        with embedded_postgres(settings.data_dir) as server, databases(settings) as ready:
            found = Databases(server, ready, days=6 + TIMES ** (options.steps - 1))
            try:
                with open_store(found.settings) as store:
                    plan = Plan(found, store, options.reduce, options.steps)
                    print(f"median of {options.rounds} rounds; every stored total is what was put in")
                    with plan.days() as days:
                        for curve in (plan.rows(), plan.events(), days, plan.files(), plan.keys()):
                            costs = measure(curve, found, store, options.rounds)
                            report(curve, costs)
                            measured.append((curve, costs))
            except DifferentError as difference:
                print(difference, file=sys.stderr)
                return 1
            finally:
                found.close()
    if options.plot:
        draw(measured, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())

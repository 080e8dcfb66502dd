"""Charts as SVG for a page: drawn by Altair and Vega, coloured by the page's CSS variables, without script or words.

A chart is for the eye: its numbers are in the table beside it, its finding is the label of its figure. So the SVG has
no text but the ticks of its axes, and is hidden from screen readers. Days are drawn on a UTC scale, so that no axis
shifts by a day, whatever the time zone of the machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any, Final

import altair as alt
import vl_convert
from markupsafe import Markup

from analytics_assets.publication.pages.series import Total

WIDTH: Final = 360
HEIGHT: Final = 168
SPARK_WIDTH: Final = 120
SPARK_HEIGHT: Final = 24

COLOURS: Final = ("var(--series-1)", "var(--series-2)")
PALE: Final = 0.35
_DATA: Final = "counts"


def weekly_bars(columns: Sequence[Sequence[Total]]) -> Markup:
    """Draw one or two series of weeks, stacked. A week that was not collected on every day is pale."""
    rows = []
    for weeks in zip(*columns, strict=True):
        low = 0
        for colour, total in zip(COLOURS, weeks, strict=False):
            rows.append(
                {
                    # Short of Monday and Sunday, so that there is a gap between two bars.
                    "from": f"{total.period.first}T12:00Z",
                    "to": f"{total.period.last}T12:00Z",
                    "low": low,
                    "high": low + total.value,
                    "colour": colour,
                    "opacity": 1 if total.complete else PALE,
                }
            )
            low += total.value
    return _draw("bars", json.dumps(rows))


def running_line(points: Sequence[Total]) -> Markup:
    """Draw a running total as a line of steps, with the area below it."""
    return _draw("line", json.dumps([{"day": f"{point.period.last}T12:00Z", "total": point.value} for point in points]))


def sparkline(values: Sequence[float]) -> Markup:
    """Draw values as a small line, from the oldest to the newest."""
    top = max(values, default=0) or 1
    step = (SPARK_WIDTH - 4) / max(1, len(values) - 1)
    points = " ".join(
        f"{2 + n * step:.0f},{SPARK_HEIGHT - 3 - (SPARK_HEIGHT - 6) * value / top:.0f}"
        for n, value in enumerate(values)
    )
    return Markup('<svg class="spark" aria-hidden="true" viewBox="0 0 {} {}"><polyline points="{}"/></svg>').format(
        SPARK_WIDTH, SPARK_HEIGHT, points
    )


def _bars() -> alt.LayerChart:
    bars = (
        alt.Chart(alt.NamedData(_DATA))
        .mark_bar()
        .encode(
            x=_days_axis("from"),
            x2="to:T",
            y=_count_axis("high"),
            y2="low:Q",
            color=alt.Color("colour:N", scale=None),
            opacity=alt.Opacity("opacity:Q", scale=None),
        )
    )
    return alt.LayerChart(layer=[bars])


def _line() -> alt.LayerChart:
    base = alt.Chart(alt.NamedData(_DATA)).encode(x=_days_axis("day"), y=_count_axis("total"))
    area = base.mark_area(interpolate="step-after", color=COLOURS[0], opacity=0.14)
    return alt.LayerChart(layer=[area, base.mark_line(interpolate="step-after", color=COLOURS[0], strokeWidth=2)])


def _days_axis(field: str) -> alt.X:
    axis = alt.Axis(format="%-d %b", tickCount=5, title=None, grid=False, labelFlush=True, labelOverlap="greedy")
    return alt.X(f"{field}:T", scale=alt.Scale(type="utc"), axis=axis)


def _count_axis(field: str) -> alt.Y:
    # Whole numbers only: a chart of small counts has no tick at a half.
    axis = alt.Axis(title=None, tickCount=4, tickMinStep=1, format=",d", domain=False, ticks=False)
    return alt.Y(f"{field}:Q", scale=alt.Scale(domainMin=0, nice=4), axis=axis)


_KINDS: Final = {"bars": _bars, "line": _line}


@cache
def _compile(kind: str) -> str:
    """Return the Vega specification of a kind of chart. Compiling takes longer than drawing."""
    chart = _KINDS[kind]()
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    axis: dict[str, Any] = {f"{part}Color": "var(--line)" for part in ("grid", "domain", "tick")}
    styled = (
        chart.properties(width=WIDTH, height=HEIGHT, autosize=fit, padding=2)
        .configure(background="transparent", aria=False, font="inherit")
        .configure_view(stroke=None)
        .configure_axis(labelColor="var(--dim)", labelFontSize=12, labelPadding=6, **axis)
    )
    return json.dumps(vl_convert.vegalite_to_vega(styled.to_json()))


@lru_cache(maxsize=128)
def _draw(kind: str, rows: str) -> Markup:
    specification = json.loads(_compile(kind))
    (data,) = (data for data in specification["data"] if data["name"] == _DATA)
    data["values"] = json.loads(rows)
    return Markup(_shrink(vl_convert.vega_to_svg(specification)))  # noqa: S704  # made from numbers and dates


def _shrink(svg: str) -> str:
    """Leave out what only viewers of separate files need, and digits that are finer than a pixel."""
    svg = re.sub(r'<path class="(?:background|foreground)"[^>]*/>', "", svg)
    svg = re.sub(r' (?:xmlns|xmlns:xlink|version|class|role|aria-[a-z]+|pointer-events|font-family)="[^"]*"', "", svg)
    svg = svg.replace(' opacity="1"', "").replace(' transform="translate(0,0)"', "")
    svg = re.sub(r"\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), svg)
    while (fewer := re.sub(r"<g>((?:(?!</?g\b).)*)</g>", r"\1", svg)) != svg:
        svg = fewer
    return svg.replace("<svg", '<svg class="chart" aria-hidden="true"', 1)

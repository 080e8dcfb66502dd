"""The data dictionary, generated from the contract.

Its output is `docs/data-dictionary.md`; a test fails when that is stale.
"""

from __future__ import annotations

from collections.abc import Iterator

from analytics_assets.contract import METRICS, RETENTION_DAYS, SCHEMA, SOURCE_SCHEMA, TABLES, Field, Metric, SourceView


def markdown() -> str:
    """The whole dictionary as a Markdown page."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    yield "# Data dictionary"
    yield ""
    yield "<!-- Generated from analytics_assets/contract.py by `analytics-assets dictionary --write FILE`. -->"
    yield ""
    yield "Everything that is counted. A day is a calendar day in the configured time zone (UTC unless set); day D is"
    yield f"kept on day T while D >= T - {RETENTION_DAYS} days, unless `ANALYTICS_RETENTION_DAYS` says otherwise."
    yield "Nothing finer than a day, and nothing about a person, is logged or stored."
    yield ""
    yield "## Metrics"
    for metric in METRICS:
        yield from _metric(metric)
    for table, fields in TABLES.items():
        yield ""
        yield f"## Table `{SCHEMA}.{table}`"
        yield ""
        yield "| field | type | unit | meaning | rule | example |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for field in fields:
            yield _field(field)


def _metric(metric: Metric) -> Iterator[str]:
    names = ", ".join(f"`{name}`" for name in metric.event_names)
    if isinstance(metric.origin, SourceView):
        columns = ", ".join(metric.origin.columns)
        origin = f"view `{SOURCE_SCHEMA}.{metric.origin.name}` ({columns}), written by the host application's operator"
    else:
        origin = "counter dumps, written by the telemetry inside the host application"
    yield ""
    yield f"### `{metric.asset}`"
    yield ""
    yield metric.question
    yield ""
    yield f"- owner: {metric.owner.removeprefix('team:')} team"
    yield f"- event names: {names}"
    yield f"- origin: {origin}"
    yield f"- fields: {', '.join(f'`{field.name}`' for field in metric.fields)}, in `{SCHEMA}.{metric.table}`"
    yield f"- since: {metric.since}"


def _field(field: Field) -> str:
    absent = " (may be absent)" if field.optional else ""
    cells = (f"`{field.name}`", field.type + absent, field.unit, field.meaning, field.rule, f"`{field.example}`")
    return f"| {' | '.join(cells)} |"

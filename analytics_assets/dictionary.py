"""The data dictionary: the words that describe metrics, tables, columns and sources, generated from the contract.

Three texts come from here: the page `docs/data-dictionary.md`, the comments in the database, and the descriptions of
the assets. The page shows the default time zone and retention period, and the variables that change them. The comments
and descriptions show the configured ones. `store` writes the comments, `defs` describes the assets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from analytics_assets.contract import (
    DROP_FIELDS,
    DROP_REASONS,
    FRICTION_PATH,
    LEDGER_PATH,
    METRICS,
    ORIGINS,
    OTHER_RELATIONS,
    PAGES,
    PUBLISHED_BASE,
    PUBLISHED_PATH,
    PUBLISHED_SCHEMA,
    RETENTION_DAYS,
    SCHEMA,
    SOURCE_SCHEMA,
    TABLES,
    TARGETS,
    Column,
    CounterDumps,
    Field,
    Metric,
    Published,
    SourceView,
    Target,
)
from analytics_assets.settings import Settings


def markdown() -> str:
    """The whole dictionary as a Markdown page."""
    return "\n".join(_page()) + "\n"


def asset_descriptions(settings: Settings) -> dict[tuple[str, ...], str]:
    """Path of an asset key -> description in Markdown."""
    return (
        {(m.asset,): "\n".join(_metric(m, settings)) for m in METRICS}
        | {origin.path: "\n".join(_origin(origin)) for origin in ORIGINS}
        | {(asset,): purpose for asset, purpose in PAGES.items()}
        | {
            LEDGER_PATH: OTHER_RELATIONS[".".join(LEDGER_PATH)].purpose,
            FRICTION_PATH: OTHER_RELATIONS[f"{SCHEMA}.friction"].purpose,
            PUBLISHED_PATH: "\n".join(_published()),
        }
    )


def database_comments(settings: Settings) -> dict[tuple[str, str | None], str]:
    """(relation with its schema, column) -> comment in plain text. The column is None for the relation itself."""
    comments: dict[tuple[str, str | None], str] = {}
    for table, fields in TABLES.items():
        metrics = [m for m in METRICS if m.table == table]
        relation = f"{SCHEMA}.{table}"
        comments[relation, None] = "\n\n".join("\n".join([m.asset, *_metric(m, settings)]) for m in metrics)
        comments |= {(relation, field.name): column_text(field) for field in fields}
    for relation, entry in OTHER_RELATIONS.items():
        comments[relation, None] = entry.purpose
        comments |= {(relation, column.name): column_text(column) for column in entry.columns}
    return {key: text.replace("`", "") for key, text in comments.items()}


def column_text(column: Column) -> str:
    """Meaning, unit and rule of a column, in sentences."""
    return f"{column.meaning} Unit: {column.unit}." + (f" It {column.rule}." if isinstance(column, Field) else "")


def _page() -> Iterator[str]:
    yield "# Data dictionary\n"
    yield "<!-- Generated from analytics_assets/contract.py by `analytics-assets dictionary --write FILE`. -->\n"
    yield "Everything that is counted and stored, and what it is counted from. The Dagster UI and the comments in the"
    yield "database (`\\d+` in psql) say the same. Check `documented` fails when something has no entry here. Nothing"
    yield "about a person is stored, and no time finer than a day.\n"
    yield "## Metrics"
    for metric in METRICS:
        yield f"\n### `{metric.asset}`\n"
        yield from _metric(metric)
    yield "\n## Targets\n"
    yield "Success metrics: one count per another, over all events. They are judged on exact counts, on the core team's"
    yield "pages. Counts are not people."
    for target in TARGETS:
        yield f"\n### {target.name}\n"
        yield from _target(target)
    yield "\n## Sources"
    for origin in ORIGINS:
        yield f"\n### `{'.'.join(origin.path)}`\n"
        yield from _origin(origin)
        if isinstance(origin, SourceView):
            yield from _columns(origin.fields)
    yield "\n## Dropped counts\n"
    yield from _dropped()
    yield from _columns(DROP_FIELDS)
    yield "\n## Published\n"
    yield from _published()
    for table, fields in TABLES.items():
        yield f"\n## `{SCHEMA}.{table}`\n"
        yield f"Metrics: {', '.join(f'`{m.asset}`' for m in METRICS if m.table == table)}."
        yield from _columns(fields)
    for relation, entry in OTHER_RELATIONS.items():
        yield f"\n## `{relation}`\n"
        yield entry.purpose
        yield from _columns(entry.columns)


def _metric(metric: Metric, settings: Settings | None = None) -> Iterator[str]:
    """The entry of a metric. Without settings it shows the defaults, and which variables change them."""
    names = ", ".join(f"`{name}`" for name in metric.event_names)
    zone = settings.time_zone if settings else "UTC, unless `ANALYTICS_TIMEZONE` says otherwise"
    days = settings.retention_days if settings else RETENTION_DAYS
    otherwise = "" if settings else ", unless `ANALYTICS_RETENTION_DAYS` says otherwise"
    yield f"{metric.question}\n"
    yield f"- owner: {metric.owner.removeprefix('team:')} team"
    yield f"- event names: {names}"
    yield f"- origin: {origin_name(metric.origin)}"
    yield f"- fields: {', '.join(f'`{field.name}`' for field in metric.fields)}, in `{SCHEMA}.{metric.table}`"
    yield f"- published: {metric.published.value}"
    yield f"- time zone of the days: {zone}"
    yield f"- retention: {days} days (day D is kept on day T while D >= T - {days} days){otherwise}"
    yield f"- since: {metric.since}"


def _target(target: Target) -> Iterator[str]:
    yield f"{target.question}\n"
    yield f"- owner: {target.owner.removeprefix('team:')} team"
    yield f"- value: `{target.numerator}` per `{target.denominator}`, over the last {target.window_days} days"
    yield f"- met: {target.direction.value} {target.threshold:g}"
    yield f"- since: {target.since}"


def _published() -> Iterator[str]:
    yield f"What people outside the core team see, in schema `{PUBLISHED_SCHEMA}`: running totals in steps of"
    yield f"{PUBLISHED_BASE}. A day is published once the daily job has collected it for the last time."
    yield "It is never changed afterwards."
    yield ""
    for published in Published:
        metrics = [f"`{m.asset}`" for m in METRICS if m.published is published]
        yield f"- {published.value}: {', '.join(metrics) or 'none'}"


def _dropped() -> Iterator[str]:
    yield "What telemetry could not count: one drop file per process and day, beside the counter dumps. It expires with"
    yield "its day. It says how many and why, and nothing about what was dropped."
    yield ""
    for reason, meaning in DROP_REASONS.items():
        yield f"- `{reason}`: {meaning}"


def origin_name(origin: SourceView | CounterDumps) -> str:
    """Return what an origin is, in words."""
    return f"view `{SOURCE_SCHEMA}.{origin.name}`" if isinstance(origin, SourceView) else "counter dumps"


def _origin(origin: SourceView | CounterDumps) -> Iterator[str]:
    if isinstance(origin, SourceView):
        yield "View over the host application's tables, written by its operator: one row per occurrence."
    else:
        yield "Counters that the telemetry writes inside the web application: one file per process and day."
    yield ""
    yield f"- read by: {', '.join(f'`{m.asset}`' for m in METRICS if m.origin == origin)}"


def _columns(columns: Iterable[Column]) -> Iterator[str]:
    yield "\n| field | type | unit | meaning | rule | example |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for column in columns:
        absent, rule, example = "", "", ""
        if isinstance(column, Field):
            absent = " (may be absent)" if column.optional else ""
            rule, example = column.rule, f"`{column.example}`"
        cells = (f"`{column.name}`", column.type + absent, column.unit, column.meaning, rule, example)
        yield f"| {' | '.join(cells)} |"

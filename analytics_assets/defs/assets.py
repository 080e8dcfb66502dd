"""The assets, derived from the contract: one per metric, and an external one per origin.

What is published is one asset downstream of them, and friction is another. The retention ledger is an external asset.
The checks that concern the whole database belong to it.
"""

import ast
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final, cast

import dagster as dg

from analytics_assets import contract
from analytics_assets.contract import (
    FRICTION_KINDS,
    FRICTION_PATH,
    LEDGER_PATH,
    METRICS,
    ORIGINS,
    PUBLISHED_PATH,
    PUBLISHED_SCHEMA,
    SCHEMA,
    Column,
    CounterDumps,
    Field,
    Metric,
    Published,
    SourceView,
)
from analytics_assets.defs.collect import CollectConfig, Results, collect
from analytics_assets.defs.evaluation import AT_SOURCE
from analytics_assets.defs.pages import make_core_pages, published_pages
from analytics_assets.defs.partitions import chunks
from analytics_assets.defs.retries import HOST_DATABASE, retried
from analytics_assets.dictionary import asset_descriptions, column_text
from analytics_assets.operations.late_dumps import find_late_days
from analytics_assets.operations.runs import days_awaited, days_of_run
from analytics_assets.publication.findings import refresh_friction
from analytics_assets.publication.pages.publish import INSTALLED
from analytics_assets.publication.publish import publish_closed
from analytics_assets.remote import RemoteError
from analytics_assets.settings import Settings
from analytics_assets.sources import Problem
from analytics_assets.sources.counter_dumps import UNREADABLE, remote_problem
from analytics_assets.sources.hosts import HostDatabase, find_host
from analytics_assets.sources.merge import Merged, merge_dumps
from analytics_assets.store import open_store
from analytics_assets.store.counts import read_window
from analytics_assets.store.gaps import missing_days
from analytics_assets.store.published import merging

GROUP: Final = "daily_counts"
PUBLICATION_GROUP: Final = "publication"

CONTRACT_FILE: Final = Path(contract.__file__).resolve()


def make_assets(
    settings: Settings, partitions: dg.PartitionsDefinition, checks: Iterable[dg.AssetChecksDefinition]
) -> list[dg.AssetsDefinition | dg.AssetSpec]:
    """Return every asset, described by its entry in the data dictionary. `checks` are those outside the assets."""
    descriptions = asset_descriptions(settings)
    lines = find_entries(CONTRACT_FILE)
    policy = chunks(settings)
    metrics = [_metric_asset(m, partitions, policy, descriptions[m.asset,], lines[m.asset]) for m in METRICS]
    every_check = [key for definition in (*metrics, *checks) for key in definition.check_keys]
    return [
        *metrics,
        *((make_core_pages(every_check), published_pages) if INSTALLED else ()),
        *(_origin_asset(origin, descriptions[origin.path], find_host(settings.source_url)) for origin in ORIGINS),
        dg.AssetSpec(
            dg.AssetKey(LEDGER_PATH),
            deps=[metric.asset for metric in METRICS],
            description=descriptions[LEDGER_PATH],
            group_name=GROUP,
            kinds={"postgres"},
        ),
        _published_asset(descriptions[PUBLISHED_PATH]),
        _friction_asset(descriptions[FRICTION_PATH]),
    ]


def _metric_asset(
    metric: Metric, partitions: dg.PartitionsDefinition, policy: dg.BackfillPolicy, description: str, line: int
) -> dg.AssetsDefinition:
    columns = [_table_column(field, field.type) for field in metric.fields]
    reference = dg.LocalFileCodeReference(file_path=str(CONTRACT_FILE), line_number=line)

    @dg.asset(
        name=metric.asset,
        description=description,
        group_name=GROUP,
        deps=[dg.AssetKey(metric.origin.path)],
        partitions_def=partitions,
        backfill_policy=policy,
        pool=HOST_DATABASE if isinstance(metric.origin, SourceView) else None,
        kinds={"postgres", "sql" if isinstance(metric.origin, SourceView) else "json"},
        owners=[metric.owner],
        tags={"grain": "day", "personal_data": "none"},
        metadata={
            "dagster/table_name": f"{SCHEMA}.{metric.table}",
            "dagster/column_schema": dg.TableSchema(columns=columns),
            # Without it, "open code" would lead to this factory.
            "dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[reference]),
        },
        check_specs=[
            dg.AssetCheckSpec(
                AT_SOURCE,
                asset=metric.asset,
                description="The source has only what the contract allows. A day that has more is not written."
                " Rows in no day are a warning.",
            )
        ],
        # Otherwise the default IO manager would pickle the result of every run.
        dagster_type=cast(dg.DagsterType, dg.Nothing),
    )
    @retried
    def asset(
        context: dg.AssetExecutionContext, config: CollectConfig, settings: dg.ResourceParam[Settings]
    ) -> Results:
        yield from collect(context, metric, settings, config)

    return asset


def _published_asset(description: str) -> dg.AssetsDefinition:
    @dg.asset(
        key=dg.AssetKey(PUBLISHED_PATH),
        description=description,
        group_name=PUBLICATION_GROUP,
        deps=[metric.asset for metric in METRICS if metric.published is not Published.NEVER],
        kinds={"postgres", "sql"},
        tags={"personal_data": "none"},
        metadata={"dagster/table_name": f"{PUBLISHED_SCHEMA}.daily"},
    )
    @retried
    def published_counts(
        context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]
    ) -> dg.MaterializeResult[None]:
        with open_store(settings) as store:
            missing = missing_days(store, days_of_run(context.run.tags))
            made = publish_closed(store, days_awaited(context.instance, missing, context.run))
            last_closed = read_window(store).last_closed
            # The daily job collects a closed day no more, so its dumps may become one, unless that would hide that some
            # are not counted.
            try:
                late = find_late_days(store, last_closed)
            except OSError as error:
                problem = Problem("dump folder", UNREADABLE)
                merged = Merged(problems=(remote_problem(error) if isinstance(error, RemoteError) else problem,))
            else:
                merged = merge_dumps(settings, last_closed, partial(merging, store), late)
        # No day is named: Dagster keeps this longer than a day that was published long ago.
        for violation, times in Counter(problem.violation for problem in merged.problems).items():
            context.log.warning("dumps of closed days are not merged: %s (%d times)", violation, times)
        return dg.MaterializeResult(
            metadata={
                f"{unit}s {what}": sum(getattr(each, attribute) for each in made if each.unit == unit)
                for unit in ("day", "week")
                for what, attribute in (("published", "published"), ("not collected", "not_collected"))
            }
            | {"dumps merged": merged.dumps}
        )

    return published_counts


def _friction_asset(description: str) -> dg.AssetsDefinition:
    @dg.asset(
        key=dg.AssetKey(FRICTION_PATH),
        description=description,
        group_name=PUBLICATION_GROUP,
        deps=[metric.asset for metric in METRICS],
        kinds={"postgres", "pandas"},
        owners=["team:core"],
        tags={"personal_data": "none"},
        metadata={"dagster/table_name": f"{SCHEMA}.friction"},
    )
    @retried
    def product_friction(
        context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]
    ) -> dg.MaterializeResult[None]:
        with open_store(settings) as store:
            judged, found = refresh_friction(store, days_of_run(context.run.tags))
        kinds = Counter(finding.kind for finding in found)
        # No day is named, for the reason above.
        return dg.MaterializeResult(
            metadata={"days judged": len(judged)} | {f"findings: {kind}": kinds[kind] for kind in FRICTION_KINDS}
        )

    return product_friction


def _origin_asset(origin: SourceView | CounterDumps, description: str, host: HostDatabase) -> dg.AssetSpec:
    if isinstance(origin, CounterDumps):
        return dg.AssetSpec(dg.AssetKey(origin.path), description=description, group_name=GROUP, kinds={"json", "file"})
    columns = [_table_column(column, " or ".join(host.COLUMN_TYPES[column.name])) for column in origin.fields]
    return dg.AssetSpec(
        dg.AssetKey(origin.path),
        description=description,
        group_name=GROUP,
        kinds={host.KIND, "view"},
        metadata={"dagster/column_schema": dg.TableSchema(columns=columns)},
    )


def _table_column(column: Column, type_: str) -> dg.TableColumn:
    optional = isinstance(column, Field) and column.optional
    return dg.TableColumn(
        column.name,
        type_,
        description=column_text(column),
        constraints=dg.TableColumnConstraints(nullable=optional) if isinstance(column, Field) else None,
    )


def find_entries(contract_file: Path) -> dict[str, int]:
    """Return the line of each metric's entry in `contract.py`, by its asset."""
    return {
        ast.literal_eval(keyword.value): node.lineno
        for node in ast.walk(ast.parse(contract_file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == Metric.__name__
        for keyword in node.keywords
        if keyword.arg == "asset"
    }

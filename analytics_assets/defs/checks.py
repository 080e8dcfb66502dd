"""Every asset check.

The gate of a metric is evaluated in `collect`, because it comes before the write, and declared in `assets`. The other
checks of a metric read what is stored, for the days of their run or, executed by themselves, for the latest day. They
are not partitioned: in a run over a range, Dagster would leave partitioned checks planned for ever.

A fact that concerns every metric is checked once per run: at the retention ledger's asset, or at the source views'.
"""

from collections.abc import Iterator
from functools import partial
from typing import Final

import dagster as dg

from analytics_assets.contract import LEDGER_PATH, PUBLISHED_PATH, SOURCE_VIEWS, Metric, SourceView
from analytics_assets.database import DatabaseError
from analytics_assets.defs.evaluation import (
    DOCUMENTED,
    DOCUMENTED_RECOVERY,
    MATCHES,
    NO_FRICTION,
    NO_MISSING_DAYS,
    STORED,
    evaluate,
    make_result,
)
from analytics_assets.defs.pages import ON_PAGES_MACHINE, PUBLISHED
from analytics_assets.defs.retries import HOST_DATABASE, retried
from analytics_assets.operations.runs import days_in_progress, days_of_run
from analytics_assets.publication.audit import find_recoverable
from analytics_assets.publication.pages.publish import find_untrue_pages
from analytics_assets.retention.sweep import find_overdue, registry
from analytics_assets.settings import Settings, SettingsError
from analytics_assets.sources.app_views import find_undocumented_views
from analytics_assets.sources.hosts import open_catalog
from analytics_assets.store import Store, open_store
from analytics_assets.store.counts import read_latest_collected
from analytics_assets.store.expiry import Cutoff, read_cutoff
from analytics_assets.store.inspection import find_undocumented_elsewhere
from analytics_assets.store.published import find_altered

NO_EXPIRED_DAYS: Final = "no_expired_days"
CUTOFF_IS_CERTAIN: Final = "cutoff_is_certain"
ONLY_FIVES: Final = "only_fives"
NOT_RECOVERABLE: Final = "no_hidden_day_recoverable"
ONLY_VIEWS: Final = "login_reads_only_the_views"
SAY_ONLY_WHAT_IS_PUBLISHED: Final = "pages_say_only_what_is_published"
LEDGER_KEY: Final = dg.AssetKey(LEDGER_PATH)
PUBLISHED_KEY: Final = dg.AssetKey(PUBLISHED_PATH)

Results = Iterator[dg.AssetCheckResult]

_EXPIRED_RECOVERY: Final = (
    "`retention_sensor` removes expired days soon after midnight: see that it is running, and what its last run says."
    " Or launch `retention_job` with dry_run: false, or run `analytics-assets retention`."
)
_CUTOFF_RECOVERY: Final = (
    "`retention_sensor` and `retention_job` stand still meanwhile, and go on by themselves when the clock is right or a"
    " person has confirmed the cut-off."
)
_PUBLISHED_RECOVERY: Final = (
    "Something other than this pipeline has changed schema published or the notes on it. Close it to readers until it"
    " is right (`alter role published_reader nologin`), and find out what may write there. Bring the rows back from a"
    " backup. Or delete what is published and noted of the day, in SQL with a login that may, and publish it by itself:"
    " `analytics-assets publish --fill DAY`."
)
_PAGES_RECOVERY: Final = (
    "Materialize `published_pages`: it writes every page that differs. Remove a file that is no page. If the finding"
    " stays, take the pages out of reach and report it: they say something that was not published."
)
_LOGIN_RECOVERY: Final = (
    "The operator of the host's database runs the SQL. If a role of the application relied on a right of PUBLIC, grant"
    " it that right by name. `analytics-assets grants host` prints what the pipeline's login does need."
)


def metric_checks(metric: Metric) -> dg.AssetChecksDefinition:
    """Make the checks of what a metric has stored, as one op. Each can be executed by itself."""

    @dg.multi_asset_check(
        name=f"{metric.asset}_checks",
        pool=HOST_DATABASE if isinstance(metric.origin, SourceView) else None,
        specs=[
            dg.AssetCheckSpec(
                STORED,
                asset=metric.asset,
                description="The table has only the contract's columns, and every stored value obeys its rule.",
            ),
            dg.AssetCheckSpec(
                MATCHES, asset=metric.asset, description="The stored total equals an independent count at the source."
            ),
            dg.AssetCheckSpec(
                DOCUMENTED,
                asset=metric.asset,
                description="Every column, comment and name of the metric's table has an entry in the data dictionary.",
            ),
            dg.AssetCheckSpec(
                NO_FRICTION,
                asset=metric.asset,
                description="No event or endpoint departs from what its own history lets expect.",
            ),
            dg.AssetCheckSpec(
                NO_MISSING_DAYS,
                asset=metric.asset,
                description="Every kept, finished day since the first collected one has been collected.",
            ),
        ],
        can_subset=True,
    )
    @retried
    def checks(context: dg.AssetCheckExecutionContext, settings: dg.ResourceParam[Settings]) -> Results:
        names = {key.name for key in context.selected_asset_check_keys}
        with open_store(settings) as store:
            latest = read_latest_collected(store, metric)
            days = days_of_run(context.run.tags) or ([latest] if latest else [])
            in_progress = partial(days_in_progress, context.instance, context.run.run_id)
            yield from evaluate(store, metric, days, run_id=context.run.run_id, names=names, in_progress=in_progress)

    return checks


@dg.multi_asset_check(
    name="database_checks",
    specs=[
        dg.AssetCheckSpec(
            NO_EXPIRED_DAYS,
            asset=LEDGER_KEY,
            description="No retention target keeps an expired day: tables, dumps, and Dagster's records.",
        ),
        dg.AssetCheckSpec(
            CUTOFF_IS_CERTAIN,
            asset=LEDGER_KEY,
            description="The first day that is kept has moved no further than time can have passed since the last"
            " removal. Otherwise a clock is wrong, and nothing is removed.",
        ),
        dg.AssetCheckSpec(
            DOCUMENTED,
            asset=LEDGER_KEY,
            description="Everything in schema analytics but the counts, and every source view, has an entry in the data"
            " dictionary.",
        ),
    ],
    can_subset=True,
)
@retried
def database_checks(context: dg.AssetCheckExecutionContext, settings: dg.ResourceParam[Settings]) -> Results:
    """Check what concerns every metric: expired days, and what schema `analytics` holds beside the counts."""
    names = {key.name for key in context.selected_asset_check_keys}
    with open_store(settings) as store:
        if NO_EXPIRED_DAYS in names:
            yield check_expired_days(store, context.instance)
        if CUTOFF_IS_CERTAIN in names:
            yield make_cutoff_result(read_cutoff(store))
        if DOCUMENTED in names:
            yield _check_documented(store)


def check_expired_days(store: Store, instance: dg.DagsterInstance) -> dg.AssetCheckResult:
    """Compare the oldest day of every retention target with the first day that is kept for certain."""
    targets = registry(store, instance)
    overdue = find_overdue(targets, read_cutoff(store).certain)
    return make_result(NO_EXPIRED_DAYS, overdue, _EXPIRED_RECOVERY, {"targets checked": len(targets)})


def make_cutoff_result(cutoff: Cutoff) -> dg.AssetCheckResult:
    """Return the result of the check, which the sensor and the job report, too, when they stop."""
    return make_result(CUTOFF_IS_CERTAIN, [cutoff.doubt] if cutoff.doubt else [], _CUTOFF_RECOVERY)


def _check_documented(store: Store) -> dg.AssetCheckResult:
    found = find_undocumented_elsewhere(store)
    try:
        found += [f"{name} is the origin of no metric" for name in find_undocumented_views(store.settings)]
        seen = True
    except (DatabaseError, SettingsError):
        seen = False  # the gates of the views' metrics report the reason
    return make_result(DOCUMENTED, found, DOCUMENTED_RECOVERY, {"source views seen": seen})


@dg.multi_asset_check(
    name="published_checks",
    specs=[
        dg.AssetCheckSpec(
            ONLY_FIVES,
            asset=PUBLISHED_KEY,
            description="Every published number is a multiple of its base, every carry below it, and nothing that was"
            " published has changed since.",
        ),
        dg.AssetCheckSpec(
            NOT_RECOVERABLE,
            asset=PUBLISHED_KEY,
            description="Whoever knows everything that is published finds at least as many possible values for each day"
            " as the base.",
        ),
    ],
    can_subset=True,
)
@retried
def published_checks(context: dg.AssetCheckExecutionContext, settings: dg.ResourceParam[Settings]) -> Results:
    """Check everything that is published, not only what the run has added."""
    names = {key.name for key in context.selected_asset_check_keys}
    with open_store(settings) as store:
        if ONLY_FIVES in names:
            yield make_result(ONLY_FIVES, find_altered(store), _PUBLISHED_RECOVERY)
        if NOT_RECOVERABLE in names:
            yield make_result(NOT_RECOVERABLE, find_recoverable(store), _PUBLISHED_RECOVERY)


@dg.multi_asset_check(
    specs=[
        dg.AssetCheckSpec(
            ONLY_VIEWS,
            asset=dg.AssetKey(view.path),
            description="The login of ANALYTICS_SOURCE_URL can read only the source views in the host's database.",
        )
        for view in SOURCE_VIEWS
    ],
    can_subset=True,
)
@retried
def login_checks(context: dg.AssetCheckExecutionContext, settings: dg.ResourceParam[Settings]) -> Results:
    """Check the login once, from the catalog as it is now. No row is read. The result is the same for every view."""
    with open_catalog(settings.source_url) as (host, connection):
        result = make_result(ONLY_VIEWS, host.find_excess_rights(connection), _LOGIN_RECOVERY)
    for key in sorted(context.selected_asset_check_keys):
        yield result._replace(asset_key=key.asset_key)


@dg.asset_check(
    asset=PUBLISHED,
    name=SAY_ONLY_WHAT_IS_PUBLISHED,
    op_tags=ON_PAGES_MACHINE,
    description="Every number in the HTML, CSV and JSON for others than the core team is a sum of published days.",
)
@retried
def published_pages_check(settings: dg.ResourceParam[Settings]) -> dg.AssetCheckResult:
    """Read the published pages back, and compare them with schema `published`."""
    with open_store(settings) as store:
        return make_result(SAY_ONLY_WHAT_IS_PUBLISHED, find_untrue_pages(store), _PAGES_RECOVERY)

"""What new settings would remove: a shorter period, or another time zone. Told before the database is.

Nothing is removed or changed here.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from analytics_assets.database import DatabaseError, engine
from analytics_assets.retention.dagster_records import open_dagster_storage
from analytics_assets.retention.sweep import Report, list_own_targets, preview, registry
from analytics_assets.settings import Settings, SettingsError
from analytics_assets.store import Store
from analytics_assets.store.expiry import read_cutoff
from analytics_assets.store.setup import Move, read_move


def describe_shortening(admin_url: str, settings: Settings, dagster_home: Path) -> str | None:
    """Say what would be removed if the analytics database enforced these settings, per retention target.

    Returns None when the period is not made shorter and no day that is stored would expire.

    Raises:
        SettingsError: also when the settings change while the cut-off is in doubt: the change would confirm it.
        DatabaseError: as `init_db` does.
    """
    move = read_move(admin_url, settings)
    if move is None:
        return None
    _refuse_in_doubt(admin_url, settings, move)
    shorter = settings.retention_days < move.retention_days
    if not shorter and move.then <= move.first:
        return None
    with ExitStack() as stack:
        store = Store(stack.enter_context(engine(admin_url, "ANALYTICS_DATABASE_URL")), settings)
        if settings.dagster_url is None:
            targets = list_own_targets(store)
        else:
            targets = registry(store, stack.enter_context(open_dagster_storage(settings.dagster_url, dagster_home)))
        reports = preview(targets, move.then)
    going = [_describe(report) for report in reports if report.expired.days or report.problem]
    if not shorter and not going:
        return None
    return "\n".join(
        [
            f"The database keeps {move.retention_days} days, now since {move.first}. With ANALYTICS_RETENTION_DAYS and"
            f" ANALYTICS_TIMEZONE as they are set here, every day before {move.then} expires"
            + (f" ({move.first} to {move.then - timedelta(days=1)})." if move.then > move.first else "."),
            *(going or ["- nothing that is stored yet"]),
            *_describe_unseen(settings),
            "They are removed within minutes, and no longer period brings them back.",
        ]
    )


def _refuse_in_doubt(admin_url: str, settings: Settings, move: Move) -> None:
    if (move.retention_days, move.time_zone) == (settings.retention_days, settings.time_zone):
        return
    enforced = replace(settings, retention_days=move.retention_days, time_zone=move.time_zone)
    # An earlier version has no cut-off to compare with.
    with engine(admin_url, "ANALYTICS_DATABASE_URL") as database, suppress(DatabaseError):
        if doubt := read_cutoff(Store(database, enforced)).doubt:
            raise SettingsError(f"the settings cannot be changed now: {doubt}")


def _describe(report: Report) -> str:
    if report.problem:
        return f"- {report.target}: {report.problem}"
    days, rows = report.expired
    return f"- {report.target}: {days:,} days since {report.oldest} ({rows:,} rows or files)"


def _describe_unseen(settings: Settings) -> list[str]:
    seen = settings.dump_url or settings.dump_dir.exists()
    unseen = [] if seen else ["the counter dumps (ANALYTICS_DUMP_DIR names no folder)"]
    if settings.dagster_url is None:
        unseen.append("Dagster's records (DAGSTER_POSTGRES_URL is not set)")
    return [f"- not looked at from here, and removed too: {' and '.join(unseen)}"] if unseen else []

"""The sensors: two request the removal of expired days and publication, one tells somebody what has changed."""

import logging
import time
from datetime import UTC, datetime
from typing import Final

import dagster as dg

from analytics_assets.database import place
from analytics_assets.defs.checks import LEDGER_KEY, make_cutoff_result
from analytics_assets.defs.evaluation import as_event
from analytics_assets.defs.jobs import (
    RetentionConfig,
    daily_metrics_job,
    publication_job,
    remove_expired_days,
    retention_job,
)
from analytics_assets.defs.partitions import range_tags
from analytics_assets.operations import UNREADABLE, Level, Line
from analytics_assets.operations.alerts import Message, Outbox
from analytics_assets.operations.late_dumps import HourlyLook
from analytics_assets.operations.receiver import ReceiverError, send
from analytics_assets.operations.runs import days_of_run
from analytics_assets.operations.status import ALERT_SENSOR, read_status
from analytics_assets.retention.sweep import find_overdue, registry
from analytics_assets.settings import Settings
from analytics_assets.store import open_store
from analytics_assets.store.counts import read_window
from analytics_assets.store.expiry import read_cutoff

_UNCERTAIN: Final = "uncertain: "
"""Before the cut-off in the cursor, when it was not certain."""


@dg.sensor(
    job=retention_job,
    minimum_interval_seconds=300,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Requests one run of retention_job per cut-off, when a retention target keeps an older day.",
)
def retention_sensor(
    context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]
) -> dg.RunRequest | dg.SkipReason:
    """Compare what every target keeps with the cut-off, which is the first day that is kept.

    The cursor is the cut-off that was compared last, so that a tick with the same cut-off costs one query. A cut-off
    that is not certain turns the check red at once, and green again when a person has confirmed it or the clock is
    right. Raises DatabaseError.
    """
    with open_store(settings) as store:
        cutoff = read_window(store).first
        if context.cursor == str(cutoff):
            return dg.SkipReason(f"the cut-off is still {cutoff}")
        uncertain = (context.cursor or "").startswith(_UNCERTAIN)
        found = read_cutoff(store)
        if bool(found.doubt) != uncertain:
            context.instance.report_runless_asset_event(as_event(LEDGER_KEY, make_cutoff_result(found)))
        if found.doubt:
            context.update_cursor(f"{_UNCERTAIN}{cutoff}")
            return dg.SkipReason(found.doubt)
        overdue = find_overdue(registry(store, context.instance), cutoff)
    context.update_cursor(str(cutoff))
    if not overdue:
        return dg.SkipReason(f"nothing is older than the cut-off, {cutoff}")
    config = RetentionConfig(dry_run=False)
    return dg.RunRequest(run_key=str(cutoff), run_config=dg.RunConfig({remove_expired_days.name: config}))


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.FAILURE,
    monitored_jobs=[daily_metrics_job],
    request_job=publication_job,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Requests one run of publication_job per failed run of daily_metrics_job.",
)
def publication_sensor(context: dg.RunStatusSensorContext) -> dg.RunRequest:
    """Publish in spite of a metric that failed: Dagster skips what is downstream of it, for every other metric too."""
    failed = context.dagster_run
    days = days_of_run(failed.tags)
    return dg.RunRequest(run_key=failed.run_id, tags=range_tags(days[0], days[-1]) if days else {})


_look_for_late_dumps: Final = HourlyLook()

_SENDING_SECONDS: Final = 20
"""Sending stops after this time, and goes on at the next tick: Dagster ends a tick after 60 seconds."""


@dg.sensor(
    name=ALERT_SENSOR,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Sends one message when something turns red or warns, and one when it is ok again: to"
    " ANALYTICS_ALERT_URL, else to the log.",
)
def alert_sensor(context: dg.SensorEvaluationContext, settings: dg.ResourceParam[Settings]) -> dg.SkipReason:
    """Send what the cursor holds; if there is nothing to send, look, and put what has changed into the cursor.

    The cursor is stored at the end of a tick. So a tick that has sent something does nothing else: if it is killed,
    only what it has just sent is sent again, and a tick that looks can be killed without harm. While the receiver takes
    no message, ticks look. No error of the receiver ends a tick.

    The first tick does nothing: the daemon has not started every other sensor and schedule yet.
    """
    if context.cursor is None:
        context.update_cursor(Outbox().dump())
        return dg.SkipReason("the next evaluation looks")
    if context.repository_def is None:
        raise dg.DagsterInvariantViolationError("it says which checks, schedules and sensors there should be")
    outbox = Outbox.load(context.cursor)
    url, deadline = settings.alert_url, time.monotonic() + _SENDING_SECONDS

    def deliver(message: Message) -> bool:
        if url is None:
            context.log.log(_LOG_LEVELS[message.level], "%s: %s", message.title, message.body.replace("\n", "; "))
            return True
        if time.monotonic() > deadline:
            return False
        try:
            return send(url, message)
        except ReceiverError as error:
            context.log.error(str(error))
        except Exception as error:  # of any of Apprise's plugins; its text may hold the URL
            context.log.error("the receiver failed: %s", type(error).__name__)
        return False

    sent = 0

    def count_sent(message: Message) -> bool:
        nonlocal sent
        taken = deliver(message)
        sent += taken
        return taken

    now = datetime.now(UTC)
    outbox = outbox.deliver(count_sent, now, to_log=url is None)
    if sent:
        context.update_cursor(outbox.dump())
        return dg.SkipReason(f"{sent} messages sent, {len(outbox.waiting)} wait")
    try:
        lines = read_status(settings, context.instance, context.repository_def, _look_for_late_dumps)
    except Exception as error:  # an error of the tick itself would be told to nobody
        lines = [
            Line("services", UNREADABLE, Level.RED, f"the installation cannot be looked at: {type(error).__name__}")
        ]
    # What is said about the receiver cannot be sent to it.
    lines = [line for line in lines if line.group != "alerts"]
    outbox = outbox.note(lines, now, place(settings.database_url), settings.time_zone)
    context.update_cursor(outbox.dump())
    return dg.SkipReason(f"looked; {len(outbox.waiting)} messages wait")


_LOG_LEVELS: Final = {Level.OK: logging.INFO, Level.WARNING: logging.WARNING, Level.RED: logging.ERROR}

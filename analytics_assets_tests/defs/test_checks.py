"""The checks fire when what is stored or what can be counted is not as it should be; days that must not be written."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import dagster as dg
import pytest
import sqlalchemy as sa

from analytics_assets.contract import METRICS, PUBLISHED_PATH, SourceView, metric
from analytics_assets.definitions import build_definitions
from analytics_assets.defs.checks import (
    CUTOFF_IS_CERTAIN,
    NO_EXPIRED_DAYS,
    NOT_RECOVERABLE,
    ONLY_FIVES,
    ONLY_VIEWS,
    SAY_ONLY_WHAT_IS_PUBLISHED,
)
from analytics_assets.defs.evaluation import AT_SOURCE, CHECK_NAMES, DOCUMENTED, MATCHES, NO_MISSING_DAYS, STORED
from analytics_assets.defs.pages import PUBLISHED
from analytics_assets.settings import Settings
from analytics_assets.store import open_store
from analytics_assets.store.counts import DayRefusedError, read_window
from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.clock import noon_of, set_clock
from analytics_assets_tests.support.database import as_superuser, drop_check, event, insert
from analytics_assets_tests.support.host import Host, moments
from analytics_assets_tests.support.pipeline import (
    EVENT_FED,
    LEDGER,
    Pipeline,
    checks,
    everything_said,
    failures,
    run_check,
)


def response(day: date, **change: object) -> dict[str, object]:
    return {"event_date": day, "endpoint": "GET /", "status_code": 200, "count": 1} | change


# --- only_allowlisted_fields_stored


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("event_id", "canary@example.org"),
        ("event_id", ""),
        ("source", "canary"),
        ("count", 0),
        ("count", -7),
        ("count", 10**12),
    ],
)
def test_a_stored_event_that_breaks_a_rule_is_found(
    pipeline: Pipeline, host: Host, yesterday: date, field: str, value: object
) -> None:
    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 2))
    assert pipeline.run(["event_signups"], yesterday).success
    assert run_check(pipeline, "event_signups", STORED).passed
    as_superuser(
        pipeline.settings,
        drop_check("daily_event_counts", field),
        insert("daily_event_counts", **event(yesterday, **{field: value})),
    )
    assert_found(pipeline, "event_signups", f"- {yesterday}: {field} must be ")


@pytest.mark.parametrize(
    ("field", "value"),
    [("endpoint", "GET /canary/17"), ("endpoint", "canary"), ("status_code", 99), ("status_code", 600), ("count", 0)],
)
def test_a_stored_response_that_breaks_a_rule_is_found(
    pipeline: Pipeline, yesterday: date, field: str, value: object
) -> None:
    assert pipeline.run(["endpoint_error_rates"], yesterday).success
    assert run_check(pipeline, "endpoint_error_rates", STORED).passed
    as_superuser(
        pipeline.settings,
        drop_check("daily_response_counts", field),
        insert("daily_response_counts", **response(yesterday, **{field: value})),
        insert("daily_response_counts", **response(yesterday, **{field: value}, **other_key(field))),
    )
    assert_found(pipeline, "endpoint_error_rates", f"- {yesterday}: {field} must be ", "(2 rows)")


def other_key(field: str) -> dict[str, object]:
    return {"status_code": 201} if field != "status_code" else {"endpoint": "(unmatched)"}


def assert_found(pipeline: Pipeline, asset: str, *texts: str) -> None:
    evaluation = run_check(pipeline, asset, STORED)
    assert not evaluation.passed
    assert evaluation.severity is dg.AssetCheckSeverity.ERROR
    description = evaluation.description or ""
    assert all(text in description for text in texts)
    assert "init-db" in description
    assert "canary" not in everything_said(pipeline.instance)


def test_a_name_of_no_metric_is_found_by_every_metric_of_the_table(pipeline: Pipeline, yesterday: date) -> None:
    assert pipeline.run(EVENT_FED, yesterday).success
    as_superuser(
        pipeline.settings,
        drop_check("daily_event_counts", "event_name"),
        insert("daily_event_counts", **event(yesterday, event_name="canary_viewed")),
    )
    for asset in EVENT_FED:
        assert_found(pipeline, asset, f"- {yesterday}: event_name must be in the controlled vocabulary")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("add column email text default 'canary@example.org'", "email is a column that the contract does not allow"),
        ("drop column source", "source is a column that the table lacks"),
        ("alter column count type numeric", "count is a column of the wrong type: bigint is expected"),
        ("alter column event_id type varchar(99)", "event_id is a column of the wrong type: text is expected"),
    ],
)
def test_a_changed_table_is_found(
    pipeline: Pipeline, host: Host, yesterday: date, statement: str, expected: str
) -> None:
    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 2))
    assert pipeline.run(["event_signups"], yesterday).success
    as_superuser(pipeline.settings, f"alter table analytics.daily_event_counts {statement}")
    assert_found(pipeline, "event_signups", f"- {expected}")


def test_a_run_names_its_bad_days(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    """The rows belong to no metric, so the run that collects the days does not replace them."""
    days = [yesterday - timedelta(days=n) for n in (3, 2, 1, 0)]
    host.occur("signups", [m for day in days for m in moments(day, pipeline.settings.time_zone, 2)])
    assert pipeline.run(["event_signups"], days[0], yesterday).success
    bad = [insert("daily_event_counts", **event(day, event_name="canary")) for day in (days[0], days[2])]
    as_superuser(pipeline.settings, drop_check("daily_event_counts", "event_name"), *bad)
    red = checks(pipeline, pipeline.run(["event_signups"], days[0], yesterday), "event_signups")[STORED]
    named = [day for day in days if str(day) in (red.description or "")]
    assert (red.passed, named) == (False, [days[0], days[2]])
    assert red.metadata["days checked"].value == 4


def test_by_itself_it_checks_the_latest_collected_day(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    before = yesterday - timedelta(days=1)
    assert pipeline.run(["event_signups"], before, yesterday).success
    assert pipeline.run(["event_signups"], before).success
    stray = insert("daily_event_counts", **event(before, event_id="canary"))
    as_superuser(pipeline.settings, drop_check("daily_event_counts", "event_id"), stray)
    assert run_check(pipeline, "event_signups", STORED).passed
    as_superuser(pipeline.settings, stray.replace(str(before), str(yesterday)))
    evaluation = run_check(pipeline, "event_signups", STORED)
    assert not evaluation.passed
    assert str(yesterday) in (evaluation.description or "")
    assert str(before) not in (evaluation.description or "")


@pytest.mark.parametrize("name", [STORED, MATCHES])
@pytest.mark.parametrize("asset", ["event_signups", "endpoint_error_rates"])
def test_before_the_first_day_there_is_nothing_to_check(pipeline: Pipeline, asset: str, name: str) -> None:
    evaluation = run_check(pipeline, asset, name)
    assert evaluation.passed
    assert evaluation.metadata["days checked"].value == 0


# --- counts_match_source


def late_row(pipeline: Pipeline, host: Host, day: date) -> None:
    host.occur("signups", moments(day, pipeline.settings.time_zone, 1))


def late_count(pipeline: Pipeline, _: Host, day: date) -> None:
    noon = moments(day, pipeline.settings.time_zone, 2)[1].timestamp()
    folder, zone = pipeline.settings.dump_dir, pipeline.settings.time_zone
    with Telemetry(folder, time_zone=zone, clock=lambda: noon) as telemetry:
        telemetry.count("directory_searched", event_id=8)
        telemetry.count_response("GET", "/", 200)


@pytest.mark.parametrize(
    ("asset", "add"),
    [("event_signups", late_row), ("directory_searches", late_count), ("endpoint_error_rates", late_count)],
)
def test_what_comes_late_is_a_warning_until_the_day_is_collected_again(
    pipeline: Pipeline, host: Host, yesterday: date, asset: str, add: Callable[[Pipeline, Host, date], None]
) -> None:
    for _ in range(2):
        add(pipeline, host, yesterday)
        assert checks(pipeline, pipeline.run([asset], yesterday), asset)[MATCHES].passed
        assert run_check(pipeline, asset, MATCHES).passed
        add(pipeline, host, yesterday)
        evaluation = run_check(pipeline, asset, MATCHES)
        assert not evaluation.passed
        assert evaluation.severity is dg.AssetCheckSeverity.WARN
        assert f"- {yesterday}: the stored total differs from the source" in (evaluation.description or "")
        assert "Rows that arrived late cause this" in (evaluation.description or "")
        assert run_check(pipeline, asset, STORED).passed


def test_a_count_that_somebody_changed_is_noticed(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    late_row(pipeline, host, yesterday)
    assert pipeline.run(["event_signups"], yesterday).success
    as_superuser(pipeline.settings, "update analytics.daily_event_counts set count = count + 1")
    assert not run_check(pipeline, "event_signups", MATCHES).passed


@pytest.mark.parametrize(
    "content",
    [
        b"canary",
        b"[1]",
        b'{"event_name": "directory_searched", "count": "canary"}',
        b'{"event_name": "directory_searched", "count": Infinity}',
    ],
)
def test_a_source_that_cannot_be_counted_any_more_is_a_warning(
    pipeline: Pipeline, yesterday: date, content: bytes
) -> None:
    assert pipeline.run(["directory_searches"], yesterday).success
    folder = pipeline.settings.dump_dir / str(yesterday)
    folder.mkdir()
    (folder / f"{'0' * 32}.ndjson").write_bytes(content)
    evaluation = run_check(pipeline, "directory_searches", MATCHES)
    assert not evaluation.passed
    assert evaluation.severity is dg.AssetCheckSeverity.WARN
    assert "the source cannot be counted" in (evaluation.description or "")
    assert "canary" not in everything_said(pipeline.instance)


def test_a_view_that_is_gone_is_a_warning(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    assert pipeline.run(["event_signups"], yesterday).success
    host.sql("drop view analytics_source.signups")
    evaluation = run_check(pipeline, "event_signups", MATCHES)
    assert not evaluation.passed
    assert "view analytics_source.signups: (view) is missing" in (evaluation.description or "")


# --- days that must not be written


def test_an_expired_day_costs_no_other(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    settings = pipeline.settings
    first = yesterday - timedelta(days=2)
    days = [first - timedelta(days=n) for n in (2, 1)] + [first + timedelta(days=n) for n in range(3)]
    host.occur("signups", [m for day in days for m in moments(day, settings.time_zone, 2)])
    set_clock(settings, noon_of(settings, first + timedelta(days=settings.retention_days)))
    result = pipeline.run(["event_signups"], days[0], yesterday)
    failure = failures(result)["event_signups"]
    assert "2 of 5 days were not stored" in failure
    assert f"- {days[0]} to {days[1]}: expired: the first day that is kept is {first}" in failure
    assert pipeline.materialized("event_signups") == set(days[2:])
    for day in days:
        expected = {("event_signup", "1", "web"): 2} if day >= first else {}
        assert pipeline.stored("event_signups", day) == expected
    assert pipeline.sql("select count(*) from analytics.collected_days") == [(3,)]


def test_a_day_that_the_host_cannot_count_costs_no_other(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    days = [yesterday - timedelta(days=n) for n in (3, 2, 1, 0)]
    host.sql(
        "create or replace view analytics_source.signups as"
        " select event_id::int::text as event_id, occurred_at, source from signups"
    )
    for day in days:
        host.occur("signups", moments(day, pipeline.settings.time_zone, 2))
    host.occur("signups", moments(days[2], pipeline.settings.time_zone, 1), event_id="canary")
    result = pipeline.run(["event_signups"], days[0], yesterday)
    failure = failures(result)["event_signups"]
    assert f"1 of 4 days were not stored:\\n- {days[2]}: reading the source" in failure
    assert pipeline.materialized("event_signups") == set(days) - {days[2]}
    found = checks(pipeline, result, "event_signups")
    assert {name: check.passed for name, check in found.items()} == dict.fromkeys(CHECK_NAMES, True) | {
        NO_MISSING_DAYS: False
    }
    assert f"- {days[2]}\n" in (found[NO_MISSING_DAYS].description or "")
    assert found[MATCHES].metadata["days checked"].value == 3
    assert "canary" not in everything_said(pipeline.instance)


def test_a_database_out_of_reach_ends_the_run_and_keeps_what_was_stored(
    pipeline: Pipeline, host: Host, yesterday: date
) -> None:
    days = [yesterday - timedelta(days=n) for n in (2, 1, 0)]
    start = moments(days[1], pipeline.settings.time_zone, 1)[0]
    host.sql(
        "create function tripped(at timestamptz) returns timestamptz language plpgsql security definer as $$ begin"
        f" if at >= '{start}' then perform pg_terminate_backend(pg_backend_pid()); end if; return at; end $$"
    )
    host.sql(
        "create or replace view analytics_source.signups as"
        " select event_id, occurred_at, case when tripped(occurred_at) is not null then source end as source"
        " from signups"
    )
    for day in days:
        host.occur("signups", moments(day, pipeline.settings.time_zone, 2))
    result = pipeline.run(["event_signups"], days[0], yesterday)
    failure = failures(result)["event_signups"]
    assert "2 of 3 days were not stored" in failure
    assert f"- {days[2]}: not tried, because a database was out of reach" in failure
    assert pipeline.materialized("event_signups") == {days[0]}


def test_nothing_of_a_failing_run_is_compared_when_nothing_was_stored(
    pipeline: Pipeline, host: Host, yesterday: date
) -> None:
    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 2), event_id="canary")
    result = pipeline.run(["event_signups"], yesterday)
    found = checks(pipeline, result, "event_signups")
    assert {name: check.passed for name, check in found.items()} == dict.fromkeys(CHECK_NAMES, True) | {
        AT_SOURCE: False,
        MATCHES: False,
    }
    assert found[MATCHES].severity is dg.AssetCheckSeverity.WARN
    assert "no day of the run was stored" in (found[MATCHES].description or "")


def test_a_run_of_expired_days_only_stores_nothing(pipeline: Pipeline, yesterday: date) -> None:
    set_clock(pipeline.settings, noon_of(pipeline.settings, yesterday + timedelta(days=181)))
    failed = failures(pipeline.run(["event_signups", "directory_searches"], yesterday))
    assert set(failed) == {"event_signups", "directory_searches"}
    assert all(f"{yesterday}: expired: the first day that is kept" in text for text in failed.values())
    assert pipeline.materialized("event_signups") == set()


def test_the_days_that_may_be_written(settings: Settings) -> None:
    today = settings.today()
    with open_store(settings) as store:
        window = read_window(store)
    assert (window.first, window.last) == (today - timedelta(days=180), today - timedelta(days=1))
    for day in (window.first, window.last):
        window.refuse_outside(day)
    with pytest.raises(DayRefusedError, match="expired"):
        window.refuse_outside(window.first - timedelta(days=1))
    for day in (today, today + timedelta(days=1)):
        with pytest.raises(DayRefusedError, match="not finished"):
            window.refuse_outside(day)


@pytest.mark.parametrize("days", [0, 1])
def test_an_unfinished_day_stores_nothing(pipeline: Pipeline, host: Host, days: int) -> None:
    day = pipeline.settings.today() + timedelta(days=days)
    host.occur("signups", moments(day, pipeline.settings.time_zone, 2))
    failure = failures(pipeline.run(["event_signups"], day))["event_signups"]
    assert f"{day}: not finished: the last full day is {pipeline.settings.today() - timedelta(days=1)}" in failure
    assert pipeline.stored("event_signups", day) == {}
    assert pipeline.sql("select * from analytics.collected_days") == []
    assert pipeline.materialized("event_signups") == set()


def test_counts_are_not_replaced_by_an_empty_source(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    before = yesterday - timedelta(days=1)
    host.occur("signups", moments(before, pipeline.settings.time_zone, 2))
    assert pipeline.run(["event_signups"], before).success
    host.sql("delete from signups")
    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 3))

    refused = pipeline.run(["event_signups"], before, yesterday)
    failure = failures(refused)["event_signups"]
    assert f"1 of 2 days were not stored:\n- {before}: the source is empty now" in failure
    assert "allow_empty: true" in failure
    assert pipeline.stored("event_signups", before) == {("event_signup", "1", "web"): 2}
    assert pipeline.stored("event_signups", yesterday) == {("event_signup", "1", "web"): 3}

    assert pipeline.run(["event_signups"], before, yesterday, allow_empty=True).success
    assert pipeline.stored("event_signups", before) == {}
    assert pipeline.sql("select event_date, rows from analytics.collected_days order by 1") == [
        (before, 0),
        (yesterday, 1),
    ]


@pytest.mark.parametrize(
    ("numbers", "refused"),
    [((100, 79), True), ((100, 80), False), ((6, 1), True), ((5, 1), False)],
)
def test_counts_are_not_replaced_by_far_fewer(
    pipeline: Pipeline, host: Host, yesterday: date, numbers: tuple[int, int], refused: bool
) -> None:
    before, after = numbers
    zone = pipeline.settings.time_zone
    host.occur("signups", moments(yesterday, zone, before))
    assert pipeline.run(["event_signups"], yesterday).success
    host.sql("delete from signups")
    host.occur("signups", moments(yesterday, zone, after))

    again = pipeline.run(["event_signups"], yesterday)
    assert again.success is not refused
    assert sum(pipeline.stored("event_signups", yesterday).values()) == (before if refused else after)
    if refused:
        failure = failures(again)["event_signups"]
        assert f"- {yesterday}: the source has less than is stored" in failure
        assert "allow_decrease: true" in failure
        assert pipeline.run(["event_signups"], yesterday, allow_decrease=True).success
        assert sum(pipeline.stored("event_signups", yesterday).values()) == after


# --- settings and database


@pytest.mark.parametrize("change", [{"retention_days": 5}, {"time_zone": "Asia/Tokyo"}])
def test_settings_that_the_database_does_not_have_are_refused(
    settings: Settings, host: Host, yesterday: date, change: dict[str, object]
) -> None:
    host.occur("signups", moments(yesterday, settings.time_zone, 2))
    other = replace(settings, **change)  # type: ignore[arg-type]
    with Pipeline.open(other) as pipeline:
        result = pipeline.run(["event_signups"], yesterday)
        assert "differ from what the database enforces" in failures(result)["event_signups"]
        assert "run `analytics-assets init-db`" in failures(result)["event_signups"]
        assert pipeline.stored("event_signups", yesterday) == {}


def test_a_database_that_is_not_set_up_is_said(
    settings: Settings, make_database: Callable[[str], sa.URL], yesterday: date
) -> None:
    empty = make_database("empty").set(username="analytics_writer").render_as_string(hide_password=False)
    with Pipeline.open(replace(settings, database_url=empty)) as pipeline:
        failure = failures(pipeline.run(["event_signups"], yesterday))["event_signups"]
    assert "schema analytics is not set up: run `analytics-assets init-db`" in failure


def test_a_database_url_that_is_not_set_is_said(settings: Settings, yesterday: date) -> None:
    with Pipeline.open(replace(settings, database_url=None)) as pipeline:
        failure = failures(pipeline.run(["event_signups"], yesterday))["event_signups"]
    assert "ANALYTICS_DATABASE_URL is not set: start with `analytics-assets up`" in failure


def test_every_metric_has_every_check_and_shared_facts_are_checked_once() -> None:
    found = build_definitions(Settings.from_env({})).resolve_asset_graph().asset_check_keys
    assert {(key.asset_key.to_user_string(), key.name) for key in found} == {
        *((m.asset, name) for m in METRICS for name in CHECK_NAMES),
        *((LEDGER, name) for name in (NO_EXPIRED_DAYS, CUTOFF_IS_CERTAIN, DOCUMENTED)),
        *(("/".join(m.origin.path), ONLY_VIEWS) for m in METRICS if isinstance(m.origin, SourceView)),
        *((PUBLISHED_PATH[0], name) for name in (ONLY_FIVES, NOT_RECOVERABLE)),
        (PUBLISHED, SAY_ONLY_WHAT_IS_PUBLISHED),
    }
    assert metric("event_signups").asset in EVENT_FED


@pytest.mark.parametrize("name", CHECK_NAMES[1:])
def test_each_check_of_a_metric_can_be_executed_by_itself(pipeline: Pipeline, name: str) -> None:
    assert run_check(pipeline, "event_signups", name).check_name == name

"""The source views: what is refused before a row is read, what the login should not see, and rows that break a rule."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import dagster as dg
import pytest
import sqlalchemy as sa

from analytics_assets.contract import EVENT_ID, SOURCE, metric
from analytics_assets.database import DatabaseError
from analytics_assets.days import span
from analytics_assets.defs.evaluation import open_reader
from analytics_assets.guard import obeys
from analytics_assets.settings import Settings, SettingsError
from analytics_assets.sources import OriginRefusedError, Reader, app_views
from analytics_assets.sources.app_views import CHUNK_DAYS
from analytics_assets_tests.support.host import Host, last_moment, moments
from analytics_assets_tests.support.pipeline import Pipeline, everything_said, failures, gate

SIGNUPS, CONSENT = metric("event_signups"), metric("consent_changes")
READER = "analytics_source_reader"
# Planning a query on this view fails already, so whoever gets another refusal has not read it.
UNREADABLE = " from signups where 1 / 0 = 1"


@pytest.fixture
def reading(host: Host) -> Settings:
    """Settings that know the host's database only."""
    return Settings.from_env({"ANALYTICS_SOURCE_URL": host.reader_url})


def replace_view(host: Host, columns: str, rest: str = " from signups") -> None:
    """Another view of sign-ups, readable for the pipeline."""
    host.sql("drop view if exists analytics_source.signups")
    host.sql(f"create view analytics_source.signups as select {columns}{rest}")
    host.sql(f"grant select on analytics_source.signups to {READER}")


def refusal_of(settings: Settings, name: str = "event_signups") -> str:
    with pytest.raises(OriginRefusedError) as refusal, open_reader(metric(name), settings):
        pass
    return str(refusal.value)


def warnings_of(settings: Settings) -> list[str]:
    with open_reader(SIGNUPS, settings) as source:
        return list(source.warnings)


@pytest.fixture
def leaked(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Callable[..., bool]:
    """Whether a canary is in what Dagster keeps, in the logs, on the terminal, or in the texts given."""

    def look(*texts: str, of: Pipeline = pipeline) -> bool:
        said = everything_said(of.instance)
        assert "event_signups" in said
        return "canary" in "\n".join([said, caplog.text, *capfd.readouterr(), *texts])

    return look


# --- structure


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("event_id, occurred_at, source, email", "email is an unexpected column; remove it"),
        ("event_id, occurred_at, source, true as turned_on", "turned_on is an unexpected column"),
        ("event_id, occurred_at", "source is a missing column"),
        ("event_id as event, occurred_at, source", "event_id is a missing column"),
        ("event_id, occurred_at::timestamp as occurred_at, source", "occurred_at has type timestamp without time zone"),
        ("event_id, occurred_at::date as occurred_at, source", "expected: timestamp with time zone"),
        ("event_id, occurred_at, 1 as source", "source has type integer"),
        ("1.5 as event_id, occurred_at, source", "event_id has type numeric"),
        ("to_jsonb(event_id) as event_id, occurred_at, source", "event_id has type jsonb"),
    ],
)
def test_a_view_of_another_shape_is_refused_before_a_row_is_read(
    host: Host, reading: Settings, columns: str, expected: str
) -> None:
    replace_view(host, columns, UNREADABLE)
    said = refusal_of(reading)
    assert expected in said
    assert "view analytics_source.signups" in said
    assert "corrects the view" in said


def test_the_view_behind_these_refusals_cannot_be_read(host: Host, reading: Settings, yesterday: date) -> None:
    replace_view(host, "event_id, occurred_at, source", UNREADABLE)
    with pytest.raises(DatabaseError, match="DivisionByZero"), open_reader(SIGNUPS, reading) as source:
        source.count(yesterday)


def test_every_fault_is_named_at_once(host: Host, reading: Settings) -> None:
    replace_view(host, "event_id, 7 as source, email", UNREADABLE)
    said = refusal_of(reading)
    assert all(
        text in said for text in ("email is an unexpected column", "occurred_at is a missing", "source has type")
    )


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (
            "drop view analytics_source.signups",
            "is missing or is not a view; create it with the columns event_id, occurred_at, source",
        ),
        ("drop schema analytics_source cascade", "is missing or is not a view; create it with the columns event_id"),
        (
            "revoke select on analytics_source.signups from analytics_source_reader",
            "cannot be read; grant usage on its schema",
        ),
        (
            "revoke usage on schema analytics_source from analytics_source_reader",
            "cannot be read; grant usage on its schema",
        ),
    ],
)
def test_a_view_that_is_not_there_or_not_granted(host: Host, reading: Settings, statement: str, expected: str) -> None:
    host.sql(statement)
    assert expected in refusal_of(reading)


def test_a_table_is_no_view(host: Host, reading: Settings) -> None:
    host.sql("drop view analytics_source.signups")
    host.sql("create table analytics_source.signups as select event_id, occurred_at, source from public.signups")
    host.sql(f"grant select on analytics_source.signups to {READER}")
    assert "is missing or is not a view; create it" in refusal_of(reading)


def test_a_materialized_view_is_one(host: Host, reading: Settings, yesterday: date) -> None:
    host.occur("signups", moments(yesterday, "UTC", 3))
    host.sql("drop view analytics_source.signups")
    host.sql("create materialized view analytics_source.signups as select event_id, occurred_at, source from signups")
    host.sql(f"grant select on analytics_source.signups to {READER}")
    with open_reader(SIGNUPS, reading) as source:
        assert source.total(yesterday) == 3


def test_the_order_of_the_columns_does_not_matter(host: Host, reading: Settings) -> None:
    replace_view(host, "source, occurred_at, event_id")
    assert warnings_of(reading) == []


def test_the_switch_belongs_to_the_view_of_consent(host: Host, reading: Settings) -> None:
    host.sql("drop view analytics_source.consent_changes")
    host.sql("create view analytics_source.consent_changes as select event_id, occurred_at, source from consent")
    host.sql(f"grant select on analytics_source.consent_changes to {READER}")
    assert "turned_on is a missing column" in refusal_of(reading, "consent_changes")


def test_a_refused_view_fails_its_own_metric_only(
    pipeline: Pipeline,
    host: Host,
    yesterday: date,
    leaked: Callable[..., bool],
) -> None:
    zone = pipeline.settings.time_zone
    host.occur("signups", moments(yesterday, zone, 2))
    host.occur("visibility", moments(yesterday, zone, 2))
    assert pipeline.run(["event_signups"], yesterday).success
    replace_view(host, "event_id, occurred_at, source, email")
    host.occur("signups", moments(yesterday, zone, 2))
    result = pipeline.run(["event_signups", "profile_visibility_toggles"], yesterday)
    assert set(failures(result)) == {"event_signups"}
    assert "refused before a row was read" in failures(result)["event_signups"]
    assert not gate(pipeline, result, "event_signups").passed
    assert "email is an unexpected column" in (gate(pipeline, result, "event_signups").description or "")
    assert {event.asset_key for event in result.get_asset_materialization_events()} == {
        dg.AssetKey("profile_visibility_toggles")
    }
    assert pipeline.stored("event_signups", yesterday) == {("event_signup", "1", "web"): 2}
    assert pipeline.stored("profile_visibility_toggles", yesterday) == {("profile_visibility_toggled", "1", "web"): 2}
    assert not leaked(*failures(result).values())


@pytest.mark.parametrize(
    ("sql_type", "stored"),
    [
        ("text", "42"),
        ("varchar", "42"),
        ("varchar(9)", "42"),
        ("smallint", "42"),
        ("integer", "42"),
        ("bigint", "42"),
        ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ],
)
def test_an_id_of_any_usual_type_is_counted_canonically(
    host: Host, reading: Settings, yesterday: date, sql_type: str, stored: str
) -> None:
    host.occur("signups", moments(yesterday, "UTC", 3))
    replace_view(host, f"'{stored.upper()}'::{sql_type} as event_id, occurred_at, source")
    with open_reader(SIGNUPS, reading) as source:
        counted = source.count(yesterday)
    assert counted.problems == []
    row = {"event_date": yesterday, "event_name": "event_signup", "event_id": stored, "source": "web", "count": 3}
    assert counted.rows == [row]


# --- row level security


HIDDEN = "alter table signups enable row level security; create policy p on signups using (source = 'admin')"
GIVE_AWAY = "grant create on schema analytics_source to hidden_from; alter table analytics_source.signups owner to"


@pytest.fixture
def hidden_from(host: Host) -> Iterator[str]:
    """A role that may read the table of sign-ups, but sees no row that the policy hides."""
    host.sql("create role hidden_from; grant select on signups to hidden_from")
    yield "hidden_from"
    host.sql("drop owned by hidden_from cascade; drop role hidden_from")


@pytest.mark.parametrize(
    ("statements", "whom"),
    [
        ("alter view analytics_source.signups set (security_invoker = on); grant select on signups to {reader}", "pi"),
        ("{give} hidden_from", "the owner of the view"),
        ("alter table signups force row level security; alter table signups owner to hidden_from; {give} hidden_from",
         "the owner of the view"),
        ("create view below as select * from signups; alter view below owner to hidden_from;"
         " create or replace view analytics_source.signups as select event_id, occurred_at, source from below",
         "the owner of the view"),
        ("drop view analytics_source.signups; create materialized view analytics_source.signups as"
         " select event_id, occurred_at, source from signups; grant select on analytics_source.signups to {reader};"
         " {give} hidden_from", "the owner of the view"),
    ],
    ids=["invoker", "owner", "forced", "view below", "materialized"],
)  # fmt: skip
def test_a_view_that_hides_rows_is_refused(
    host: Host, reading: Settings, hidden_from: str, statements: str, whom: str
) -> None:
    host.sql(HIDDEN)
    host.sql(statements.format(give=GIVE_AWAY, reader=READER))
    said = refusal_of(reading)
    whom = "the pipeline's login" if whom == "pi" else whom
    assert f"reads public.signups, where row level security hides rows from {whom}; give the view an owner" in said
    assert hidden_from not in said


def test_a_view_whose_owner_sees_every_row_is_counted(host: Host, reading: Settings, yesterday: date) -> None:
    host.occur("signups", moments(yesterday, "UTC", 3))
    host.sql(HIDDEN)
    with open_reader(SIGNUPS, reading) as source:
        assert source.total(yesterday) == 3


def test_rows_that_a_function_does_not_see_are_an_error_and_not_a_smaller_count(
    pipeline: Pipeline, host: Host, yesterday: date, leaked: Callable[..., bool]
) -> None:
    """The catalog does not know which tables a function reads."""
    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 3))
    host.sql("create function seen() returns setof signups language sql stable as 'select * from signups'")
    host.sql(f"grant select on signups to {READER}; {HIDDEN}")
    replace_view(host, "event_id, occurred_at, source", " from seen()")
    (failure,) = failures(pipeline.run(["event_signups"], yesterday)).values()
    assert "row level security hides rows, so the count would be too low; give the view an owner" in failure
    assert pipeline.sql("select * from analytics.collected_days") == []
    assert not leaked(failure)


# --- the login


def test_a_login_with_the_views_alone_gets_no_warning(reading: Settings) -> None:
    assert warnings_of(reading) == []


def test_a_superuser_is_warned_about(host: Host, reading: Settings) -> None:
    superuser = replace(reading, source_url=host.url.render_as_string(hide_password=False))
    (warning,) = warnings_of(superuser)
    assert "is a superuser" in warning


@pytest.mark.parametrize(
    ("grant", "named"),
    [
        ("grant select on signups to {}", "public.signups"),
        ("grant select (email) on signups to {}", "public.signups"),
        ("grant select on signups to public", "public.signups"),
        ("create view everyone as select * from consent; grant select on everyone to {}", "public.everyone"),
        (
            "create view analytics_source.emails as select email from signups;"
            " grant select on analytics_source.emails to {}",
            "analytics_source.emails",
        ),
    ],
)
def test_a_login_that_can_read_more_is_warned_about(host: Host, reading: Settings, grant: str, named: str) -> None:
    host.sql(grant.format(READER))
    (warning,) = warnings_of(reading)
    assert f"can read more than the source views: {named}; revoke that" in warning


def test_the_warning_is_in_the_log_of_the_run(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    host.sql(f"grant select on signups to {READER}")
    assert pipeline.run(["event_signups"], yesterday).success
    assert "can read more than the source views: public.signups" in everything_said(pipeline.instance)


def test_the_reader_writes_nothing(host: Host, reading: Settings, yesterday: date) -> None:
    host.sql("create function spoil() returns text language sql volatile security definer as"
             " 'insert into signups (event_id) values (''1'') returning event_id'")  # fmt: skip
    host.occur("signups", moments(yesterday, "UTC", 1))
    replace_view(host, "spoil() as event_id, occurred_at, source")
    with pytest.raises(DatabaseError, match="ReadOnlySqlTransaction"), open_reader(SIGNUPS, reading) as source:
        source.count(yesterday)


# --- rows


@pytest.mark.parametrize(
    "row",
    [
        {"event_id": None},
        {"event_id": "canary@example.org"},
        {"event_id": "42\n"},
        {"event_id": "042"},
        {"event_id": "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"},
        {"source": "canary"},
        {"source": ""},
        {"event_id": "canary", "source": "canary"},
    ],
)
def test_a_row_that_breaks_a_rule_costs_its_day_and_no_other(
    pipeline: Pipeline, host: Host, yesterday: date, leaked: Callable[..., bool], row: dict[str, Any]
) -> None:
    broken = EVENT_ID if "event_id" in row else SOURCE
    zone, before = pipeline.settings.time_zone, yesterday - timedelta(days=1)
    host.occur("signups", moments(before, zone, 1))
    assert pipeline.run(["event_signups"], before).success
    host.occur("signups", moments(before, zone, 4))
    host.occur("signups", moments(before, zone, 3), **row)
    host.occur("signups", moments(yesterday, zone, 2))
    host.occur("visibility", moments(before, zone, 2))

    result = pipeline.run(["event_signups", "profile_visibility_toggles"], before, yesterday)

    (failure,) = failures(result).values()
    assert "1 of 2 days were not stored" in failure
    assert str(before) in failure
    assert str(yesterday) not in failure
    red = gate(pipeline, result, "event_signups")
    assert not red.passed
    assert (red.description or "").startswith(
        f"- {before}: view analytics_source.signups: {broken.name} {broken.rule} (3 rows)"
    )
    assert red.metadata["violations"].value == 3
    assert pipeline.stored("event_signups", before) == {("event_signup", "1", "web"): 1}
    assert pipeline.stored("event_signups", yesterday) == {("event_signup", "1", "web"): 2}
    recorded = pipeline.instance.fetch_materializations(dg.AssetKey("event_signups"), limit=9).records
    assert [record.partition_key for record in recorded] == [str(yesterday), str(before)]
    assert gate(pipeline, result, "profile_visibility_toggles").passed
    assert pipeline.materialized("profile_visibility_toggles") == {before, yesterday}
    assert not leaked(failure)


NO_DAY = {
    "null": "is null",
    "'infinity'": "is later than tomorrow",
    "now() + interval '3 days'": "is later than tomorrow",
    "'-infinity'": "is before 1971",
    "'epoch'": "is before 1971",
    "'0001-01-01'": "is before 1971",
}


@pytest.mark.parametrize(("moment", "rule"), NO_DAY.items(), ids=NO_DAY.keys())
def test_a_row_that_is_in_no_day_is_a_warning_of_the_gate(
    host: Host, reading: Settings, moment: str, rule: str
) -> None:
    host.sql(f"insert into signups (event_id, occurred_at) select 'canary', {moment} from generate_series(1, 7)")  # noqa: S608
    with open_reader(SIGNUPS, reading) as source:
        assert list(map(str, source.outside())) == [f"view analytics_source.signups: occurred_at {rule} (7 rows)"]


def test_rows_of_any_day_up_to_tomorrow_are_no_warning(host: Host, reading: Settings, yesterday: date) -> None:
    host.occur("signups", [last_moment(yesterday + timedelta(days=2), reading.time_zone)])
    host.sql("insert into signups (event_id, occurred_at) values ('1', '1971-01-02')")
    with open_reader(SIGNUPS, reading) as source:
        assert source.outside() == []


def test_the_gate_names_rows_without_a_day_and_the_days_are_stored(
    pipeline: Pipeline, host: Host, yesterday: date, leaked: Callable[..., bool]
) -> None:
    zone, before = pipeline.settings.time_zone, yesterday - timedelta(days=1)
    host.occur("signups", moments(yesterday, zone, 5))
    host.sql("insert into signups (event_id) select 'canary' from generate_series(1, 7)")
    result = pipeline.run(["event_signups"], before, yesterday)
    assert result.success
    assert pipeline.stored("event_signups", yesterday) == {("event_signup", "1", "web"): 5}
    warning = gate(pipeline, result, "event_signups")
    assert (warning.passed, warning.severity) == (False, dg.AssetCheckSeverity.WARN)
    named = "- view analytics_source.signups: occurred_at is null (7 rows)"
    assert (warning.description or "").startswith(named)

    host.occur("signups", moments(before, zone, 2), source="canary")
    red = gate(pipeline, pipeline.run(["event_signups"], before, yesterday), "event_signups")
    assert (red.passed, red.severity) == (False, dg.AssetCheckSeverity.ERROR)
    assert named in (red.description or "")
    assert f"- {before}: view analytics_source.signups: source" in (red.description or "")
    assert not leaked()


def test_rows_without_a_day_that_cannot_be_counted_are_a_warning_too(
    pipeline: Pipeline, host: Host, yesterday: date, leaked: Callable[..., bool]
) -> None:
    """The function is dear, so PostgreSQL calls it only for rows that the other conditions let through."""
    host.sql("create function refuse(moment timestamptz) returns boolean language plpgsql cost 100000 as"
             " $$ begin if moment is null then raise exception 'canary'; end if; return true; end $$")  # fmt: skip
    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 5))
    host.sql("insert into signups (event_id) values ('canary')")
    replace_view(host, "event_id, occurred_at, source", " from signups where refuse(occurred_at)")
    result = pipeline.run(["event_signups"], yesterday)
    assert result.success
    assert "- rows that no day has could not be counted" in (gate(pipeline, result, "event_signups").description or "")
    assert not leaked()


def test_a_consent_without_direction_costs_its_day(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    zone = pipeline.settings.time_zone
    host.occur("consent", moments(yesterday, zone, 2), turned_on=True)
    host.occur("consent", moments(yesterday, zone, 5), turned_on=None)
    result = pipeline.run(["consent_changes"], yesterday)
    assert not result.success
    assert "turned_on must be true or false (5 rows)" in (gate(pipeline, result, "consent_changes").description or "")
    assert pipeline.stored("consent_changes", yesterday) == {}


def test_each_reason_is_counted_by_itself(host: Host, reading: Settings, yesterday: date) -> None:
    host.occur("consent", moments(yesterday, "UTC", 2), event_id="canary-1", turned_on=None)
    host.occur("consent", moments(yesterday, "UTC", 1), event_id="canary-2", source="canary", turned_on=True)
    host.occur("consent", moments(yesterday, "UTC", 4), source="canary", turned_on=False)
    host.occur("consent", moments(yesterday, "UTC", 5), turned_on=None)
    host.occur("consent", moments(yesterday, "UTC", 6), turned_on=False)
    with statements() as sent, open_reader(CONSENT, reading) as source:
        counted = source.count(yesterday)
    assert {problem.violation.field: problem.rows for problem in counted.problems} == {
        "event_id": 3,
        "source": 4,
        "turned_on": 5,
    }
    assert "canary" not in repr(counted)
    # Not in what the database has sent, either.
    ((statement, parameters),) = sent
    found = host.connection.exec_driver_sql(statement, parameters).all()
    assert len(found) == 4
    assert "canary" not in repr(found)


def test_what_postgresql_prints_of_a_number_without_sign_and_of_a_uuid_is_an_id(host: Host) -> None:
    """The statement relies on it, and evaluates no regular expression for these types."""
    texts = host.connection.exec_driver_sql(
        "select number::text from unnest(array[0, 1, 10, 9223372036854775807]) number"
        " union all select id::uuid::text from unnest(array[repeat('0', 32), repeat('F', 32), repeat('9a', 16)]) id"
    ).scalars()
    assert [obeys(EVENT_ID, text) for text in texts] == [True] * 7


@pytest.mark.parametrize("sql_type", ["smallint", "integer", "bigint"])
def test_a_negative_id_is_refused_whatever_its_type(
    host: Host, reading: Settings, yesterday: date, sql_type: str
) -> None:
    replace_view(host, f"event_id::{sql_type} as event_id, occurred_at, source")
    for number, event_id in ((2, "-1"), (3, "-32768"), (1, "0"), (4, "32767")):
        host.occur("signups", moments(yesterday, "UTC", number), event_id=event_id)
    with open_reader(SIGNUPS, reading) as opened:
        counted = opened.count(yesterday)
    assert {row["event_id"]: row["count"] for row in counted.rows} == {"0": 1, "32767": 4}
    assert [(problem.violation.field, problem.rows) for problem in counted.problems] == [("event_id", 5)]
    assert "32768" not in repr(counted)


@pytest.mark.parametrize(
    "leaking",
    [
        "email::integer::text",
        "tell(email)",
        "(('{\"a\": ' || email)::jsonb ->> 'a')",
        "repeat('x', 1 / (length(email) - length(email)))",
    ],
)
def test_an_error_of_the_host_does_not_bring_its_values_along(
    pipeline: Pipeline,
    host: Host,
    yesterday: date,
    leaked: Callable[..., bool],
    leaking: str,
) -> None:
    """PostgreSQL's own texts quote values, and a function of the host's operator may raise what it likes."""
    host.sql("create function tell(value text) returns text language plpgsql as"
             " $$ begin raise exception using message = 'not good: ' || value; end $$")  # fmt: skip
    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 1))
    replace_view(host, f"event_id, occurred_at, {leaking} as source")
    result = pipeline.run(["event_signups"], yesterday)
    (failure,) = failures(result).values()
    assert "reading the source of event_signups" in failure
    assert pipeline.stored("event_signups", yesterday) == {}
    assert not leaked(failure)


def test_a_host_out_of_reach_is_said_without_its_password(
    pipeline: Pipeline, yesterday: date, leaked: Callable[..., bool]
) -> None:
    away = "postgresql+psycopg2://someone:canary@127.0.0.1:1/host"
    with Pipeline.open(replace(pipeline.settings, source_url=away)) as unreachable:
        result = unreachable.run(["event_signups"], yesterday)
        (failure,) = failures(result).values()
        assert "the database cannot be reached" in failure
        assert not leaked(failure, of=unreachable)


def test_an_unset_source_is_said(reading: Settings) -> None:
    with (
        pytest.raises(SettingsError, match="ANALYTICS_SOURCE_URL is not set"),
        open_reader(SIGNUPS, replace(reading, source_url=None)),
    ):
        pass


# --- the statement


@contextmanager
def statements() -> Iterator[list[tuple[str, Any]]]:
    """What is sent to a source view meanwhile."""
    sent: list[tuple[str, Any]] = []

    def note(_: object, __: object, statement: str, parameters: object, *___: object) -> None:
        if "FROM analytics_source." in statement:
            sent.append((statement, parameters))

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(sa.Engine, "before_cursor_execute", note)


def test_a_day_is_one_statement_that_uses_an_index_on_the_bare_column(
    host: Host, reading: Settings, yesterday: date
) -> None:
    host.sql(
        "insert into signups select mod(n, 50), timestamptz 'yesterday' - n * interval '15 minutes', 'web'"
        " from generate_series(1, 20000) n"
    )
    host.sql("create index by_moment on signups (occurred_at)")
    host.sql("analyze signups")
    days = span(yesterday - timedelta(days=3), yesterday)
    with statements() as sent, open_reader(SIGNUPS, reading, days) as source:
        for day in days:
            source.count(day)
            source.total(day)
    read = [(statement, parameters) for statement, parameters in sent if statement in executed(sent)]
    assert len(read) == 2 * len(days)
    for statement, parameters in read:
        plan = host.connection.exec_driver_sql(f"explain {statement}", parameters).scalars()
        assert "by_moment" in "\n".join(plan)


def executed(sent: list[tuple[str, Any]]) -> list[str]:
    """The statements that read rows."""
    return [statement for statement, _ in sent if not statement.startswith("explain")]


@pytest.mark.parametrize(
    ("time_zone", "day"),
    [
        ("UTC", date(2026, 11, 22)),
        ("Europe/Berlin", date(2026, 3, 29)),
        ("Europe/Berlin", date(2025, 10, 26)),
        ("America/Havana", date(2026, 3, 8)),  # its midnight does not exist
        ("Pacific/Apia", date(2011, 12, 30)),  # the whole day does not exist
    ],
)
def test_days_that_no_index_leads_to_are_one_statement_and_counted_as_one_by_one(
    host: Host, reading: Settings, time_zone: str, day: date
) -> None:
    here = replace(reading, time_zone=time_zone)
    days = span(day - timedelta(days=3), day + timedelta(days=3))
    for number, each in enumerate(days):
        host.occur("consent", moments(each, time_zone, 2 + number), turned_on=True)
        host.occur("consent", [last_moment(each, time_zone)], turned_on=False, source=None)
        host.occur("consent", moments(each, time_zone, 1 + number), event_id="canary", turned_on=True)
    asked = [each for each in days if each != days[1]]

    def read(source: Reader) -> list[object]:
        counted = {each: source.count(each) for each in asked}
        return [
            {each: sorted(map(repr, one.rows)) for each, one in counted.items()},
            {each: sorted(one.problems) for each, one in counted.items()},
            {each: source.total(each) for each in asked},
        ]

    with statements() as sent, open_reader(CONSENT, here, asked) as together:
        found = read(together)
    assert len(executed(sent)) == 4  # the first day says how many may be read together
    with statements() as sent, open_reader(CONSENT, here) as one_by_one:
        assert read(one_by_one) == found
    assert len(executed(sent)) == 2 * len(asked)
    assert "canary" not in repr(found)


def test_no_more_days_than_a_chunk_are_one_statement(host: Host, reading: Settings, yesterday: date) -> None:
    days = span(yesterday - timedelta(days=2 * CHUNK_DAYS), yesterday)
    host.occur("signups", [moment for day in days for moment in moments(day, "UTC", 1)])
    with statements() as sent, open_reader(SIGNUPS, reading, days) as source:
        assert [source.total(day) for day in days] == [1] * len(days)
    assert len(executed(sent)) == 3


def test_no_more_rows_than_fit_are_read_together(
    host: Host, reading: Settings, yesterday: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = span(yesterday - timedelta(days=6), yesterday)
    for day in days:
        for event_id in ("1", "2"):
            host.occur("signups", moments(day, "UTC", 1), event_id=event_id)
    monkeypatch.setattr(app_views, "_ROWS_TOGETHER", 6)
    with statements() as sent, open_reader(SIGNUPS, reading, days) as source:
        assert [len(source.count(day).rows) for day in days] == [2] * len(days)
    assert len(executed(sent)) == 3  # of one, three and three days


def test_a_day_that_cannot_be_read_costs_no_other_of_its_chunk(host: Host, reading: Settings, yesterday: date) -> None:
    days = span(yesterday - timedelta(days=3), yesterday)
    replace_view(host, "event_id::int as event_id, occurred_at, source")
    for day in days:
        host.occur("signups", moments(day, "UTC", 2))
    host.occur("signups", moments(days[2], "UTC", 1), event_id="canary")
    with open_reader(SIGNUPS, reading, days) as source:
        for day in days:
            if day == days[2]:
                with pytest.raises(DatabaseError) as refusal:
                    source.count(day)
                assert "canary" not in str(refusal.value)
            else:
                assert [row["count"] for row in source.count(day).rows] == [2]


def test_a_text_is_grouped_by_its_bytes_whatever_the_collation_of_the_host(
    host: Host, reading: Settings, yesterday: date
) -> None:
    """By a collation that ignores case, which takes ICU, a refused value would be in the group of an allowed one."""
    replace_view(host, "event_id::varchar(9) as event_id, occurred_at, source")
    with statements() as sent, open_reader(SIGNUPS, reading) as source:
        source.count(yesterday)
    ((statement, _),) = sent
    grouped = statement.partition("GROUP BY")[2].partition(")")[0]
    assert grouped.count('COLLATE "C"') == 2

"""Connections: what a URL may ask for, what read-only means, and which cause a failed log-in is said to have."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from analytics_assets import database as module
from analytics_assets.database import (
    DatabaseError,
    UnreachableError,
    copy_rows,
    engine,
    failure_cause,
    kept_engines,
    read_rows,
    redacted_errors,
)
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.processes import wait_until


def error_of(url: sa.URL) -> str:
    """What is said of a URL that does not work."""
    with (
        pytest.raises(UnreachableError) as error,
        redacted_errors("looking"),
        engine(url.render_as_string(hide_password=False), "ANALYTICS_SOURCE_URL", read_only=True) as database,
        database.connect(),
    ):
        pass
    assert error.value.__suppress_context__
    return str(error.value)


def shown(url: sa.URL, *names: str) -> dict[str, str]:
    """Settings of a read-only session."""
    with (
        engine(url.render_as_string(hide_password=False), "ANALYTICS_SOURCE_URL", read_only=True) as database,
        database.connect() as connection,
    ):
        return {name: str(connection.exec_driver_sql(f"show {name}").scalar()) for name in names}


def test_engines_are_kept_until_the_end_of_a_run(host: Host) -> None:
    with kept_engines():
        with engine(host.reader_url, "ANALYTICS_SOURCE_URL") as first, first.connect() as connection:
            process = connection.scalar(sa.text("select pg_backend_pid()"))
        with engine(host.reader_url, "ANALYTICS_SOURCE_URL") as second, second.connect() as connection:
            assert connection.scalar(sa.text("select pg_backend_pid()")) == process
        with engine(host.reader_url, "ANALYTICS_SOURCE_URL", read_only=True) as reading:
            assert reading is not first
    alive = sa.text("select count(*) from pg_stat_activity where pid = :process")
    wait_until(lambda: host.connection.scalar(alive, {"process": process}) == 0)
    with engine(host.reader_url, "ANALYTICS_SOURCE_URL") as third:
        assert third is not first


def test_a_connection_that_the_server_has_just_ended_is_replaced(host: Host) -> None:
    with engine(host.reader_url, "ANALYTICS_SOURCE_URL") as kept:
        for _ in range(3):
            with kept.connect() as connection:
                process = connection.scalar(sa.text("select pg_backend_pid()"))
            host.sql(f"select pg_terminate_backend({process}, 10000)")
            with kept.connect() as connection:
                assert connection.scalar(sa.text("select pg_backend_pid()")) != process


def test_rows_are_read_as_they_are(host: Host) -> None:
    with engine(host.reader_url, "ANALYTICS_SOURCE_URL") as database, database.connect() as connection:
        found = read_rows(connection, sa.select(sa.literal("50%, 'so'").label("text"), sa.literal(7).label("number")))
        assert found.read() == "text,number\n\"50%, 'so'\",7\n"


def test_a_connection_that_has_rested_is_tried_before_its_use(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    with engine(host.reader_url, "ANALYTICS_SOURCE_URL") as kept:
        with kept.connect() as connection:
            process = connection.scalar(sa.text("select pg_backend_pid()"))
        host.sql(f"select pg_terminate_backend({process})")
        now[0] += 2
        with kept.connect() as connection:
            assert connection.scalar(sa.text("select pg_backend_pid()")) != process


@pytest.mark.parametrize(
    ("query", "name", "expected"),
    [
        ({"options": "-c statement_timeout=1234"}, "statement_timeout", "1234ms"),
        ({"options": "-c default_transaction_read_only=off -c row_security=on"}, "work_mem", "4MB"),
        ({"application_name": "nightly"}, "application_name", "nightly"),
        ({"connect_timeout": "3"}, "application_name", "analytics-assets"),
        ({}, "statement_timeout", "0"),
    ],
)
def test_what_the_url_asks_for_is_honoured_beside_what_reading_needs(
    host: Host, query: Mapping[str, str], name: str, expected: str
) -> None:
    assert shown(host.url.update_query_dict(query), name, "transaction_read_only", "row_security") == {
        name: expected,
        "transaction_read_only": "on",
        "row_security": "off",
    }


def test_every_transaction_of_a_read_only_engine_refuses_to_write(host: Host) -> None:
    with engine(host.url.render_as_string(hide_password=False), "ANALYTICS_SOURCE_URL", read_only=True) as database:
        for _ in range(2):
            with (
                pytest.raises(DatabaseError, match="ReadOnlySqlTransaction"),
                redacted_errors("writing"),
                database.begin() as connection,
            ):
                connection.exec_driver_sql("insert into signups (event_id) values ('1')")


# --- COPY

ODD: sa.Table = sa.Table(
    "odd",
    sa.MetaData(),
    sa.Column("day", sa.Date),
    sa.Column("text", sa.Text),
    sa.Column("number", sa.BigInteger),
    sa.Column("more", sa.Text),
)
texts = st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
odd_texts = texts | st.text("\\N.\t\n\r\x0b\b \"',", max_size=5)
odd_rows = st.fixed_dictionaries(
    {
        "number": st.none() | st.integers(-(2**63), 2**63 - 1),
        "more": odd_texts,
        "day": st.none() | st.dates(),
        "text": odd_texts,
    }
)


@contextmanager
def odd(host: Host) -> Iterator[sa.Engine]:
    """An engine, and an empty table of that name."""
    host.sql("create table if not exists odd (day date, text text, number bigint, more text); truncate odd")
    with engine(host.url.render_as_string(hide_password=False), "ANALYTICS_DATABASE_URL") as database:
        yield database


@hypothesis_settings(
    deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(odd_rows, max_size=30))
def test_copied_rows_are_what_they_were(host: Host, rows: list[dict[str, object]]) -> None:
    with odd(host) as database, database.begin() as connection:
        copy_rows(connection, ODD, rows)
        found = connection.execute(sa.select(ODD)).mappings()
        in_order = [{column.name: row[column.name] for column in ODD.c} for row in rows]
        assert sorted(map(repr, map(dict, found))) == sorted(map(repr, in_order))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"text": "canary\0"}, "CharacterNotInRepertoire"),
        ({"text": "canary"}, "CheckViolation .*constraint odd_text"),
        ({"number": "canary"}, "InvalidTextRepresentation"),
        ({"number": 2**63}, "NumericValueOutOfRange"),
        ({"day": "canary"}, "InvalidDatetimeFormat"),
    ],
)
def test_a_row_that_cannot_be_copied_is_not_shown_and_costs_all(
    host: Host, change: dict[str, object], error: str
) -> None:
    row: dict[str, object] = {"day": date(2026, 11, 22), "text": "a", "number": 1, "more": "canary"}
    with odd(host) as database:
        host.sql("alter table odd drop constraint if exists odd_text, add constraint odd_text check (text <> 'canary')")
        with (
            pytest.raises(DatabaseError, match=error) as refusal,
            redacted_errors("copying"),
            database.begin() as connection,
        ):
            copy_rows(connection, ODD, [row, row | change])
        assert not isinstance(refusal.value, UnreachableError)
        assert "canary" not in str(refusal.value)
        assert refusal.value.__suppress_context__
        with database.begin() as connection:
            assert connection.execute(sa.select(ODD)).all() == []


def test_a_connection_that_is_lost_while_copying_is_out_of_reach_and_replaced(host: Host) -> None:
    row = {"day": None, "text": "a", "number": 1, "more": None}
    with odd(host) as database:
        host.sql("create function hang_up() returns trigger language plpgsql as"
                 " $$ begin perform pg_terminate_backend(pg_backend_pid()); return new; end $$")  # fmt: skip
        host.sql("create trigger hang_up before insert on odd for each row execute function hang_up()")
        with pytest.raises(UnreachableError), redacted_errors("copying"), database.begin() as connection:
            copy_rows(connection, ODD, [row])
        host.sql("drop trigger hang_up on odd")
        with database.begin() as connection:
            copy_rows(connection, ODD, [row])
            assert len(connection.execute(sa.select(ODD)).all()) == 1


# --- why a log-in fails: on a real server


def test_nobody_listens(host: Host, tmp_path: Path) -> None:
    for url in (
        sa.make_url("postgresql+psycopg2://canary:canary@127.0.0.1:1/canary"),
        host.url.update_query_dict({"host": str(tmp_path)}),
    ):
        assert error_of(url) == (
            "looking: the database cannot be reached:"
            " nobody listens at host and port of the URL; is the server running?"
        )


def test_the_host_name_is_unknown() -> None:
    said = error_of(sa.make_url("postgresql+psycopg2://someone:canary@canary.invalid/canary"))
    assert "the host name in the URL is unknown" in said
    assert "canary" not in said


def test_no_database_has_the_name(host: Host) -> None:
    said = error_of(host.url.set(database="canary"))
    assert "the server has no database of the name in the URL" in said
    assert "canary" not in said


@pytest.mark.parametrize("query", [{"sslmode": "canary"}, {"canary": "1"}, {"options": "-c canary=1"}])
def test_a_parameter_is_unknown(host: Host, query: Mapping[str, str]) -> None:
    said = error_of(host.url.update_query_dict(query))
    assert "a parameter of the URL, or the value of one, is unknown" in said
    assert "canary" not in said


def test_the_login_is_refused(host: Host) -> None:
    host.sql("drop role if exists canary_closed; create role canary_closed nologin")
    try:
        for name in ("canary_closed", "canary_absent"):
            said = error_of(host.url.set(username=name))
            assert "the server refuses the login; check user and password in the URL" in said
            assert "canary" not in said
        host.sql("alter role canary_closed login connection limit 0")
        assert "the server has no free connection" in error_of(host.url.set(username="canary_closed"))
    finally:
        host.sql("drop role canary_closed")


# --- why a log-in fails: texts of servers that no test starts

LOGIN, DATABASE, TLS, CLOSED = "refuses the login", "no database of the name", "TLS fails", "it closed the connection"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ('FATAL:  password authentication failed for user "canary"', LOGIN),
        ("fe_sendauth: no password supplied", LOGIN),
        ('FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "canary", database "x", SSL off', LOGIN),
        ('FATAL:  permission denied for database "canary"', LOGIN),
        ('connection to server at "db" (10.0.0.1), port 5432 failed: SSL error: certificate verify failed', TLS),
        ('root certificate file "/canary/root.crt" does not exist', TLS),
        ('server certificate for "canary" does not match host name "db"', TLS),
        ("server does not support SSL, but SSL was required", TLS),
        ("SSL connection has been closed unexpectedly", CLOSED),
        ("server closed the connection unexpectedly", CLOSED),
        ("FATAL:  no such database: canary", DATABASE),
        ("FATAL:  the database system is starting up", "starting or stopping"),
        ("FATAL:  sorry, too many clients already", "no free connection"),
        ("FATAL:  unsupported startup parameter: options", "a connection pooler refuses a parameter"),
        ('FATAL:  database "role certificate invalid dsn" does not exist', DATABASE),
        (
            'connection to server at "localhost" (::1), port 5432 failed: Connection refused\n'
            'connection to server at "localhost" (127.0.0.1), port 5432 failed: FATAL:  role "canary" does not exist',
            LOGIN,
        ),
        ("FATAL:  canary", "are address, name, login and password in the URL right?"),
    ],
)
def test_each_text_has_one_cause_and_is_not_repeated(text: str, cause: str) -> None:
    assert cause in failure_cause(text)
    assert not re.search("canary|10\\.0|db", failure_cause(text).replace("pg_hba", ""))

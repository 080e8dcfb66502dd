"""Drafts of the source views: what is proposed, what is said to be unclear, and what is not guessed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from analytics_assets import demo
from analytics_assets.cli import main
from analytics_assets.contract import SOURCE_VIEWS
from analytics_assets.sources.app_views import find_view_problems
from analytics_assets.sources.draft import draft
from analytics_assets.sources.hosts import postgresql
from analytics_assets_tests.support.host import Host

EVENTS = "create table meetups (id int primary key, title text);"


@pytest.fixture
def host_sql(make_database: Callable[[str], sa.URL]) -> Callable[[str], sa.Connection]:
    """Make the database of an application from SQL, and connect to it."""

    def make(sql: str) -> sa.Connection:
        connection = sa.create_engine(make_database("drafted"), poolclass=sa.NullPool).connect()
        connection.exec_driver_sql(sql.replace("%", "%%"))
        return connection

    return make


def drafted(connection: sa.Connection) -> dict[str, str]:
    """View -> its part of the draft, which has been run as it is."""
    text = draft(postgresql, connection)
    connection.exec_driver_sql(text.replace("%", "%%"))
    parts = text.split("\n\n")
    return {view.name: next(part for part in parts if part.startswith(f"-- {view.name}:")) for view in SOURCE_VIEWS}


def test_an_application_whose_names_say_it_all_gets_every_view(host_sql: Callable[[str], sa.Connection]) -> None:
    with host_sql(Path(demo.__file__).with_name("app.sql").read_text().split("create schema")[0]) as connection:
        parts = drafted(connection)
        assert [problem for view in SOURCE_VIEWS for problem in find_view_problems(postgresql, connection, view)] == []
    assert "t.created_at as occurred_at" in parts["signups"]
    assert "channel (text)" in parts["signups"]
    assert "cancelled_at (timestamp with time zone) may mark rows as deleted" in parts["signups"]
    assert "t.changed_at as occurred_at" in parts["profile_visibility_changes"]
    assert "not t.withdrawn as turned_on" in parts["consent_changes"]
    assert "withdrawn is read the wrong way round" in parts["consent_changes"]


SIGNUPS = "id int, meetup_id int references meetups, joined_at timestamptz"


@pytest.mark.parametrize(
    ("tables", "said", "is_sql"),
    [
        (f"create table rsvps ({SIGNUPS})", "unclear: joined_at may be null: such a row is in no day", True),
        (f"create table rsvps ({SIGNUPS})", "unclear: meetup_id may be null: such a row is refused", True),
        (f"create table rsvps ({SIGNUPS}, deleted boolean)", "deleted (boolean) may mark rows as deleted", True),
        (f"create table rsvps ({SIGNUPS}, extra jsonb)", "the payload in extra (jsonb) may hold what no column", True),
        (f"create table rsvps ({SIGNUPS}); alter table rsvps enable row level security", "row level security", True),
        (f"create table rsvps ({SIGNUPS}); create table tickets ({SIGNUPS})", "not used: public.tickets", True),
        ("create table rsvps (meetup_id int, created timestamptz)", "is meetup_id (integer) the event?", True),
        ("create table rsvps (meetup_id text, created timestamptz)", "only integers and UUIDs are counted", True),
        (
            "create table orders (id int primary key, meetup_id int references meetups);"
            "create table tickets (order_id int references orders, created timestamptz)",
            "the event is that of public.orders; rows without one there are left out by the join",
            True,
        ),
        (
            f"create schema a; create table a.rsvps ({SIGNUPS}); create table rsvps ({SIGNUPS})",
            "not known: which table is meant; as likely: public.rsvps",
            False,
        ),
        (
            "create table rsvps (meetup_id int references meetups, created timestamp)",
            "not known: in which time zone the application writes created, which has none",
            False,
        ),
        (
            "create table rsvps (meetup_id int references meetups, due timestamptz)",
            "not known: when it happened; candidates: due (timestamp with time zone)",
            False,
        ),
        ("create table rsvps (meetup_id int references meetups)", "when it happened: no column has a time", False),
        ("create table rsvps (created timestamptz)", "not known: which column is the event", False),
        (
            "create table rsvps (first int references meetups, second int references meetups, created timestamptz)",
            "not known: which column is the event; candidates: first (integer), second (integer)",
            False,
        ),
        (
            "create table rsvps (meetup_id numeric, created timestamptz)",
            "not known: how meetup_id (numeric) becomes an integer or a UUID",
            False,
        ),
        ("", "not known: where the application keeps it", False),
        (
            "create table audit_log (meetup_id int references meetups, created timestamptz, action text);"
            "create table other_log (meetup_id int references meetups, created timestamptz, action text)",
            "not known: which values of action mean it",
            False,
        ),
    ],
)
def test_what_is_unclear_is_said_and_what_is_not_known_is_no_sql(
    host_sql: Callable[[str], sa.Connection], tables: str, said: str, is_sql: bool
) -> None:
    with host_sql(EVENTS + tables) as connection:
        part = drafted(connection)["signups"]
        problems = find_view_problems(postgresql, connection, SOURCE_VIEWS[0])
    assert said in part
    assert ("\ncreate view analytics_source.signups" in part) is is_sql
    assert ("-- not known: " in part) is not is_sql
    assert (problems == []) is is_sql


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("consents", "not known: does it keep a row per change?"),
        ("consent_changes", "not known: which column says whether it was turned on or off"),
    ],
)
def test_a_present_state_is_not_taken_for_changes(
    host_sql: Callable[[str], sa.Connection], table: str, said: str
) -> None:
    columns = "meetup_id int references meetups, changed_at timestamptz"
    columns += ", given boolean" if table == "consents" else ", a boolean, b boolean"
    with host_sql(f"{EVENTS} create table {table} ({columns})") as connection:
        assert said in drafted(connection)["consent_changes"]


def test_a_name_cannot_end_a_comment(host_sql: Callable[[str], sa.Connection]) -> None:
    with host_sql(
        f'{EVENTS} create table rsvps ({SIGNUPS}, "deleted\ndrop table rsvps;" boolean, "deleted; --" boolean);'
        f' create table "drop\nrsvps" ({SIGNUPS})'
    ) as connection:
        part = drafted(connection)["signups"]
        assert '"deleted; --" (boolean) may mark' in part
        assert "drop" not in part
        assert connection.exec_driver_sql("select count(*) from rsvps").scalar() == 0


def test_no_row_is_read_and_nothing_is_created(host: Host, tmp_path: Path) -> None:
    host.sql("drop schema analytics_source cascade; insert into signups (event_id, source) values ('canary', 'canary')")
    host.sql("select pg_stat_force_next_flush(), pg_stat_reset()")
    result = CliRunner().invoke(
        main,
        ["sources", "--draft", "--operator-url", host.url.render_as_string(hide_password=False)],
        env={"ANALYTICS_DATA_DIR": str(tmp_path / "data")},
    )
    assert result.exit_code == 0
    assert "create view analytics_source.signups as" in result.output
    assert "canary" not in result.output
    assert not (tmp_path / "data").exists()
    scans = "select coalesce(sum(seq_scan + coalesce(idx_scan, 0)), 0) from pg_stat_user_tables"
    assert host.connection.exec_driver_sql(scans).scalar() == 0
    assert host.connection.exec_driver_sql("select to_regnamespace('analytics_source')").scalar() is None


def test_a_draft_needs_a_database() -> None:
    result = CliRunner().invoke(main, ["sources", "--draft"], env={"ANALYTICS_SOURCE_URL": ""})
    assert result.exit_code == 1
    assert "set ANALYTICS_SOURCE_URL or --operator-url" in result.output
    for arguments, said in (
        (["--draft", "--operator-url", "canary"], "--operator-url is not a database URL"),
        (["--draft", "--operator-url", "postgresql://canary@127.0.0.1:1/canary"], "nobody listens at host and port"),
        (["--operator-url", "postgresql://canary@127.0.0.1:1/canary"], "--operator-url goes with --draft"),
    ):
        refused = CliRunner().invoke(main, ["sources", *arguments])
        assert refused.exit_code > 0
        assert said in refused.output
        assert "canary" not in refused.output

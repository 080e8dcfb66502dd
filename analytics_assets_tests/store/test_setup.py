"""Setting up on servers as they are: time zones that they read differently, publications, other administrators."""

import zoneinfo
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

import pytest
import sqlalchemy as sa

from analytics_assets.contract import TABLES
from analytics_assets.database import DatabaseError
from analytics_assets.settings import Settings, SettingsError
from analytics_assets.store.grants import OWNER
from analytics_assets.store.setup import check_time_zone, init_db, read_move
from analytics_assets_tests.support.activity import fill
from analytics_assets_tests.support.clock import noon_of, set_clock
from analytics_assets_tests.support.database import admin_url, as_superuser
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.pipeline import ALL, Pipeline

# --- time zones


@pytest.fixture(scope="module")
def catalog(server: sa.URL) -> sa.Engine:
    return sa.create_engine(server)


def refusal(catalog: sa.Engine, time_zone: str) -> str:
    """Why a zone is refused, empty when it is not."""
    settings = Settings.from_env({"ANALYTICS_TIMEZONE": time_zone})
    with catalog.connect() as connection:
        try:
            check_time_zone(connection, settings)
        except SettingsError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("name", ["UTC", "Europe/Berlin", "America/Havana", "Asia/Kathmandu", "Etc/GMT+5", "EST"])
def test_a_zone_that_both_read_alike_is_accepted(catalog: sa.Engine, name: str) -> None:
    assert refusal(catalog, name) == ""


@pytest.mark.parametrize("name", ["CET", "EET", "MET", "WET"])
def test_a_name_that_the_server_takes_for_an_abbreviation_is_refused(catalog: sa.Engine, name: str) -> None:
    assert "ANALYTICS_TIMEZONE: the database's server reads this name differently" in refusal(catalog, name)


@pytest.mark.parametrize("name", ["posix/Europe/Berlin", "right/Europe/Berlin"])
def test_a_name_that_the_server_does_not_know_is_refused(catalog: sa.Engine, name: str) -> None:
    """Linux has these folders; where Python does not know them, the settings refuse the name already."""
    try:
        said = refusal(catalog, name)
    except SettingsError as error:
        said = str(error)
        assert name not in zoneinfo.available_timezones()
    else:
        assert "the database's server does not know this name" in said
    assert said.startswith("ANALYTICS_TIMEZONE")
    assert name not in said


def test_a_zone_that_is_refused_changes_nothing(settings: Settings) -> None:
    for act in (init_db, read_move):
        with pytest.raises(SettingsError, match="reads this name differently"):
            act(admin_url(settings), replace(settings, time_zone="CET", retention_days=3))
    init_db(admin_url(settings), settings)
    assert enforced(settings) == (settings.retention_days, settings.time_zone)


def test_a_stored_zone_that_the_server_does_not_know_can_be_replaced(settings: Settings) -> None:
    """An earlier version accepted it, and every command failed afterwards."""
    as_superuser(settings, "update analytics.settings set time_zone = 'posix/Europe/Berlin'")
    move = read_move(admin_url(settings), settings)
    assert move
    assert move.then == move.first
    init_db(admin_url(settings), settings)
    assert enforced(settings) == (settings.retention_days, settings.time_zone)


def enforced(settings: Settings) -> tuple[int, str]:
    engine = sa.create_engine(admin_url(settings))
    with engine.connect() as connection:
        found = connection.exec_driver_sql("select retention_days, time_zone from analytics.settings").one()
    engine.dispose()
    return found.retention_days, found.time_zone


# --- what a change of the settings would move


@pytest.mark.parametrize(("days", "moved"), [(180, 0), (179, 1), (30, 150), (365, 0)])
def test_how_far_another_period_moves_the_first_day(settings: Settings, days: int, moved: int) -> None:
    move = read_move(admin_url(settings), replace(settings, retention_days=days))
    assert move
    assert (move.then - move.first).days == moved
    assert move.retention_days == 180
    assert enforced(settings) == (180, settings.time_zone), "only looked"


@pytest.mark.parametrize(("time_zone", "moved"), [("Pacific/Kiritimati", 1), ("Etc/GMT+12", 0)])
def test_how_far_another_zone_moves_the_first_day(settings: Settings, time_zone: str, moved: int) -> None:
    """It is noon: 14 hours ahead of UTC at least tomorrow may have begun, and 12 behind yesterday is not over."""
    berlin = replace(settings, time_zone="Europe/Berlin")
    init_db(admin_url(settings), berlin)
    set_clock(berlin, noon_of(berlin, berlin.today() + timedelta(days=400)))
    move = read_move(admin_url(settings), replace(berlin, time_zone=time_zone))
    assert move
    assert (move.then - move.first).days == moved


def test_a_database_that_is_not_set_up_moves_nowhere(
    make_database: Callable[[str], sa.URL], settings: Settings
) -> None:
    assert read_move(make_database("empty").render_as_string(hide_password=False), settings) is None


# --- replication


def test_a_publication_of_all_tables_is_in_nobody_s_way(pipeline: Pipeline, host: Host, yesterday: date) -> None:
    settings = pipeline.settings
    days = [yesterday - timedelta(days=1), yesterday]
    fill(host, settings, days)
    assert pipeline.run(ALL, days[0]).success
    as_superuser(settings, "create publication everything for all tables")
    for _ in range(2):  # the second one deletes what the first has inserted
        assert pipeline.run([*ALL, "published_counts", "product_friction"], *days).success
    init_db(admin_url(settings), replace(settings, retention_days=179))
    init_db(admin_url(settings), settings)
    set_clock(settings, noon_of(settings, yesterday + timedelta(days=181)))
    assert pipeline.retain().success
    assert pipeline.sql("select * from analytics.collected_days") == []


IDENTITY = """
select n.nspname || '.' || c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname in ('analytics', 'published') and c.relkind in ('r', 'p') and c.relreplident <> 'f'
  and not (c.relreplident = 'd' and exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary))
"""


def test_every_table_has_a_replica_identity(settings: Settings, yesterday: date) -> None:
    before, after = yesterday - timedelta(days=1), yesterday
    # A day of before the upgrade.
    as_superuser(
        settings,
        f"select analytics.create_days('{before}')",
        *(f"alter table analytics.{table}_{before:%Y%m%d} replica identity default" for table in TABLES),
        *(f"alter table analytics.{table} replica identity default" for table in TABLES),
        "alter table analytics.settings drop column cutoff, drop column cutoff_at",
        "drop function analytics.confirm_cutoff",
        "update analytics.alembic_version set version_num = '0007'",
    )
    init_db(admin_url(settings), settings)
    as_superuser(settings, f"select analytics.create_days('{after}')")
    engine = sa.create_engine(admin_url(settings))
    with engine.connect() as connection:
        assert connection.exec_driver_sql(IDENTITY).all() == []
    engine.dispose()


# --- a second administrator


def test_a_second_administrator_is_told_which_membership_is_missing(
    make_database: Callable[[str], sa.URL], settings: Settings, server: sa.URL
) -> None:
    """Before PostgreSQL 16 it is not missing."""
    url = make_database("second")
    with sa.create_engine(server, isolation_level="AUTOCOMMIT").connect() as superuser:
        superuser.exec_driver_sql(
            "drop role if exists canary_admin; create role canary_admin login createrole;"
            f" grant create, connect on database {url.database} to canary_admin"
        )
        init_db(url.render_as_string(hide_password=False), settings)
        superuser.exec_driver_sql(f"grant connect on database {url.database} to canary_admin")
        second = url.set(username="canary_admin").render_as_string(hide_password=False)
        with pytest.raises(DatabaseError) as refused:
            init_db(second, settings)
        assert f"not a member of {OWNER}" in str(refused.value)
        assert f"`grant {OWNER} to LOGIN`" in str(refused.value)
        assert "canary" not in str(refused.value)
        with pytest.raises(DatabaseError, match=f"not a member of {OWNER}"):
            read_move(second, settings)
        superuser.exec_driver_sql(f"grant {OWNER} to canary_admin")
        init_db(second, settings)
        superuser.exec_driver_sql(
            f"revoke {OWNER} from canary_admin; revoke all on database {url.database} from canary_admin;"
            " drop role canary_admin"
        )

"""The check of the pipeline's login fires for everything it could read beyond the views, and says what ends that."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from analytics_assets.definitions import build_definitions
from analytics_assets.defs.checks import ONLY_VIEWS, login_checks
from analytics_assets.defs.jobs import daily_metrics_job
from analytics_assets.defs.partitions import range_tags
from analytics_assets_tests.support.database import set_up
from analytics_assets_tests.support.host import Host
from analytics_assets_tests.support.pipeline import ALL, Pipeline, everything_said, failures, run_check, run_checks

LOGIN = "nosy"
"""A login of its own, that has the views through a group: what a test does to it concerns no other test."""


@dataclass
class Watched:
    """A pipeline that logs in to the host's database as LOGIN."""

    host: Host
    pipeline: Pipeline

    def check(self) -> dg.AssetCheckEvaluation:
        """Execute the three checks by themselves, as the UI does; they agree."""
        found = run_checks(self.pipeline, dg.AssetSelection.checks(login_checks)).get_asset_check_evaluations()
        assert {e.asset_key.path[-1] for e in found} == {"signups", "profile_visibility_changes", "consent_changes"}
        assert {e.check_name for e in found} == {ONLY_VIEWS}
        assert len({(e.passed, e.description) for e in found}) == 1
        return found[0]


@pytest.fixture
def watched(pipeline: Pipeline, host: Host) -> Iterator[Watched]:
    host.sql(f"create role crowd; create role {LOGIN} login; grant analytics_source_reader to {LOGIN}")
    url = host.url.set(username=LOGIN).render_as_string(hide_password=False)
    yield Watched(host, replace(pipeline, settings=replace(pipeline.settings, source_url=url)))
    host.sql(f"drop owned by crowd, {LOGIN}; drop role crowd, {LOGIN}")


def test_each_check_can_be_executed_by_itself(pipeline: Pipeline) -> None:
    for view in ("signups", "profile_visibility_changes", "consent_changes"):
        assert run_check(pipeline, f"analytics_source/{view}", ONLY_VIEWS).passed


def test_a_login_that_reads_the_views_alone_passes(watched: Watched, pipeline: Pipeline) -> None:
    for settings in (watched.pipeline.settings, pipeline.settings):
        found = replace(watched, pipeline=replace(pipeline, settings=settings)).check()
        assert found.passed
        assert found.description is None


EXCESSES = {
    "a superuser": (f"alter role {LOGIN} superuser", f"role {LOGIN} is a superuser"),
    "replication": (f"alter role {LOGIN} replication", f"role {LOGIN} can copy the whole server"),
    "row security": (f"alter role {LOGIN} bypassrls", f"role {LOGIN} bypasses row security"),
    "roles of its own": (f"alter role {LOGIN} createrole", f"role {LOGIN} can create roles and join them"),
    "all data": (f"grant pg_read_all_data to {LOGIN}", "everything that pg_read_all_data may do"),
    "files": (f"grant pg_read_server_files to {LOGIN}", "everything that pg_read_server_files may do"),
    "a table": (f"grant select on signups to {LOGIN}", "public.signups"),
    "a column": (f"grant select (email) on signups to {LOGIN}", "public.signups"),
    "a table for PUBLIC": ("grant select on signups to public", "public.signups"),
    "a table through a group that is not inherited": (
        f"grant select on consent to crowd; grant crowd to {LOGIN} with inherit false",
        "public.consent",
    ),
    "a table of its own": (f"create table own (x int); alter table own owner to {LOGIN}", "public.own"),
    "a partition": (
        "create table visits (day int, email text) partition by list (day);"
        f" create table visits_1 partition of visits for values in (1); grant select on visits_1 to {LOGIN}",
        "public.visits_1",
    ),
    "a view elsewhere": (
        f"create view everyone as table consent; grant select on everyone to {LOGIN}",
        "public.everyone",
    ),
    "a view beside ours": (
        f"create view analytics_source.emails as table signups; grant select on analytics_source.emails to {LOGIN}",
        "analytics_source.emails",
    ),
    "a materialized view": (
        f"create materialized view rolled as table consent; grant select on rolled to {LOGIN}",
        "public.rolled",
    ),
    "a foreign table": (
        "create foreign data wrapper afar; create server away foreign data wrapper afar;"
        f" create foreign table visitors (x int) server away; grant select on visitors to {LOGIN}",
        "public.visitors",
    ),
    "a foreign server": (
        "create foreign data wrapper afar; create server away foreign data wrapper afar;"
        f" grant usage on foreign server away to {LOGIN}",
        "foreign server away",
    ),
    "a sequence": (f"create sequence numbers; grant usage on numbers to {LOGIN}", "public.numbers"),
    "a schema of our name that is the host's": (
        f"create schema analytics; create table analytics.visits (email text);"
        f" grant usage on schema analytics to {LOGIN}; grant select on analytics.visits to {LOGIN}",
        "analytics.visits",
    ),
    "samples of columns": (f"grant select on pg_statistic to {LOGIN}", "pg_catalog.pg_statistic"),
    "one column of the passwords": (
        f"grant select (rolpassword) on pg_authid to {LOGIN}",
        "pg_catalog.pg_authid",
    ),
    "a function that reads files": (
        f"grant execute on function pg_read_file(text) to {LOGIN}",
        "function pg_catalog.pg_read_file(text)",
    ),
    "a function that runs as its owner": (
        'create function emails("from" int) returns setof text language sql security definer'
        " begin atomic select email from signups; end",
        'function public.emails("from" integer)',
    ),
    "a procedure that runs as its owner": (
        "create procedure email(inout found text) language sql security definer"
        " begin atomic select email from signups; end",
        "function public.email(INOUT found text)",
    ),
    "a large object": (
        f"select lo_from_bytea(77, 'canary'); grant select on large object 77 to {LOGIN}",
        "large object 77",
    ),
    "every large object": (
        "do $$ begin execute 'alter database ' || current_database() || ' set lo_compat_privileges = on'; end $$",
        "every large object (lo_compat_privileges is on)",
    ),
}


@pytest.mark.parametrize(("grant", "what"), EXCESSES.values(), ids=list(EXCESSES))
def test_what_it_could_read_fails_the_check_and_the_sql_in_it_ends_that(
    watched: Watched, grant: str, what: str
) -> None:
    try:
        watched.host.sql(grant)
        found = watched.check()
        assert not found.passed
        assert found.severity is dg.AssetCheckSeverity.ERROR
        assert found.description
        (line,) = re.findall(r"^- (.*)$", found.description, re.MULTILINE)
        assert line.startswith(f"{what}: ")
        watched.host.sql(line.removeprefix(f"{what}: "))
        assert watched.check().passed
    finally:
        watched.host.sql(f"alter role {LOGIN} nosuperuser noreplication nobypassrls nocreaterole")


def test_a_column_too_many_in_a_view_fails_the_check(watched: Watched) -> None:
    view = "create or replace view analytics_source.signups as select event_id, occurred_at, source, email from signups"
    watched.host.sql(view)
    assert "- analytics_source.signups.email: create the view again with only event_id, occurred_at, source." in str(
        watched.check().description
    )


def test_what_it_can_have_without_reading_is_no_finding(watched: Watched) -> None:
    watched.host.sql(
        "create function noted() returns trigger language plpgsql security definer as 'begin return new; end';"
        f" grant insert, update, delete on signups to {LOGIN};"
        " create schema closed; create table closed.emails (email text);"
        f" grant select on closed.emails to {LOGIN}"
    )
    assert watched.check().passed


def test_many_findings_are_cut_short(watched: Watched) -> None:
    for number in range(30):
        watched.host.sql(f"create table many_{number} (x int); grant select on many_{number} to {LOGIN}")
    assert "- and 10 more" in str(watched.check().description)


def test_our_own_schema_in_the_same_database_is_none_of_the_hosts(
    watched: Watched, pipeline: Pipeline, make_database: Callable[[str], sa.URL], tmp_path: Path
) -> None:
    with Host.create(make_database("both")) as both:
        settings = set_up(both.url, "", tmp_path)
        assert settings.source_url == settings.database_url
        both.sql(
            "grant usage on schema analytics_source to analytics_writer;"
            " grant select on all tables in schema analytics_source to analytics_writer"
        )
        alone = Watched(both, replace(pipeline, settings=settings))
        assert alone.check().passed
        both.sql("grant select on signups to analytics_writer")
        assert "- public.signups: revoke all on public.signups from analytics_writer, public;" in str(
            alone.check().description
        )


def test_the_daily_job_runs_it_and_counts_all_the_same(watched: Watched, yesterday: date) -> None:
    watched.host.sql(f"grant select on signups to {LOGIN}")
    job = build_definitions(watched.pipeline.settings).resolve_job_def(daily_metrics_job.name)
    result = job.execute_in_process(instance=watched.pipeline.instance, tags=range_tags(yesterday, yesterday))
    assert result.success
    failed = [list(e.asset_key.path) for e in result.get_asset_check_evaluations() if not e.passed]
    assert sorted(failed) == [
        ["analytics_source", view] for view in ("consent_changes", "profile_visibility_changes", "signups")
    ]
    assert {asset: watched.pipeline.materialized(asset) for asset in ALL} == {asset: {yesterday} for asset in ALL}


def test_a_database_out_of_reach_is_named_without_its_address(pipeline: Pipeline, tmp_path: Path) -> None:
    away = replace(pipeline.settings, source_url=f"postgresql+psycopg2://canary:canary@/canary?host={tmp_path}")
    selection = dg.AssetSelection.checks(login_checks)
    result = run_checks(replace(pipeline, settings=away), selection, raise_on_error=False)
    (text,) = failures(result).values()
    assert "(ANALYTICS_SOURCE_URL): the database cannot be reached" in text
    assert "canary" not in everything_said(pipeline.instance)

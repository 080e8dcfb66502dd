"""The command line: parse arguments, call the other modules, print the result.

Commands import their own modules, so that `--help` is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import click

from analytics_assets import settings as settings_module
from analytics_assets.contract import EVENT_DATE, METRICS, SourceView
from analytics_assets.database import DatabaseError, place
from analytics_assets.dictionary import markdown
from analytics_assets.guard import obeys
from analytics_assets.settings import Settings, SettingsError
from analytics_assets.ship import ship

if TYPE_CHECKING:
    from dagster import DagsterInstance, RepositoryDefinition

    from analytics_assets.store import Store

P = ParamSpec("P")

DAGSTER_HOME = click.option(
    "--dagster-home",
    envvar="DAGSTER_HOME",
    type=click.Path(file_okay=False, path_type=Path),
    help="Dagster's folder. Default: DAGSTER_HOME, else dagster in the data folder.",
)
_PORTS = click.IntRange(1, 65535)
PORT = click.option("--port", type=_PORTS, default=3000, show_default=True, help="Port of the UI, on 127.0.0.1.")

_MAX_LINES = 20
"""Problems of the dumps that are printed. The rest is a number."""

_EPILOG = "\b\nSettings (environment):\n" + "\n".join(
    f"  {name}\n      {meaning.replace('`', '')}" for name, meaning in settings_module.VARIABLES.items()
)


def _to_day(_context: click.Context, _option: click.Parameter, text: str | None) -> date | None:
    """Return the day that an option names. Raises BadParameter when the text is not a day."""
    if text is None:
        return None
    if not obeys(EVENT_DATE, text):
        raise click.BadParameter(EVENT_DATE.rule)
    return date.fromisoformat(text)


def _report_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Print the message of the package's own errors instead of a traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from analytics_assets.local.processes import ServerError

        try:
            command(*args, **kwargs)
        except (SettingsError, DatabaseError, ServerError) as error:
            raise click.ClickException(str(error)) from None

    return run


def _waiting(text: str) -> AbstractContextManager[object]:
    """Show on stderr, if it is a terminal, what is taking time. Print nothing inside: Rich would send it to stderr."""
    from rich.console import Console

    return Console(stderr=True).status(text)


def _say_place(what: str, url: str | None) -> None:
    """Say which database is looked at."""
    click.echo(f"{what}: {place(url)}")


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="analytics-assets")
def main() -> None:
    """Daily usage counts without personal data, as Dagster assets.

    New here? Run `analytics-assets demo`: it shows everything with a demo application. For a real application, create
    the source views, set ANALYTICS_SOURCE_URL, check with `analytics-assets sources`, then run `analytics-assets up`.
    """


@main.command()
@PORT
@_report_errors
def up(port: int) -> None:
    """Start the Dagster UI and daemon. An embedded PostgreSQL replaces each URL that is not set."""
    from analytics_assets.local import server, status

    server.exit_on_sigterm()
    with server.databases(Settings.from_env()) as settings, server.alone(settings):
        click.echo("Before this start:")
        status.show(status.look_before_start(settings, _repository(settings)), settings)
        with server.dagster_dev(settings, port) as process:
            try:
                process.wait()
            except KeyboardInterrupt:
                click.echo("Stopping.")
                return
    # With status 0, too, when its daemon was killed.
    raise click.ClickException("Dagster has ended unexpectedly; see its output above")


@main.command()
@PORT
@click.option(
    "--app-port", type=_PORTS, default=3001, show_default=True, help="Port of the demo application, on 127.0.0.1."
)
@click.option("--once", is_flag=True, help="Exit after the summary; the status is non-zero if anything is not green.")
@_report_errors
def demo(port: int, app_port: int, once: bool) -> None:
    """Run everything with a demo application.

    It has 200 days of made-up activity, and every retained day is backfilled. The application runs as well: clicks in
    it today appear in tomorrow's numbers.

    The demo ignores the URLs that are set and stores everything in the folder `demo` of the data folder. Delete that
    folder to reset the demo.
    """
    from analytics_assets.demo import run as demonstration
    from analytics_assets.local import server

    server.exit_on_sigterm()
    if not demonstration.run(Settings.from_env(), port, app_port, once=once):
        raise click.ClickException("not everything is green; run it without --once and see the UI")


@main.command("init-db")
@click.option(
    "--admin-url",
    envvar="ANALYTICS_DATABASE_URL",
    help="URL of a login that may create roles and schemas in the analytics database. Default: ANALYTICS_DATABASE_URL.",
)
@click.option(
    "--shorten-retention",
    is_flag=True,
    help="Let days expire that a shorter period, or another time zone, ends. Says first which days those are.",
)
@click.option(
    "--dagster-home",
    envvar="DAGSTER_HOME",
    type=click.Path(file_okay=False, path_type=Path),
    help="Dagster's folder, to look for what would expire. Default: DAGSTER_HOME, else dagster in the data folder.",
)
@_report_errors
def init_db(admin_url: str | None, shorten_retention: bool, dagster_home: Path | None) -> None:
    r"""Create or upgrade the analytics database.

    This sets up the schemas, the roles, the time zone and the retention period, and keeps all data. The roles are
    analytics_owner (no login), analytics_writer (the pipeline), analytics_reader (the core team) and published_reader
    (dashboards for everybody else). `analytics-assets grants` shows their rights. Afterwards, set a password for the
    logins: \password in psql.
    """
    from analytics_assets.local import server

    settings = Settings.from_env()
    shorten = click.echo if shorten_retention else None
    if admin_url:
        url = settings_module.database_url(admin_url, "--admin-url")
        server.set_up(url, settings, shorten=shorten, home=dagster_home)
    else:
        with server.databases(settings, shorten=shorten):
            pass
    click.echo(
        f"Schema analytics is up to date; retention: {settings.retention_days} days; time zone: {settings.time_zone}."
    )


@main.command()
@click.option("--draft", is_flag=True, help="Print SQL that could create the views, to be reviewed, and check nothing.")
@click.option(
    "--operator-url", help="With --draft: URL of a login of the host's database. Default: ANALYTICS_SOURCE_URL."
)
@_report_errors
def sources(draft: bool, operator_url: str | None) -> None:
    """Check the source views and the dump folder.

    The columns of the views must match the contract; none of their rows is read. The dumps of the newest finished day
    and of today are parsed as collecting does.

    With --draft, print SQL that could create the views instead. It follows from names and types of the host's tables,
    and says what is unclear.
    """
    from analytics_assets.local.processes import ServerError

    if draft:
        _print_draft(operator_url)
        return
    if operator_url:
        raise click.UsageError("--operator-url goes with --draft")
    settings = Settings.from_env()
    problems = 0
    try:
        problems += _check_views(settings)
    except (DatabaseError, ServerError) as error:  # the dumps can be checked all the same
        problems += 1
        unset = "" if settings.source_url else "ANALYTICS_SOURCE_URL is not set, so those of a trial are looked for: "
        click.echo(f"source views: {unset}{error}")
    problems += _check_dumps(settings)
    if problems:
        raise click.ClickException(f"{problems} problem(s)")


def _check_views(settings: Settings) -> int:
    """Print what is wrong with each source view. Return the number of problems."""
    from analytics_assets.local import server
    from analytics_assets.sources.app_views import find_view_problems
    from analytics_assets.sources.hosts import open_catalog
    from analytics_assets.sources.login import summarize

    problems = 0
    # Without a URL, check the embedded database, where a trial may have created the views.
    with nullcontext(settings) if settings.source_url else server.existing_databases(settings) as ready:
        _say_place("Source views", ready.source_url)
        with open_catalog(ready.source_url) as (host, connection):
            for metric in METRICS:
                if not isinstance(metric.origin, SourceView):
                    continue
                found = find_view_problems(host, connection, metric.origin)
                problems += len(found)
                click.echo(f"{metric.asset}: " + ("ok" if not found else "refused"))
                for problem in found:
                    click.echo(f"  {problem}")
            for warning in summarize(host.find_excess_rights(connection)):
                click.echo(f"warning: {warning}")
    return problems


def _check_dumps(settings: Settings) -> int:
    """Print what is wrong with the dumps of the newest days. Return the number of problems."""
    from analytics_assets.sources.counter_dumps import check_newest_days

    days, refused = check_newest_days(settings)
    parsed = f" (parsed: {', '.join(map(str, days))})" if days else ""
    click.echo(f"counter dumps: {'refused' if refused else 'ok'}{parsed}")
    for problem in refused[:_MAX_LINES]:
        click.echo(f"  {problem}")
    if len(refused) > _MAX_LINES:
        click.echo(f"  and {len(refused) - _MAX_LINES} more")
    return len(refused)


@main.command("repair-dumps")
@_report_errors
def repair_dumps() -> None:
    """Restore the first bytes of counter dumps that the web application's server has overwritten.

    A day with such a dump is refused: `(row) is not a line of JSON`, in line 1. This command needs no database. Run it
    as the web application's user, who owns the dumps. Afterwards, collect the day again.
    """
    from analytics_assets.sources.repair import repair_dumps

    settings = Settings.from_env()
    if settings.dump_url:
        raise SettingsError("a dump is repaired where it is written: name the web application's folder, and ship again")
    try:
        repaired = repair_dumps(settings.dump_dir)
    except OSError:
        raise click.ClickException("cannot read the dump folder: set ANALYTICS_DUMP_DIR to the telemetry's") from None
    for where in repaired.restored:
        click.echo(f"{where}: restored")
    for problem in repaired.problems:
        click.echo(str(problem))
    if repaired.problems:
        raise click.ClickException(f"{len(repaired.problems)} dump(s) could not be repaired")
    if not repaired.restored:
        click.echo("No dump has damaged first bytes.")


def _print_draft(operator_url: str | None) -> None:
    from analytics_assets.sources.draft import draft
    from analytics_assets.sources.hosts import open_catalog

    variable = "--operator-url" if operator_url else "ANALYTICS_SOURCE_URL"
    url = settings_module.source_url(operator_url, variable) if operator_url else Settings.from_env().source_url
    if url is None:
        raise SettingsError("a draft needs the host application's database: set ANALYTICS_SOURCE_URL or --operator-url")
    with open_catalog(url, variable) as (host, connection):
        click.echo(f"-- Database: {place(url)}")
        click.echo(draft(host, connection))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of all lines.")
@DAGSTER_HOME
@click.pass_context
def status(context: click.Context, as_json: bool, dagster_home: Path | None) -> None:
    """Say on one screen whether everything works.

    The exit status is 0 if everything is ok, 1 with a warning, 2 with something red or if nothing can be said. Nothing
    is started, written or created. docs/operations.md says what each line means and what to do.
    """
    import json

    from analytics_assets.contract import ContractError
    from analytics_assets.local import status as local
    from analytics_assets.local.processes import ServerError
    from analytics_assets.operations.status import exit_code

    # By itself, Python ends with 1, which means a warning here.
    try:
        settings = Settings.from_env()
        lines = local.look(settings, _repository(settings), dagster_home)
    except (SettingsError, ContractError, DatabaseError, ServerError) as error:
        click.echo(f"Error: {error}", err=True)
        context.exit(2)
    except ImportError:
        raise  # of an extra: `__main__` names it
    except Exception as error:  # its text may hold a value
        click.echo(f"Error: the installation cannot be looked at: {type(error).__name__}", err=True)
        context.exit(2)
    if as_json:
        click.echo(json.dumps([line.as_json() for line in lines], indent=2))
    else:
        local.show(lines, settings)
    context.exit(exit_code(lines))


def _repository(settings: Settings) -> RepositoryDefinition:
    """Return what Dagster loads on these settings: which schedules, sensors and checks there should be."""
    from analytics_assets.definitions import build_definitions

    return build_definitions(settings).get_repository_def()


@main.command()
@click.option("--dry-run", is_flag=True, help="Show what would be removed, and remove nothing.")
@DAGSTER_HOME
@click.option(
    "--confirm-cutoff",
    "confirmed",
    callback=_to_day,
    metavar="DATE",
    help="Confirm that this is the first day that is kept (YYYY-MM-DD), when the check cutoff_is_certain is red.",
)
@_report_errors
def retention(dry_run: bool, dagster_home: Path | None, confirmed: date | None) -> None:
    """Remove expired days from every retention target.

    The retention targets are the tables, the counter dumps, and Dagster's records. The sensor `retention_sensor` does
    this every day. Run this command after a restore from a backup, before anyone reads the data. The exit status is
    non-zero when expired days are left.
    """
    from rich.console import Console
    from rich.table import Table

    from analytics_assets.local import server
    from analytics_assets.retention.sweep import MANUAL, apply_retention
    from analytics_assets.store import open_store
    from analytics_assets.store.expiry import confirm_cutoff, read_cutoff

    if dry_run and confirmed:
        raise click.UsageError("--dry-run only looks: look first, then confirm")
    with server.existing_databases(Settings.from_env()) as settings:
        _say_place("Counts", settings.database_url)
        _say_place("Dagster's records", settings.dagster_url)
        with open_store(settings) as store:
            cutoff = read_cutoff(store)
            if confirmed:
                confirm_cutoff(store, confirmed)
            elif cutoff.doubt and not dry_run:
                raise DatabaseError(cutoff.doubt)
            verb = "Looking for" if dry_run else "Removing"
            open_dagster = server.dagster_storage if dry_run else server.dagster_instance
            with open_dagster(settings, dagster_home) as dagster, _waiting(f"{verb} expired days"):
                before, reports = apply_retention(settings, dagster, MANUAL, dry_run=dry_run)
    title = f"{'Expired' if dry_run else 'Removed'}: days before {before}"
    table = Table("retention target", "days", "rows", "oldest day left", title=title)
    for report in reports:
        amounts = (f"{report.expired.days:,}", f"{report.expired.rows:,}")
        table.add_row(report.target, *amounts, f"[red]{report.problem}" if report.problem else str(report.oldest or ""))
    Console().print(table)
    if dry_run and cutoff.doubt:
        click.echo(f"warning: {cutoff.doubt}")
    if problems := sum(bool(report.problem) for report in reports):
        raise click.ClickException(f"{'checking' if dry_run else 'removing'} failed for {problems} retention target(s)")


def _write_pages(store: Store, instance: DagsterInstance | None) -> None:
    """Write all pages anew, or say which are not written."""
    from analytics_assets.defs.pages import read_health
    from analytics_assets.publication.pages.publish import INSTALLED, write_core_pages, write_published_pages

    if not INSTALLED:
        click.echo("No page is written: that needs the extra \"pages\": pip install 'analytics-assets[pages]'")
        return
    with _waiting("Writing the published pages"):
        write_published_pages(store)
    if instance is None:
        click.echo("The core team's pages are not written: they say which checks fail, as Dagster records it.")
        return
    with _waiting("Writing the core team's pages"):
        checks = _repository(store.settings).asset_graph.asset_check_keys
        write_core_pages(store, read_health(instance, checks))


@main.command()
@click.option(
    "--fill",
    "day",
    callback=_to_day,
    metavar="DAY",
    help="Publish this day (YYYY-MM-DD) by itself: it was not collected in its turn, or is before the first one.",
)
@DAGSTER_HOME
@_report_errors
def publish(day: date | None, dagster_home: Path | None) -> None:
    """Publish the closed days: running totals in fives, in schema published, for people outside the core team.

    The asset published_counts does it after every daily run. By hand it is for a gap: collect the day, then publish it
    with --fill. A day is closed once the daily job has collected it for the last time. A series waits for a day that a
    run is about to collect. What is published is never changed; running this again publishes nothing. The exact counts
    stay in schema analytics. All pages are written anew; `analytics-assets serve` shows them.
    """
    from contextlib import ExitStack

    from analytics_assets.local import server
    from analytics_assets.operations.runs import FAILED_RUNS, days_awaited
    from analytics_assets.publication.publish import PublicationError, fill, find_waits, publish_closed
    from analytics_assets.store import open_store
    from analytics_assets.store.gaps import missing_days
    from analytics_assets.store.published import read_last_published

    with ExitStack() as stack:
        settings = stack.enter_context(server.existing_databases(Settings.from_env(), needs_dagster=False))
        store = stack.enter_context(open_store(settings))
        instance = None
        try:
            instance = stack.enter_context(server.existing_instance(settings, dagster_home))
        except (SettingsError, DatabaseError) as error:
            click.echo(f"Dagster's records cannot be read: {error}.")
        if day is None and instance is None:
            click.echo("So any missing day may be about to be collected, and every series stops before its first one.")
        waits: dict[str, date] = {}
        try:
            if day is None:
                missing = missing_days(store)
                awaited = missing if instance is None else days_awaited(instance, missing)
                with _waiting("Publishing the closed days"):
                    made = publish_closed(store, awaited)
                waits = find_waits(store, awaited)
            else:
                made = fill(store, day)
        except PublicationError as error:
            raise click.ClickException(str(error)) from None
        _write_pages(store, instance)
        with store.transaction("reading what is published") as connection:
            published = read_last_published(connection)
    for each in made:
        gone = f", {each.not_collected} not collected" if each.not_collected else ""
        click.echo(f"{each.event_name}: {each.first} to {each.last}: {each.published} {each.unit}(s) published{gone}")
    queued = f"a run is about to collect it, or fewer than {FAILED_RUNS} have failed to"
    for name, first in waits.items():
        click.echo(f"{name}: waits for {first}: {'it is missing' if instance is None else queued}")
    if not made and not waits:
        why = "every closed day is published" if published else "no closed day has been collected"
        click.echo(f"Nothing to publish: {why}.")


@main.command()
@click.option("--port", type=_PORTS, default=3002, show_default=True, help="Port of the pages, on 127.0.0.1.")
@_report_errors
def serve(port: int) -> None:
    """Show the pages on this machine only, with the headers that the documentation gives nginx.

    Whoever uses this machine sees the core team's exact numbers here, too. For other people, let nginx serve the pages
    and the web application decide who may see which.
    """
    from analytics_assets.local import pages, server

    settings = Settings.from_env()
    server.exit_on_sigterm()
    with pages.serve(settings.publish_dir, port) as running:
        for path in pages.list_indexes(settings.publish_dir):
            click.echo(f"http://{server.HOST}:{running.server_port}/{path}")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            click.echo("Stopping.")


@main.command()
@click.option(
    "--pages", is_flag=True, help="Execute the steps that write the pages, too: on the machine that serves them."
)
@_report_errors
def worker(pages: bool) -> None:
    """Execute steps of the runs that other machines start, one at a time.

    ANALYTICS_EXECUTOR names the Redis that hands them out. Every other setting has to be the same on all machines.
    """
    from analytics_assets.workers import run_worker

    run_worker(Settings.from_env(), pages=pages)


@main.command()
@click.argument("server", type=click.Choice(["analytics", "host"]), required=False)
@click.option(
    "--kind",
    type=click.Choice(["postgresql", "mysql"]),
    help="Kind of the host's database; mysql is MariaDB, too. Default: that of ANALYTICS_SOURCE_URL, else postgresql.",
)
@_report_errors
def grants(server: str | None, kind: str | None) -> None:
    """Print the SQL that creates the roles and grants their rights.

    The argument selects the part of the analytics database or of the host's database; the default is both. init-db runs
    the first part. The operator of the host runs the second one when the views exist:
    `analytics-assets grants host | psql events`, or `analytics-assets grants host --kind mysql | mariadb`. It may be
    run again at any time, and it sets no passwords.
    """
    from analytics_assets.sources.hosts import HOSTS, find_host
    from analytics_assets.store.grants import ANALYTICS

    host = (HOSTS[kind] if kind else find_host(Settings.from_env().source_url)).GRANTS
    click.echo({"analytics": ANALYTICS, "host": host, None: f"{ANALYTICS}\n{host}"}[server], nl=False)


@main.command()
@click.option("--write", type=click.Path(dir_okay=False, path_type=Path), help="Write it to this file instead.")
def dictionary(write: Path | None) -> None:
    """Print the data dictionary in Markdown. The contract generates it: every metric and field."""
    if write:
        write.write_text(markdown(), encoding="utf-8")
    else:
        click.echo(markdown(), nl=False)


main.add_command(ship)

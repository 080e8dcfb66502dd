"""The command line. It parses, calls and prints; what it calls lives elsewhere.

A command imports what only it needs, so that `--help` answers at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import ParamSpec

import click

from analytics_assets import settings as settings_module
from analytics_assets.database import DatabaseError, engine, redacted_errors
from analytics_assets.dictionary import markdown
from analytics_assets.settings import Settings, SettingsError

P = ParamSpec("P")

PORT = click.option("--port", default=3000, show_default=True, help="Port of the UI, on 127.0.0.1.")

_EPILOG = "\b\nSettings (environment):\n" + "\n".join(
    f"  {name}\n      {meaning.replace('`', '')}" for name, meaning in settings_module.VARIABLES.items()
)


def _explained(command: Callable[P, None]) -> Callable[P, None]:
    """End with the message of an error of ours instead of a traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        from analytics_assets.local.server import ServerError

        try:
            command(*args, **kwargs)
        except (SettingsError, DatabaseError, ServerError) as error:
            raise click.ClickException(str(error)) from None

    return run


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="analytics-assets")
def main() -> None:
    """Daily usage counts that hold nothing about a person, as Dagster assets.

    First time here? `analytics-assets demo` shows everything with a made-up application. For a real one, create the
    source views, set ANALYTICS_SOURCE_URL, check with `analytics-assets sources`, then run `analytics-assets up`.
    """


@main.command()
@PORT
@_explained
def up(port: int) -> None:
    """Start the Dagster UI, daemon and schedule, with an embedded PostgreSQL for each URL that is not set."""
    from analytics_assets.local import server

    server.exit_on_sigterm()
    with server.databases(Settings.from_env()) as settings, server.dagster_dev(settings, port) as process:
        try:
            process.wait()
        except KeyboardInterrupt:
            click.echo("Stopping.")
    if process.returncode:
        raise click.ClickException("Dagster has ended; its output above says why")


@main.command()
@PORT
@click.option("--app-port", default=3001, show_default=True, help="Port of the made-up application, on 127.0.0.1.")
@click.option("--once", is_flag=True, help="Exit after the summary; non-zero if anything is not green.")
@_explained
def demo(port: int, app_port: int, once: bool) -> None:
    """Run everything on a made-up events application: 200 days of activity, a backfill of every retained day.

    The application runs, too: what is clicked in it today is in tomorrow's numbers.

    It keeps to itself in the folder `demo` of the data folder, whatever URLs are set; deleting that folder resets it.
    """
    from analytics_assets.demo import run as demonstration
    from analytics_assets.local import server

    server.exit_on_sigterm()
    if not demonstration.run(Settings.from_env(), port, app_port, once=once):
        raise click.ClickException("not everything is green; the UI says what")


@main.command("init-db")
@click.option(
    "--admin-url",
    envvar="ANALYTICS_DATABASE_URL",
    help="Login that may create roles and schemas in the analytics database. Default: ANALYTICS_DATABASE_URL.",
)
@_explained
def init_db(admin_url: str | None) -> None:
    r"""Create or upgrade schema, roles, time zone and retention period of the analytics database; data is kept.

    The roles are analytics_owner (no login), analytics_writer (the pipeline), analytics_reader (the core team) and
    published_reader (dashboards for everybody else); `analytics-assets grants` shows their rights. Give the logins a
    password afterwards: \password in psql.
    """
    from analytics_assets.local import server
    from analytics_assets.store import setup

    settings = Settings.from_env()
    if admin_url:
        setup.init_db(settings_module.database_url(admin_url, "--admin-url"), settings)
    else:
        with server.databases(settings):
            pass
    click.echo(
        f"Schema analytics is up to date; kept: {settings.retention_days} days; time zone: {settings.time_zone}."
    )


@main.command()
@_explained
def sources() -> None:
    """Check the source views and the dump folder against the contract; nothing is read from them but their columns."""
    from analytics_assets.local import server
    from analytics_assets.sources.app_views import find_view_problems, view_metrics
    from analytics_assets.sources.counter_dumps import find_folder_problem
    from analytics_assets.sources.login import summarize_excess_rights

    settings = Settings.from_env()
    if not settings.source_url:
        click.echo("ANALYTICS_SOURCE_URL is not set: looking in the embedded database.")
    problems = 0
    with (
        # Without a URL, the views are looked for in the embedded database, where a trial may have put them.
        nullcontext(settings) if settings.source_url else server.databases(settings, keep_period=True) as ready,
        redacted_errors("reading the catalog of the host application's database (ANALYTICS_SOURCE_URL)"),
        engine(ready.source_url, "ANALYTICS_SOURCE_URL", read_only=True) as database,
        database.connect() as connection,
    ):
        for metric in view_metrics():
            found = find_view_problems(connection, metric)
            problems += len(found)
            click.echo(f"{metric.asset}: " + ("ok" if not found else "refused"))
            for problem in found:
                click.echo(f"  {problem}")
        for warning in summarize_excess_rights(connection):
            click.echo(f"warning: {warning}")
    refusal = find_folder_problem(settings.dump_dir)
    click.echo("counter dumps: " + ("ok" if refusal is None else str(refusal)))
    problems += refusal is not None
    if problems:
        raise click.ClickException(f"{problems} problem(s)")


@main.command()
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@click.option(
    "--dagster-home",
    envvar="DAGSTER_HOME",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Dagster's own folder. Default: DAGSTER_HOME, else dagster in the data folder.",
)
@_explained
def retention(dry_run: bool, dagster_home: Path | None) -> None:
    """Remove expired days from every retention target: tables, dumps, and Dagster's records.

    The sensor `retention_sensor` does it every day. By hand it is for what comes back: after a restore, run this before
    anyone reads. Exits non-zero when something that has expired is left.
    """
    from rich.console import Console
    from rich.table import Table

    from analytics_assets.local import server
    from analytics_assets.retention.sweep import MANUAL, apply_retention

    # Only looking must not change the period that the database enforces.
    with (
        server.databases(Settings.from_env(), keep_period=True) as settings,
        server.dagster_instance(settings, dagster_home) as instance,
    ):
        before, reports = apply_retention(settings, instance, MANUAL, dry_run=dry_run)
    table = Table(
        "target", "days", "rows", "oldest day left", title=f"{'To remove' if dry_run else 'Removed'} before {before}"
    )
    for report in reports:
        amounts = (f"{report.expired.days:,}", f"{report.expired.rows:,}")
        table.add_row(report.target, *amounts, f"[red]{report.problem}" if report.problem else str(report.oldest or ""))
    Console().print(table)
    if problems := sum(bool(report.problem) for report in reports):
        raise click.ClickException(
            f"not everything could be {'looked at' if dry_run else 'removed'}: {problems} target(s)"
        )


@main.command()
@click.option(
    "--fill",
    "day",
    type=click.DateTime(["%Y-%m-%d"]),
    metavar="DAY",
    help="Publish this day (YYYY-MM-DD) by itself: it was not collected in its turn, or is before the first one.",
)
@_explained
def publish(day: datetime | None) -> None:
    """Publish the closed days: running totals in fives, in schema published, for people outside the core team.

    The asset published_counts does it after every daily run. By hand it is for a gap: collect the day, then publish it
    with --fill. A day is closed once the daily job has collected it for the last time. What is published is never
    changed; running this again publishes nothing. The exact counts stay in schema analytics. The published pages follow
    what is published; `analytics-assets serve` shows them.
    """
    from analytics_assets.local import server
    from analytics_assets.publication.pages.publish import INSTALLED, write_published_pages
    from analytics_assets.publication.publish import PublicationError, fill, publish_closed
    from analytics_assets.store import open_store

    # Publishing must not change the period that the database enforces.
    with server.databases(Settings.from_env(), keep_period=True) as settings, open_store(settings) as store:
        try:
            made = publish_closed(store) if day is None else fill(store, day.date())
        except PublicationError as error:
            raise click.ClickException(str(error)) from None
        if INSTALLED:
            write_published_pages(store)
    for each in made:
        missing = f", {each.not_collected} not collected" if each.not_collected else ""
        click.echo(
            f"{each.event_name}: {each.first} to {each.last}: {each.published} {each.unit}(s) published{missing}"
        )
    if not made:
        click.echo("Nothing to publish: every closed day is published.")


@main.command()
@click.option("--port", default=3002, show_default=True, help="Port of the pages, on 127.0.0.1.")
@_explained
def serve(port: int) -> None:
    """Show the pages on this machine only, with the headers that the documentation gives nginx.

    Whoever uses this machine sees the core team's exact numbers here, too. For other people, let nginx serve the pages
    and the web application decide who may see which.
    """
    from analytics_assets.local import pages, server

    settings = Settings.from_env()
    server.exit_on_sigterm()
    with pages.serve(settings.publish_dir, port) as running:
        for path in pages.INDEXES:
            click.echo(f"http://{server.HOST}:{running.server_port}/{path}")
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            click.echo("Stopping.")


@main.command()
@click.argument("server", type=click.Choice(["analytics", "host"]), required=False)
def grants(server: str | None) -> None:
    """Print the SQL that makes the roles and says what each may do: for the ANALYTICS database, the HOST's, or both.

    On the analytics side init-db has run it already. On the host's side its operator does, once the views are there:
    `analytics-assets grants host | psql events`. It may be run again at any time; passwords are set apart from it.
    """
    from analytics_assets.store.grants import ANALYTICS, HOST

    click.echo({"analytics": ANALYTICS, "host": HOST, None: f"{ANALYTICS}\n{HOST}"}[server], nl=False)


@main.command()
@click.option("--write", type=click.Path(dir_okay=False, path_type=Path), help="Write it to this file.")
def dictionary(write: Path | None) -> None:
    """Print the data dictionary, generated from the contract: every metric and field, in Markdown."""
    if write:
        write.write_text(markdown(), encoding="utf-8")
    else:
        click.echo(markdown(), nl=False)


if __name__ == "__main__":
    main()

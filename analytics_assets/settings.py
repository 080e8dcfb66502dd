"""The settings of the pipeline, read from the environment. No other module of the pipeline reads a variable."""

from __future__ import annotations

import os
import re
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import sqlalchemy as sa

from analytics_assets.contract import RETENTION_DAYS
from analytics_assets.remote import find_url_problem, is_url

VARIABLES: Final = {
    "ANALYTICS_DATABASE_URL": "Where the counts are kept; login `analytics_writer`. Unset: an embedded PostgreSQL.",
    "ANALYTICS_SOURCE_URL": "The host application's database: PostgreSQL, MariaDB or MySQL."
    " Unset: the same as `ANALYTICS_DATABASE_URL`.",
    "DAGSTER_POSTGRES_URL": "Dagster's own storage, a database of its own. Unset: the embedded PostgreSQL.",
    "ANALYTICS_DATA_DIR": "Folder of the embedded PostgreSQL, Dagster's logs and the dumps. Default: `.analytics`.",
    "ANALYTICS_DUMP_DIR": "Folder of the counter dumps, or URL of a shared one. Default: `dumps` in the data folder.",
    "ANALYTICS_PUBLISH_DIR": "Folder of the pages. Default: `pages` in the data folder.",
    "ANALYTICS_TIMEZONE": "The time zone whose calendar days are counted, an IANA name. Default: `UTC`.",
    "ANALYTICS_OWNS_DAGSTER": "`yes`: only this project uses Dagster's storage, and old records of anything expire."
    " `no`: only its own do. Default: `yes` for the embedded PostgreSQL, else `no`.",
    "ANALYTICS_EXECUTOR": "`in_process`: a backfill is one run, in one process. `runs`: it is divided into runs, for a"
    " run launcher with several machines. The URL of a Redis (`redis://...`): the steps of these runs go to its"
    " workers. Default: `in_process`.",
    "ANALYTICS_ALERT_URL": "Who is told what turns red: an Apprise URL, like `mailto://...`. Unset: a line in the log.",
    "ANALYTICS_RETENTION_DAYS": f"How many days are kept. Default: `{RETENTION_DAYS}`.",
}
"""Name -> meaning; the README's table is tested against it."""

PAGES_QUEUE: Final = "pages"
"""The queue of the steps that write pages: a worker of the machine that serves them executes them."""

_DATABASE_URLS: Final = ("ANALYTICS_DATABASE_URL", "DAGSTER_POSTGRES_URL")
_POSTGRESQL: Final = "postgresql+psycopg2"
_MYSQL: Final = "mysql+pymysql"
_DRIVERS: Final = {
    **dict.fromkeys(("postgres", "postgresql", _POSTGRESQL), _POSTGRESQL),
    **dict.fromkeys(("mysql", "mariadb", _MYSQL, "mariadb+pymysql"), _MYSQL),
}
"""How a URL may begin -> kind of database and driver.

SQLAlchemy 2.1 reads a bare `postgresql://` as psycopg 3, which dagster-postgres does not install.
"""


class SettingsError(ValueError):
    """A setting is missing or has a value that cannot be used. The text names the variable, never its value."""


def database_url(text: str, variable: str) -> str:
    """Return a PostgreSQL URL that names its driver. Raises SettingsError."""
    url = _parse_url(text, variable)
    if url.drivername != _POSTGRESQL:
        raise SettingsError(f"{variable} must be a PostgreSQL URL (postgresql://user:password@host:5432/name)")
    return url.render_as_string(hide_password=False)


def source_url(text: str, variable: str) -> str:
    """Return the URL of a host application's database, of whatever kind, with its driver. Raises SettingsError."""
    url = _parse_url(text, variable)
    if url.drivername not in _DRIVERS:
        raise SettingsError(
            f"{variable} must be a URL of PostgreSQL (postgresql://user:password@host:5432/name), MariaDB or MySQL"
            " (mysql://user:password@host:3306/analytics_source)"
        )
    return url.render_as_string(hide_password=False)


def _parse_url(text: str, variable: str) -> sa.URL:
    try:
        url = sa.make_url(text)
        if url.drivername in _DRIVERS:
            url = url.set(drivername=_DRIVERS[url.drivername])
            url.get_dialect()().create_connect_args(url)  # hosts and ports among the parameters have to fit
    except (sa.exc.ArgumentError, ValueError):  # ValueError: a port that is not a number, or an @ in the password
        # The text may hold a password, so neither it nor SQLAlchemy's message is shown.
        raise SettingsError(f"{variable} is not a database URL (postgresql://user:password@host:5432/name)") from None
    return url


def _alert_url(text: str | None) -> str | None:
    # Apprise reads the rest, when a message is sent.
    if text is not None and not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://\S+$", text):
        raise SettingsError(
            "ANALYTICS_ALERT_URL is not a URL that Apprise knows (mailto://..., slack://..., json://...)"
        )
    return text


def _executor(text: str) -> str:
    if text in {"in_process", "runs"}:
        return text
    try:
        url = urlsplit(text)
        known = url.scheme in {"redis", "rediss"} and url.hostname and url.port != 0  # reading the port checks it
    except ValueError:
        known = False
    if not known or re.search(r"\s", text):
        # The text may hold a password.
        raise SettingsError("ANALYTICS_EXECUTOR must be in_process, runs or the URL of a Redis (redis://host:6379/0)")
    return text


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one process. The `repr` leaves out the URLs, which hold passwords."""

    database_url: str | None = field(repr=False)
    """None: the variable is not set, and no embedded server was started for this process."""
    source_url: str | None = field(repr=False)
    dagster_url: str | None = field(repr=False)
    data_dir: Path
    dump_dir: Path
    """Where the dumps are unless `dump_url` says where."""
    publish_dir: Path
    time_zone: str
    retention_days: int
    owns_dagster: bool
    """Whether nothing else uses Dagster's storage."""
    executor: str = field(default="in_process", repr=False)
    """`in_process`, `runs`, or the URL of a Redis, which may hold a password."""
    alert_url: str | None = field(default=None, repr=False)
    """Where alerts go, as Apprise reads it; it may hold a password. None: to the log."""
    dump_url: str | None = field(default=None, repr=False)
    """The folder of the dumps of many machines, as fsspec reads it. None: `dump_dir`."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Read the settings. An empty variable counts as unset. Raises SettingsError."""
        given = {name: environ[name] for name in VARIABLES if environ.get(name)}
        urls: dict[str, str] = {name: database_url(given[name], name) for name in _DATABASE_URLS if name in given}
        if "ANALYTICS_SOURCE_URL" in given:
            urls["ANALYTICS_SOURCE_URL"] = source_url(given["ANALYTICS_SOURCE_URL"], "ANALYTICS_SOURCE_URL")
        time_zone = given.get("ANALYTICS_TIMEZONE", "UTC")
        try:
            zoneinfo.ZoneInfo(time_zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
            raise SettingsError("ANALYTICS_TIMEZONE is not an IANA time zone (like Europe/Berlin)") from None
        retention = given.get("ANALYTICS_RETENTION_DAYS", str(RETENTION_DAYS))
        if not (retention.isascii() and retention.isdigit() and len(retention) <= 4 and 1 <= int(retention) <= 3650):
            raise SettingsError("ANALYTICS_RETENTION_DAYS must be a whole number of days from 1 to 3650")
        owns = given.get("ANALYTICS_OWNS_DAGSTER", "no" if "DAGSTER_POSTGRES_URL" in given else "yes")
        if owns not in {"yes", "no"}:
            raise SettingsError("ANALYTICS_OWNS_DAGSTER must be yes or no")
        data_dir = Path(given.get("ANALYTICS_DATA_DIR", ".analytics")).absolute()
        dumps = given.get("ANALYTICS_DUMP_DIR", str(data_dir / "dumps"))
        dump_url = dumps if is_url(dumps) else None
        if dump_url and (problem := find_url_problem(dump_url)):
            raise SettingsError(f"ANALYTICS_DUMP_DIR {problem}")
        dump_dir = data_dir / "dumps" if dump_url else Path(dumps).absolute()
        if data_dir.is_relative_to(dump_dir):
            # Retention removes old files from the dump folder.
            raise SettingsError("ANALYTICS_DUMP_DIR must be a folder for the dumps alone, not one above other data")
        return cls(
            database_url=urls.get("ANALYTICS_DATABASE_URL"),
            source_url=urls.get("ANALYTICS_SOURCE_URL", urls.get("ANALYTICS_DATABASE_URL")),
            dagster_url=urls.get("DAGSTER_POSTGRES_URL"),
            data_dir=data_dir,
            dump_dir=dump_dir,
            publish_dir=Path(given.get("ANALYTICS_PUBLISH_DIR", data_dir / "pages")).absolute(),
            time_zone=time_zone,
            retention_days=int(retention),
            owns_dagster=owns == "yes",
            executor=_executor(given.get("ANALYTICS_EXECUTOR", "in_process")),
            alert_url=_alert_url(given.get("ANALYTICS_ALERT_URL")),
            dump_url=dump_url,
        )

    @property
    def broker_url(self) -> str | None:
        """The Redis that hands steps to workers. None: a step runs in the process of its run."""
        return self.executor if "://" in self.executor else None

    def today(self) -> date:
        """Return today in the configured time zone."""
        return datetime.now(zoneinfo.ZoneInfo(self.time_zone)).date()

    def environment(self) -> dict[str, str]:
        """Return the settings as environment variables, for a process that this one starts."""
        values = {
            "ANALYTICS_DATABASE_URL": self.database_url,
            "ANALYTICS_SOURCE_URL": self.source_url,
            "DAGSTER_POSTGRES_URL": self.dagster_url,
            "ANALYTICS_DATA_DIR": str(self.data_dir),
            "ANALYTICS_DUMP_DIR": self.dump_url or str(self.dump_dir),
            "ANALYTICS_PUBLISH_DIR": str(self.publish_dir),
            "ANALYTICS_TIMEZONE": self.time_zone,
            "ANALYTICS_RETENTION_DAYS": str(self.retention_days),
            "ANALYTICS_OWNS_DAGSTER": "yes" if self.owns_dagster else "no",
            "ANALYTICS_EXECUTOR": self.executor,
            "ANALYTICS_ALERT_URL": self.alert_url,
        }
        return {name: value for name, value in values.items() if value is not None}

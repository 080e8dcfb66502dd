"""A real PgBouncer before the host's database: transaction pooling, and TLS."""

import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import sqlalchemy as sa

from analytics_assets.contract import metric
from analytics_assets.database import DatabaseError, UnreachableError, engine, redacted_errors
from analytics_assets.defs.evaluation import open_reader
from analytics_assets.settings import Settings
from analytics_assets_tests.support.deployment import program
from analytics_assets_tests.support.host import Host, moments
from analytics_assets_tests.support.pipeline import Pipeline
from analytics_assets_tests.support.pooler import Pooler
from analytics_assets_tests.support.pooler import pooler as open_pooler

SIGNUPS = metric("event_signups")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One that the server's user reaches."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(scope="module")
def certificate(folder: Path) -> Path:
    """The pooler's."""
    made = folder / "certificate.pem"
    make_certificate(made, folder / "key.pem")
    return made


@pytest.fixture(scope="module")
def pooler(server: sa.URL, folder: Path, certificate: Path) -> Iterator[Pooler]:
    """It gives all clients of a database one connection."""
    tls = {"client_tls_key_file": folder / "key.pem", "client_tls_cert_file": certificate}
    options = {"pool_mode": "transaction", "default_pool_size": 1, "client_tls_sslmode": "allow"}
    with open_pooler(server, folder, options | tls) as opened:
        yield opened


def make_certificate(certificate: Path, key: Path) -> None:
    """A self-signed one."""
    files = ["-keyout", str(key), "-out", str(certificate)]
    made = [program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=elsewhere"]
    subprocess.run([*made, *files], check=True, capture_output=True)


def error_of(url: str) -> str:
    with (
        pytest.raises(UnreachableError) as error,
        redacted_errors("looking"),
        engine(url, "ANALYTICS_SOURCE_URL", read_only=True) as database,
        database.connect(),
    ):
        pass
    return str(error.value)


def test_a_day_is_collected_through_a_pooler(pooler: Pooler, pipeline: Pipeline, host: Host, yesterday: date) -> None:
    host.occur("signups", moments(yesterday, pipeline.settings.time_zone, 3))
    through = replace(pipeline.settings, source_url=pooler.url(host.reader_url))
    with Pipeline.open(through) as pooled:
        assert pooled.run(["event_signups"], yesterday).success
    assert sum(pipeline.stored("event_signups", yesterday).values()) == 3


def test_nothing_is_written_through_a_pooler(pooler: Pooler, host: Host, yesterday: date) -> None:
    host.sql("create function spoil() returns text language sql volatile security definer as"
             " 'insert into signups (event_id) values (''1'') returning event_id'")  # fmt: skip
    host.occur("signups", moments(yesterday, "UTC", 1))
    host.sql("create or replace view analytics_source.signups as select spoil() as event_id, occurred_at, source"
             " from signups")  # fmt: skip
    through = Settings.from_env({"ANALYTICS_SOURCE_URL": pooler.url(host.reader_url)})
    with open_reader(SIGNUPS, through) as source, pytest.raises(DatabaseError, match="ReadOnlySqlTransaction"):
        source.count(yesterday)


def test_the_pooled_connection_is_left_as_it_was_for_the_next_client(pooler: Pooler, host: Host) -> None:
    other = sa.create_engine(pooler.url(host.url), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")

    def session() -> tuple[object, ...]:
        query = "select pg_backend_pid(), current_setting('transaction_read_only'), current_setting('row_security')"
        with other.connect() as connection:
            return tuple(connection.exec_driver_sql(query).one())

    before = session()
    assert before[1:] == ("off", "on")
    with engine(pooler.url(host.url), "ANALYTICS_SOURCE_URL", read_only=True) as database:
        for _ in range(2):
            with database.connect() as connection:
                assert connection.exec_driver_sql("select pg_backend_pid()").scalar() == before[0]
            assert session() == before


def test_a_parameter_that_the_pooler_refuses_is_said(pooler: Pooler, host: Host) -> None:
    said = error_of(pooler.url(host.url, options="-c statement_timeout=1234"))
    assert "a connection pooler refuses a parameter of the URL; take `options` out of it" in said


def test_a_certificate_that_does_not_fit_is_said(pooler: Pooler, certificate: Path, host: Host, tmp_path: Path) -> None:
    trusted = {"sslmode": "verify-ca", "sslrootcert": str(certificate)}
    with engine(pooler.url(host.url, **trusted), "ANALYTICS_SOURCE_URL") as database:
        database.connect().close()
    other = tmp_path / "canary.pem"
    make_certificate(other, tmp_path / "key.pem")
    for wrong in (
        {"sslrootcert": str(other)},
        {"sslrootcert": str(tmp_path / "canary-missing.pem")},
        {"sslmode": "verify-full"},  # it is the certificate of another host name
    ):
        said = error_of(pooler.url(host.url, **trusted | wrong))
        assert "TLS fails; check the root certificate, the host name in the server's certificate, and sslmode" in said
        assert "canary" not in said


def test_a_database_and_a_login_that_are_not_there_are_said(pooler: Pooler, host: Host) -> None:
    assert "no database of the name in the URL" in error_of(pooler.url(host.url.set(database="canary")))
    assert "the server refuses the login" in error_of(pooler.url(host.url.set(username="canary")))

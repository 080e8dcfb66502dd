"""Tests of a session inside the session, for test_session.py; by its name, it is collected only when asked for."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa


def test_kill_the_server(server: sa.URL) -> None:
    engine = sa.create_engine(server)
    with engine.connect() as connection:
        folder = Path(connection.exec_driver_sql("show data_directory").scalar_one())
    engine.dispose()
    postmaster = int((folder / "postmaster.pid").read_text().splitlines()[0])
    os.kill(postmaster, signal.SIGKILL)


@pytest.mark.parametrize("number", range(5))
def test_make_a_database(make_database: Callable[[str], sa.URL], number: int) -> None:
    make_database("own")


def test_use_a_temporary_folder(tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []


def test_run_a_second_pytest(make_database: Callable[[str], sa.URL], tmp_path: Path) -> None:
    make_database("before")
    used = f"{__file__}::{test_use_a_temporary_folder.__name__}"
    subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", used], check=True)
    assert tmp_path.parents[1].stat().st_mode & 0o077 == 0, "it has closed the folder of this user's sessions"
    engine = sa.create_engine(make_database("after"))
    with engine.begin() as connection:
        connection.exec_driver_sql("create table notes as select generate_series(1, 1000)")
        connection.exec_driver_sql("checkpoint")
    engine.dispose()

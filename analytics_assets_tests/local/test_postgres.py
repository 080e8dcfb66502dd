"""The embedded PostgreSQL on odd machines: strange folders, locales and users, and what a crash has left."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

from analytics_assets.local.postgres import embedded_postgres, ensure_database, find_postmaster, running_postgres
from analytics_assets.local.processes import ServerError
from analytics_assets.local.server import ROOT
from analytics_assets_tests.support.processes import PATIENCE

HOLD = """
import os, sys
from pathlib import Path
import sqlalchemy as sa
from analytics_assets.local.postgres import embedded_postgres
from analytics_assets.local.processes import ServerError
sa.create_engine("postgresql+psycopg2://")  # imports the driver: another user may not read the interpreter's folder
if len(sys.argv) > 2:
    user = int(sys.argv[2])
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
try:
    with embedded_postgres(Path(sys.argv[1])):
        print("started", flush=True)
        sys.stdin.read()
except ServerError as error:
    print(error)
"""


@contextmanager
def another_process(
    data_dir: Path, user: int | None = None, wrapper: Sequence[str] = (), **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A process that uses the server until its input ends."""
    process = subprocess.Popen(
        [*wrapper, sys.executable, "-c", HOLD, str(data_dir), *([] if user is None else [str(user)])],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield process


def open_to_all(folder: Path) -> None:
    folder.chmod(0o1777)
    folder.parent.chmod(0o755)


def answers(url: sa.URL) -> bool:
    engine = sa.create_engine(url.render_as_string(hide_password=False))
    with engine.connect() as connection:
        answered = connection.scalar(sa.text("select upper('ä') = 'Ä' and 'B' < 'a'"))
    engine.dispose()
    return bool(answered)


@pytest.mark.parametrize("name", ["a b&c", 'it\'s $HOME `x` "q" \\ %41 a:b;*', "a,b", "long" * 30])
def test_any_folder_and_any_locale_will_do(data_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "xx_YY.UTF-8")
    monkeypatch.setenv("PGPORT", "1")
    with embedded_postgres(data_dir / name) as url:
        assert answers(ensure_database(url, "made"))
        with embedded_postgres(data_dir / name) as again:
            assert again == url
        assert answers(url), "the second user has left it running"
        directory = Path(str(url.query["host"]))
    assert running_postgres(data_dir / name) is None
    assert directory.is_relative_to(data_dir) or not directory.exists()


def test_the_last_process_stops_the_server(data_dir: Path) -> None:
    with another_process(data_dir) as first:
        assert first.stdout
        assert first.stdout.readline() == "started\n"
        with embedded_postgres(data_dir) as url:
            first.send_signal(signal.SIGKILL)
            first.wait()
            assert answers(url)
    assert find_postmaster(data_dir / "postgres") is None


def crash(data_dir: Path) -> Path:
    """Kill the server of a folder, and return the file that it leaves behind."""
    with embedded_postgres(data_dir):
        postmaster = find_postmaster(data_dir / "postgres")
        assert postmaster
        lock = data_dir / "postgres/postmaster.pid"
        left = lock.read_text()
        family = [postmaster, *postmaster.children()]
        postmaster.kill()
        psutil.wait_procs(family, timeout=PATIENCE)
    lock.write_text(left)
    return lock


@pytest.mark.parametrize("own", [True, False])
def test_a_number_that_is_another_process_now(data_dir: Path, own: bool) -> None:
    lock = crash(data_dir)
    _, *rest = lock.read_text().splitlines(keepends=True)
    user = lock.parent.stat().st_uid if own and not os.geteuid() else None
    with subprocess.Popen(["sleep", "600"], user=user) as other:
        lock.write_text("".join([f"{other.pid if own else os.getppid()}\n", *rest]))
        with embedded_postgres(data_dir) as url:
            assert answers(url)
        assert other.poll() is None
        other.kill()


def test_a_server_that_cannot_be_seen_is_left_alone(data_dir: Path) -> None:
    lock = crash(data_dir)
    _, *rest = lock.read_text().splitlines(keepends=True)
    lock.write_text("".join([f"{os.getpid()}\n", *rest]))
    with socket.socket(socket.AF_UNIX) as elsewhere:
        address = data_dir / "postgres/.s.PGSQL.5432"
        address.unlink(missing_ok=True)
        elsewhere.bind(str(address))
        elsewhere.listen()
        with (
            pytest.raises(ServerError, match=r"may be running .* stop it, or, .* remove .*postmaster\.pid"),
            embedded_postgres(data_dir),
        ):
            pass
    assert lock.exists()


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@as_root
@pytest.mark.skipif(not shutil.which("setpriv"), reason="only setpriv can take the capability away")
def test_root_without_the_right_to_trace_starts_and_stops_a_server(data_dir: Path) -> None:
    """A container's default: root may not see in which folder the server of the user `pgserver` works."""
    with another_process(data_dir, wrapper=("setpriv", "--bounding-set", "-sys_ptrace")) as process:
        assert process.communicate()[0] == "started\n"
    assert process.returncode == 0
    assert find_postmaster(data_dir / "postgres") is None


@as_root
def test_a_second_user_of_the_machine_is_not_in_the_way(data_dir: Path) -> None:
    """What the first one leaves in the temporary folder would refuse the second."""
    temporary = Path(tempfile.mkdtemp(dir=data_dir))
    temporary.chmod(0o1777)
    open_to_all(data_dir)
    nobody = 65534
    for user in (None, nobody):
        with another_process(data_dir / f"of {user}", user, TMPDIR=str(temporary)) as process:
            assert process.communicate()[0] == "started\n"
        assert list(temporary.iterdir()) == []


@as_root
def test_a_user_without_a_name_is_one_sentence(data_dir: Path) -> None:
    open_to_all(data_dir)
    with another_process(data_dir / "own", 54321) as process:
        said = process.communicate()[0]
    assert said.startswith("this user id has no name, and PostgreSQL refuses to run without one: add it to /etc/passwd")
    assert said.count("\n") == 1


def test_a_path_with_a_line_break_is_refused_before_anything_is_made(data_dir: Path) -> None:
    with pytest.raises(ServerError, match="its path has a line break"), embedded_postgres(data_dir / "a\nb"):
        pass
    assert not (data_dir / "a\nb").exists()


@pytest.mark.parametrize(
    ("version", "message"),
    [("16\n", "belongs to PostgreSQL 16, and this package brings 18: move it away"), (None, "cannot be used: ")],
)
def test_a_folder_that_is_none_of_ours_is_one_sentence(data_dir: Path, version: str | None, message: str) -> None:
    if version:
        (data_dir / "postgres").mkdir()
        (data_dir / "postgres/PG_VERSION").write_text(version)
    else:
        (data_dir / "postgres").write_text("a file")
    with pytest.raises(ServerError, match=message), embedded_postgres(data_dir):
        pass

"""The session of tests: its server stays out of the way of a second session, and does not end unnoticed."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from analytics_assets_tests.support import inner_session

pytestmark = pytest.mark.server


@pytest.fixture
def temporary() -> Iterator[Path]:
    """The folder in which an inner session makes everything that it leaves to its end."""
    with tempfile.TemporaryDirectory(prefix="analytics-tests-") as folder:
        yield Path(folder)


def run_session(temporary: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run tests of the inner session in a pytest that knows nothing of this one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", inner_session.__file__, *arguments],
        env=environment | {"TMPDIR": str(temporary)},
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("workers", ["0", "1"])
def test_a_session_whose_server_ends_says_so_once(temporary: Path, workers: str) -> None:
    ended = run_session(temporary, "-k", "kill_the_server or make_a_database", "--numprocesses", workers)
    assert ended.returncode == pytest.ExitCode.INTERRUPTED, ended.stdout + ended.stderr
    said = re.findall(r"^!+ .*the PostgreSQL server of this session has ended !+$", ended.stdout, re.MULTILINE)
    assert len(said) == 1
    assert re.search(r"^=+ 1 failed, 1 passed\b", ended.stdout, re.MULTILINE), ended.stdout
    assert "Traceback" not in ended.stdout
    assert list(temporary.glob("analytics-tests-*")) == []


def test_a_second_session_of_the_same_user_does_not_touch_the_server(temporary: Path) -> None:
    ended = run_session(temporary, "-k", "run_a_second_pytest")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert list(temporary.glob("analytics-tests-*")) == []

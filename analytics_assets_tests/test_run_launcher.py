"""How run monitoring tells the process of a run from another one that got its number."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from analytics_assets.run_launcher import _may_be_a_run
from analytics_assets_tests.support.processes import wait_until

HOUR = 3600


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that looks like one of Dagster's."""
    command = [sys.executable, "-c", "import time; time.sleep(600)", "dagster"]
    with subprocess.Popen(command) as started:
        yield started
        started.kill()


def test_a_process_that_was_there_when_it_noted_its_number_is_the_run(process: subprocess.Popen[bytes]) -> None:
    assert _may_be_a_run(process.pid, time.time())


def test_a_process_that_started_later_has_only_got_its_number(process: subprocess.Popen[bytes]) -> None:
    assert not _may_be_a_run(process.pid, time.time() - HOUR)


def test_a_process_that_has_ended_is_none(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    assert not _may_be_a_run(process.pid, time.time())
    process.wait()
    assert not _may_be_a_run(process.pid, time.time())


def test_a_process_of_another_program_is_none() -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        assert not _may_be_a_run(other.pid, time.time())
        other.kill()

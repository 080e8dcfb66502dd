"""Dumps behind gs://, against an emulator of Google Cloud Storage: shipped, read and removed as elsewhere."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from analytics_assets.local.processes import stop
from analytics_assets.remote import RemoteFolder
from analytics_assets.retention.targets import Amount, RemoteDumps
from analytics_assets.settings import Settings
from analytics_assets.ship import Fate, Shipper
from analytics_assets.sources.counter_dumps import find_problem, read_day
from analytics_assets.sources.dump_folder import DayFolders, read_last_changes
from analytics_assets.telemetry.dumps import DumpFile
from analytics_assets_tests.support.dumps import DAY, FILES, write_day
from analytics_assets_tests.support.processes import free_port, wait_until
from analytics_assets_tests.support.s3 import answers


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--in-memory", "--default-bucket", "bucket"]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    # Otherwise it asks Google which kind of bucket this is. It reads this when it is imported.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: answers(port))
            yield "gs://bucket/dumps"
        finally:
            stop(process)


def test_dumps_are_shipped_read_and_removed(url: str, tmp_path: Path) -> None:
    settings, remote, dumps = replace(Settings.from_env({}), dump_url=url), RemoteFolder(url), tmp_path / "dumps"

    def ship() -> tuple[int, int]:
        done = Shipper(dumps, remote, 180).ship(DAY + timedelta(days=1))
        assert done.problems == []
        return done.fates[Fate.SHIPPED], done.fates[Fate.UNCHANGED]

    def counts(folder: Path) -> dict[str, int]:
        return {asset: sum(row["count"] for row in read.rows) for asset, read in read_day(folder, DAY).items()}

    def counts_there() -> dict[str, int]:
        with DayFolders(settings).open(DAY) as folder:
            return counts(folder)

    write_day(dumps)
    assert [ship(), ship()] == [(FILES, 0), (0, FILES)]
    assert find_problem(settings) is None
    assert counts_there() == counts(dumps / str(DAY))
    growing = DumpFile(dumps, str(DAY))
    line = growing.append({"event_date": str(DAY), "event_name": "directory_searched", "event_id": "7"}, 1)
    assert ship() == (1, FILES)
    growing.add(line, 1)
    growing.close()
    assert ship() == (1, FILES)
    assert remote.list_folders([str(DAY), "2026-11-21"]) == {str(DAY): remote.list(str(DAY)), "2026-11-21": {}}
    assert list(read_last_changes(settings, [DAY])) == [DAY]
    assert counts_there() == counts(dumps / str(DAY))
    kept = RemoteDumps(url, "UTC")
    assert kept.oldest() == DAY
    assert list(kept.remove(DAY + timedelta(days=1))) == [Amount(1, FILES + 1)]
    assert kept.oldest() is None

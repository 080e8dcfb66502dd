"""Late dumps: each is told until its day has been collected again, and a merge neither hides nor fakes one."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest

from analytics_assets.contract import LOOKBACK_DAYS, PUBLISHED_PATH
from analytics_assets.defs.jobs import publication_job
from analytics_assets.operations import Level, Line, late_dumps
from analytics_assets.operations.late_dumps import HourlyLook, find_late_days
from analytics_assets.remote import RemoteFolder
from analytics_assets.sources import counter_dumps, merge
from analytics_assets.store import open_store
from analytics_assets.store.counts import read_window
from analytics_assets_tests.support.dumps import DUMP_FED, write_day
from analytics_assets_tests.support.pipeline import Pipeline, lines_of, note_collected
from analytics_assets_tests.support.processes import wait_until
from analytics_assets_tests.support.s3 import be_away

DUMP_FED_ASSETS = [metric.asset for metric in DUMP_FED]


def dump(day: date, count: int = 1, event_id: int = 7) -> bytes:
    line = '{{"event_date":"{}","event_name":"directory_searched","event_id":"{}","count":{:>12}}}\n'
    return line.format(day, event_id, count).encode()


def late(pipeline: Pipeline) -> list[date]:
    with open_store(pipeline.settings) as store:
        return find_late_days(store, read_window(store).last_closed)


def late_line(pipeline: Pipeline) -> Line:
    return lines_of(pipeline.settings, pipeline.instance)["dumps: late dumps"]


@pytest.fixture
def closed(yesterday: date) -> date:
    """A day that the daily job does not collect again."""
    return yesterday - timedelta(days=LOOKBACK_DAYS + 5)


@pytest.fixture(params=["local", "s3", "file", "sftp"])
def place(request: pytest.FixtureRequest, pipeline: Pipeline, tmp_path: Path) -> Pipeline:
    """The pipeline, with its dumps in a folder or behind a URL."""
    if request.param == "local":
        return pipeline
    if request.param == "file":
        (tmp_path / "share").mkdir()
        url = f"file://{tmp_path}/share"
    else:
        url = request.getfixturevalue(f"{request.param}_url")
    return Pipeline(replace(pipeline.settings, dump_url=url), pipeline.instance)


@pytest.fixture
def put(place: Pipeline) -> Callable[[date, str, bytes], None]:
    """Put a file into the folder of a day."""
    settings = place.settings
    if settings.dump_url is not None:
        remote = RemoteFolder(settings.dump_url)
        return lambda day, name, content: remote.write(f"{day}/{name}", content)

    def write(day: date, name: str, content: bytes) -> None:
        (settings.dump_dir / str(day)).mkdir(parents=True, exist_ok=True)
        (settings.dump_dir / str(day) / name).write_bytes(content)

    return write


def let_a_second_pass() -> None:
    """Until the time of what was written can be told from the next one, where a storage tells whole seconds."""
    until = int(time.time()) + 1
    wait_until(lambda: time.time() >= until)


def test_the_sensor_lists_what_is_behind_a_url_once_an_hour(
    place: Pipeline, put: Callable[[date, str, bytes], None], closed: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(closed, f"{'a' * 32}.ndjson", dump(closed))
    let_a_second_pass()
    note_collected(place, DUMP_FED_ASSETS, [closed])
    look, passed = HourlyLook(), time.monotonic()
    monkeypatch.setattr(late_dumps, "monotonic", lambda: passed)
    with open_store(place.settings) as store:
        assert look(store, closed) == []
        put(closed, f"{'b' * 32}.ndjson", dump(closed))
        behind_a_url = place.settings.dump_url is not None
        passed += 3599
        assert look(store, closed) == ([] if behind_a_url else [closed])
        passed += 1
        assert look(store, closed) == [closed]
        let_a_second_pass()
        for asset in DUMP_FED_ASSETS:
            assert place.run([asset], closed).success
        assert look(store, closed) == [], "where something was late, it looks each time"


def test_what_comes_or_grows_behind_the_look_back_is_told(
    place: Pipeline, put: Callable[[date, str, bytes], None], closed: date, yesterday: date
) -> None:
    other, of_look_back = closed - timedelta(days=1), yesterday - timedelta(days=1)
    not_collected, expired = closed - timedelta(days=3), yesterday - timedelta(days=400)
    days = [other, closed, of_look_back]
    for day in (*days, not_collected, expired):
        put(day, f"{'a' * 32}.ndjson", dump(day))
    let_a_second_pass()
    note_collected(place, DUMP_FED_ASSETS, days)
    assert late(place) == []
    let_a_second_pass()
    for day in (of_look_back, not_collected, expired):
        put(day, f"{'b' * 32}.ndjson", dump(day))
    for name in (f"{'c' * 32}.drops", f"{'d' * 32}.shipping"):
        put(closed, name, b"no count")
    assert late(place) == []
    put(closed, f"{'b' * 32}.ndjson", dump(closed))
    assert late(place) == [closed]
    put(other, f"{'a' * 32}.ndjson", dump(other, count=2))
    assert late(place) == [other, closed]


@pytest.mark.parametrize("place", ["local"], indirect=True)
def test_the_line_names_the_days_until_they_are_collected_again(
    place: Pipeline, put: Callable[[date, str, bytes], None], closed: date
) -> None:
    put(closed, f"{'a' * 32}.ndjson", dump(closed))
    let_a_second_pass()
    assert place.run(DUMP_FED_ASSETS, closed).success
    assert (late_line(place).level, late_line(place).words) == (Level.OK, "none")
    let_a_second_pass()
    put(closed, f"{'b' * 32}.ndjson", dump(closed))
    line = late_line(place)
    assert (line.level, line.facts) == (Level.WARNING, (str(closed),))
    assert line.words == f"dumps have come or changed after their day was collected; materialize again: {closed}"
    let_a_second_pass()
    assert place.run(DUMP_FED_ASSETS[:1], closed).success
    assert late(place) == [closed], "the other metrics lack it"
    assert place.run(DUMP_FED_ASSETS, closed).success
    assert late_line(place).level is Level.OK
    assert list(place.stored("directory_searches", closed).values()) == [2]


def test_what_comes_while_the_day_is_read_is_told(
    pipeline: Pipeline, closed: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_day(pipeline.settings.dump_dir, closed, files=1)
    read = counter_dumps.read_day

    def then_one_comes(folder: Path, day: date) -> object:
        found = read(folder, day)
        (folder / f"{'b' * 32}.ndjson").write_bytes(dump(day))
        return found

    with monkeypatch.context() as patch:
        patch.setattr(counter_dumps, "read_day", then_one_comes)
        pipeline.run(DUMP_FED_ASSETS, closed)
    assert late(pipeline) == [closed]
    assert pipeline.run(DUMP_FED_ASSETS, closed).success
    assert late(pipeline) == []


@pytest.mark.parametrize("place", ["local", "s3"], indirect=True)
def test_a_merge_neither_fakes_nor_hides_a_late_dump(
    place: Pipeline, put: Callable[[date, str, bytes], None], closed: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge, "_REMOTE_QUIET", timedelta(days=-1))
    monkeypatch.setattr(merge, "_QUIET_SECONDS", -86_400)
    other = closed - timedelta(days=1)
    for day in (closed, other):
        for letter in "ab":
            put(day, f"{letter * 32}.ndjson", dump(day))
    let_a_second_pass()
    assert place.run(DUMP_FED_ASSETS, other, closed).success
    let_a_second_pass()
    put(other, f"{'c' * 32}.ndjson", dump(other))
    publish(place)
    assert late(place) == [other], "a merged day is not late, and a late day is not merged"
    assert (dumps_of(place, closed), dumps_of(place, other)) == (1, 3)
    let_a_second_pass()
    assert place.run(DUMP_FED_ASSETS, other).success
    assert late(place) == []
    publish(place)
    assert dumps_of(place, other) == 1
    assert late(place) == []
    assert list(place.stored("directory_searches", other).values()) == [3]


def publish(pipeline: Pipeline) -> None:
    """What publishes also merges."""
    job = pipeline.definitions().resolve_job_def(publication_job.name)
    assert job.execute_in_process(
        instance=pipeline.instance, asset_selection=[dg.AssetKey(PUBLISHED_PATH)], raise_on_error=False
    ).success


def dumps_of(pipeline: Pipeline, day: date) -> int:
    settings = pipeline.settings
    url, folder = settings.dump_url, settings.dump_dir / str(day)
    names = RemoteFolder(url).list(str(day)) if url else os.listdir(folder)
    return sum(name.endswith(".ndjson") for name in names)


def test_a_storage_that_cannot_be_listed_is_told(
    pipeline: Pipeline, s3_url: str, closed: date, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_collected(pipeline, DUMP_FED_ASSETS, [closed])
    there = Pipeline(replace(pipeline.settings, dump_url=s3_url), pipeline.instance)
    be_away(monkeypatch)
    line = late_line(there)
    assert (line.level, line.because_of) == (Level.RED, "dumps: dumps of today"), "one fault is told once"


def test_a_folder_that_cannot_be_listed_is_told(pipeline: Pipeline, closed: date) -> None:
    note_collected(pipeline, DUMP_FED_ASSETS, [closed])
    assert late_line(pipeline).level is Level.OK, "without a folder there is nothing"
    pipeline.settings.dump_dir.mkdir(parents=True, exist_ok=True)
    (pipeline.settings.dump_dir / str(closed)).write_text("no folder")
    line = late_line(pipeline)
    assert (line.level, "cannot be read" in line.words) == (Level.RED, True)

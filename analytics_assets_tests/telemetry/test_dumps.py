"""The dump file by itself: its bytes, its growth, and what a kill or a full disk leaves."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analytics_assets.contract import DUMP_FILE_PATTERN, MAX_COUNT
from analytics_assets.telemetry.dumps import PAGE_BYTES, DumpFile

DAY = "2026-11-22"
ROOT = Path(__file__).parents[2]


def only_file(folder: Path) -> Path:
    (path,) = folder.glob(f"{DAY}/*")
    return path


def rows(path: Path) -> list[dict[str, object]]:
    """Every line read the way any NDJSON reader would; fails on anything that is no JSON object."""
    data = path.read_bytes()
    assert b"\0" not in data
    return [json.loads(line) for line in data.split(b"\n") if line]


def counts(path: Path) -> list[object]:
    return [row["count"] for row in rows(path)]


def python(script: str, *arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "error", "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.fixture
def dump(tmp_path: Path) -> Iterator[DumpFile]:
    file = DumpFile(tmp_path, DAY)
    yield file
    file.close()


def test_the_lines_are_those_of_the_contract(tmp_path: Path, dump: DumpFile) -> None:
    dump.append({"event_date": DAY, "event_name": "directory_page_viewed", "event_id": "42", "source": "web"}, 17)
    dump.append(
        {"event_date": DAY, "event_name": "http_response", "endpoint": "GET /events/{event_id}", "status_code": 404}, 3
    )
    dump.close()
    first, second = (re.sub(r": +", ": ", line) for line in only_file(tmp_path).read_text().splitlines())
    assert first == (
        '{"event_date":"2026-11-22","event_name":"directory_page_viewed","event_id":"42","source":"web","count": 17}'
    )
    assert second == (
        '{"event_date":"2026-11-22","event_name":"http_response",'
        '"endpoint":"GET /events/{event_id}","status_code":404,"count": 3}'
    )


def test_name_and_mode_of_the_file(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        DumpFile(tmp_path / "made" / "on the way", DAY).close()
    finally:
        os.umask(before)
    path = only_file(tmp_path / "made" / "on the way")
    assert re.fullmatch(DUMP_FILE_PATTERN, path.name)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_group_may_remove_what_has_expired(tmp_path: Path, umask: int) -> None:
    tmp_path.chmod(0o2755)
    before = os.umask(umask)
    try:
        for _ in range(2):
            DumpFile(tmp_path / "dumps", DAY).close()
    finally:
        os.umask(before)
    for folder in (tmp_path / "dumps", tmp_path / "dumps" / DAY):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o2770 == 0o2770
        assert stat.S_IMODE(folder.stat().st_mode) & 0o007 == 0


def test_every_number_is_twelve_wide_ends_aligned_and_stays_in_its_page(tmp_path: Path, dump: DumpFile) -> None:
    numbers = [1, 9, 10, 99_999_999, 100_000_000, MAX_COUNT]
    for length in range(230):
        dump.append({"key": "k" * length}, numbers[length % len(numbers)])
    data = only_file(tmp_path).read_bytes()
    lines = list(re.finditer(rb'\{"key":"k*","count": {0,7}([ 0-9]{12})\}\n', data))
    assert len(lines) == 230
    for length, line in enumerate(lines):
        assert line[1] == b"%12d" % numbers[length % len(numbers)]
        assert line.end(1) % 8 == 0
        assert line.start() // PAGE_BYTES == (line.end() - 1) // PAGE_BYTES
    assert len(rows(only_file(tmp_path))) == 230


def test_a_file_holds_its_lines_and_nothing_else(tmp_path: Path) -> None:
    dump = DumpFile(tmp_path, DAY)
    path = only_file(tmp_path)
    assert path.read_bytes() == b""
    dump.append({"key": "a"}, 5)
    assert path.read_bytes().replace(b" ", b"") == b'{"key":"a","count":5}\n'
    dump.close()
    dump.close()
    assert path.read_bytes().replace(b" ", b"") == b'{"key":"a","count":5}\n'


def test_a_file_of_thousands_of_keys(tmp_path: Path, dump: DumpFile) -> None:
    lines = [dump.append({"key": number}, 1) for number in range(5000)]
    for number, line in enumerate(lines):
        dump.add(line, number + 1)
    assert rows(only_file(tmp_path)) == [{"key": number, "count": number + 2} for number in range(5000)]


@pytest.mark.parametrize("before", [1, 9, 99_999_998, 99_999_999, 10**8, 299_999_999, MAX_COUNT - 1])
@pytest.mark.parametrize("times", [1, 7, 10**8, 10**11])
def test_a_count_carries_into_every_digit(tmp_path: Path, dump: DumpFile, before: int, times: int) -> None:
    times = min(times, MAX_COUNT - before)
    line = dump.append({"key": "a"}, before)
    dump.append({"key": "b"}, 1)
    dump.add(line, times)
    assert (line.count, counts(only_file(tmp_path))) == (before + times, [before + times, 1])


keys = st.text(max_size=300)


@settings(deadline=None)
@given(steps=st.lists(st.tuples(keys, st.lists(st.integers(1, 10**9), min_size=1)), unique_by=lambda step: step[0]))
def test_what_is_added_is_what_is_read(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[int]]]
) -> None:
    folder = tmp_path_factory.mktemp("dumps")
    dump = DumpFile(folder, DAY)
    for key, (first, *others) in steps:
        line = dump.append({"key": key}, first)
        for times in others:
            dump.add(line, times)
    expected = [{"key": key, "count": sum(times)} for key, times in steps]
    assert rows(only_file(folder)) == expected
    dump.close()
    assert rows(only_file(folder)) == expected


def descriptors_of(path: Path) -> list[int]:
    """Every descriptor of this process for a file, also the one that a mapping keeps."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}") == str(path):
                found.append(int(number))
        except FileNotFoundError:  # the descriptor of this listing itself
            continue
    return found


@pytest.mark.parametrize("folder", [None, "/dev/shm"])  # noqa: S108 # another file system, with another largest position
@pytest.mark.parametrize("stray", [b"\0", b".", b"\1\0\0\0\0\0\0\0", b"\0" * 5000])
def test_a_stray_write_into_its_descriptor_reaches_no_line(tmp_path: Path, folder: str | None, stray: bytes) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        dump = DumpFile(Path(place), DAY)
        path = only_file(Path(place))
        lines = []
        for number in range(200):
            for descriptor in descriptors_of(path):
                with pytest.raises(OSError, match=r"File too large|Invalid argument"):
                    os.write(descriptor, stray)
            lines.append(dump.append({"key": number}, 1))
            dump.add(lines[number // 2], 10**8)
        assert len(descriptors_of(path)) == 2
        assert [row["key"] for row in rows(path)] == list(range(200))
        assert counts(path) == [1 + (2 if number < 100 else 0) * 10**8 for number in range(200)]
        dump.close()


LIVE = """
import os, sys
from pathlib import Path
from analytics_assets.telemetry.dumps import DumpFile

dump = DumpFile(Path(sys.argv[1]), "2026-11-22")
os.write(1, b".")
lines = []
for number in range(3000):
    lines.append(dump.append({"key": "k" * (number % 90)}, 95 + number))
    for line in lines[-10:]:
        dump.add(line, 1)
"""


def test_a_live_file_can_be_read_at_all_times(tmp_path: Path) -> None:
    with python(LIVE, tmp_path) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        path = only_file(tmp_path)
        seen = []
        while process.poll() is None:
            seen.append(len(rows(path)))
    assert process.returncode == 0
    assert seen == sorted(seen)
    assert sum(int(str(count)) for count in counts(path)) == sum(range(95, 3095)) + 10 * 3000 - 45


def acknowledged_until_killed(script: str, folder: Path, minimum: int) -> int:
    """How many bytes the script had written when it was killed, some time after the first `minimum`."""
    with python(script, folder) as process:
        assert process.stdout is not None
        received = len(process.stdout.read(minimum))
        process.kill()
        received += len(process.stdout.read())
    assert process.returncode == -signal.SIGKILL
    return received


KILLED = """
import itertools, math, os, sys
from pathlib import Path
from analytics_assets.telemetry.dumps import DumpFile

dump = DumpFile(Path(sys.argv[1]), "2026-11-22")
lines = []
for number in itertools.count():
    if math.isqrt(number) == len(lines):
        lines.append(dump.append({"key": "k" * (number % 97)}, 1))
    else:
        dump.add(lines[number % len(lines)], 1)
    os.write(1, b".")
"""


@pytest.mark.parametrize("acknowledged", [1, 2, 500, 5_000, 20_000, 40_000, 60_000, 80_000])
def test_a_kill_loses_nothing_and_leaves_no_half_line(tmp_path: Path, acknowledged: int) -> None:
    received = acknowledged_until_killed(KILLED, tmp_path, acknowledged)
    total = sum(count for count in counts(only_file(tmp_path)) if isinstance(count, int))
    assert received <= total <= received + 1


TORN = """
import os, sys
from pathlib import Path
from analytics_assets.telemetry.dumps import DumpFile

dump = DumpFile(Path(sys.argv[1]), "2026-11-22")
while True:
    lines = [dump.append({"key": "a"}, FIRST) for _ in range(1000)]
    os.write(1, b".")
    for line in lines:
        for times in STEPS:
            dump.add(line, times)
"""


@pytest.mark.parametrize("acknowledged", range(1, 16))
def test_a_kill_leaves_no_number_with_digits_of_two(tmp_path: Path, acknowledged: int) -> None:
    script = TORN.replace("FIRST", "11_111_111").replace("STEPS", "[11_111_111] * 8")
    acknowledged_until_killed(script, tmp_path, acknowledged)
    assert set(counts(only_file(tmp_path))) <= {11_111_111 * number for number in range(1, 10)}


@pytest.mark.parametrize("acknowledged", range(1, 16))
def test_a_kill_while_the_high_digits_change_leaves_the_old_number_or_the_new_one(
    tmp_path: Path, acknowledged: int
) -> None:
    script = TORN.replace("FIRST", "10**8").replace("STEPS", "[10**8 + 1, 10**8 - 1] * 4")
    acknowledged_until_killed(script, tmp_path, acknowledged)
    assert set(counts(only_file(tmp_path))) <= {number * 10**8 + (number % 2 == 0) for number in range(1, 10)}


FULL = """
import errno, resource, sys
from pathlib import Path
from analytics_assets.telemetry.dumps import DumpFile

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def refused(key):
    try:
        lines.append(dump.append({"key": key}, 1))
    except OSError as error:
        return error.errno == errno.EFBIG
    return False

lines = []
limit(0)
dump = DumpFile(Path(sys.argv[1]), "2026-11-22")
assert refused("too early")

limit(100_010)  # in the middle of a line
while not refused(len(lines)):
    pass
assert refused("one more")

limit(0)
for line in lines:
    dump.add(line, 2)

limit(resource.RLIM_INFINITY)
lines.append(dump.append({"key": len(lines)}, 3))
dump.add(lines[-1], 4)
print(len(lines))
"""


def test_a_full_disk_is_an_error_and_what_was_counted_stays(tmp_path: Path) -> None:
    with python(FULL, tmp_path) as process:
        output, _ = process.communicate()
    assert process.returncode == 0
    last = int(output) - 1
    assert last > 1000
    expected: list[dict[str, object]] = [{"key": number, "count": 3} for number in range(last)]
    assert rows(only_file(tmp_path)) == [*expected, {"key": last, "count": 7}]

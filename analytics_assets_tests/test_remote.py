"""A folder behind a URL: the same on a storage of objects and on a mounted share; no message tells a secret."""

import sys
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest

from analytics_assets.remote import RemoteError, RemoteFolder, find_url_problem, is_url, show
from analytics_assets_tests.support.s3 import be_away, forget_sessions

SECRETS = ("canary", "bucket-", "127.0.0.1")


def test_what_was_written_is_listed_read_and_removed(url: str) -> None:
    folder = RemoteFolder(url)
    assert folder.list() == folder.list("2026-11-22") == {}
    assert folder.list_folders(["2026-11-22"]) == {"2026-11-22": {}}
    folder.write("2026-11-22/a.ndjson", b"one")
    folder.write("2026-11-22/b.ndjson", b"two")
    folder.write("2026-11-22/a.ndjson", b"three")
    assert [(name, entry.is_file) for name, entry in folder.list().items()] == [("2026-11-22", False)]
    listed = folder.list("2026-11-22")
    assert {name: (entry.is_file, entry.size) for name, entry in listed.items()} == {
        "a.ndjson": (True, 5),
        "b.ndjson": (True, 3),
    }
    assert all(entry.changed for entry in listed.values())
    assert folder.list_folders(["2026-11-22", "2026-11-21"]) == {"2026-11-22": listed, "2026-11-21": {}}
    assert [folder.read(f"2026-11-22/{name}") for name in listed] == [b"three", b"two"]
    folder.remove("2026-11-22/a.ndjson")
    folder.remove("2026-11-22/a.ndjson")
    assert list(folder.list("2026-11-22")) == ["b.ndjson"]
    with pytest.raises(FileNotFoundError):
        folder.read("2026-11-22/a.ndjson")
    for _ in range(2):
        folder.remove_folder("2026-11-22")
        assert folder.list("2026-11-22") == {}


def test_another_process_sees_a_change_at_once(url: str) -> None:
    writer, reader = RemoteFolder(url), RemoteFolder(url)
    versions = set()
    for number in range(3):
        content = b"x" * (number + 1)  # SFTP tells times in whole seconds
        writer.write("2026-11-22/a", content)
        (entry,) = reader.list("2026-11-22").values()
        versions.add(entry.version)
        assert reader.read("2026-11-22/a") == content
    assert len(versions) == 3


def test_a_reader_sees_a_file_whole(url: str) -> None:
    folder, contents, done = RemoteFolder(url), [b"a" * 300_000, b"b" * 200_000], Event()
    folder.write("2026-11-22/a", contents[0])

    def write() -> None:
        try:
            writer = RemoteFolder(url)
            for number in range(30):
                writer.write("2026-11-22/a", contents[number % 2])
        finally:
            done.set()

    thread = Thread(target=write)
    thread.start()
    while not done.is_set():
        assert folder.read("2026-11-22/a") in contents
    thread.join()
    assert list(folder.list("2026-11-22")) == ["a"]


@pytest.mark.parametrize("url", ["file", "sftp"], indirect=True)
def test_two_machines_may_make_the_folder_of_a_day_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RemoteFolder(url)
    folder.write("2026-11-22/a", b"one")
    exists, asked = folder._fs.exists, list[str]()

    def not_yet(path: str) -> Any:
        asked.append(path)
        return len(asked) > 1 and exists(path)

    monkeypatch.setattr(folder._fs, "exists", not_yet)
    folder.write("2026-11-22/b", b"two")
    assert list(folder.list("2026-11-22")) == ["a", "b"]


@pytest.mark.parametrize("url", ["file", "sftp"], indirect=True)
def test_nothing_is_left_of_a_file_that_cannot_be_put_in_place(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RemoteFolder(url)

    def refuse_to_rename(*_: object) -> None:
        raise OSError("canary")

    monkeypatch.setattr(folder._fs, "mv", refuse_to_rename)
    refuse(folder.write, "2026-11-22/a", b"one")
    assert folder.list("2026-11-22") == {}


def test_a_share_that_is_not_mounted_is_not_made(tmp_path: Path) -> None:
    folder = RemoteFolder(f"file://{tmp_path}/share")
    assert folder.list() == {}
    with pytest.raises(RemoteError, match="the bucket or folder does not exist"):
        folder.write("2026-11-22/a", b"one")
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_that_does_not_exist_is_told(s3_url: str) -> None:
    folder = RemoteFolder("s3://bucket-of-nobody/dumps")
    assert folder.list() == {}
    with pytest.raises(RemoteError, match="the bucket or folder does not exist"):
        folder.write("2026-11-22/a", b"one")


def refuse(call: Any, *arguments: Any) -> str:
    with pytest.raises(RemoteError) as caught:
        call(*arguments)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    text = str(caught.value)
    assert not any(secret in text for secret in SECRETS)
    return text


def test_a_server_that_is_down_is_told_without_its_address(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    be_away(monkeypatch)
    folder = RemoteFolder(s3_url)
    assert "it cannot be reached or used: EndpointConnectionError" in refuse(folder.list)
    refuse(folder.read, "2026-11-22/a")
    refuse(folder.write, "2026-11-22/a", b"one")
    refuse(folder.remove, "2026-11-22/a")


def test_missing_credentials_are_told(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    forget_sessions()
    assert "NoCredentialsError" in refuse(RemoteFolder(s3_url).list)


def test_a_refused_access_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RemoteFolder(f"file://{tmp_path}")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("canary")  # root may read everything here

    monkeypatch.setattr(folder._fs, "ls", refused)
    assert "access is refused" in refuse(folder.list)


@pytest.mark.parametrize("url", ["canary://bucket/dumps", "sftp://bucket/dumps"])
def test_a_protocol_without_its_library_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sshfs", None)
    monkeypatch.delitem(sys.modules, "analytics_assets.sftp", raising=False)
    assert "pip install 'analytics-assets[ship]'" in refuse(RemoteFolder, url)


def test_fsspec_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert "pip install 'analytics-assets[ship]'" in refuse(RemoteFolder, "s3://bucket/dumps")


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("s3://bucket/dumps", None),
        ("s3://bucket", None),
        ("sftp://user@host:2222/dumps", None),
        ("file:///mnt/share/dumps", None),
        ("sftp://canary", "is not a URL of a folder"),
        ("sftp://canary/", "is not a URL of a folder"),
        ("sftp://user:canary@host/dumps", "must not hold a password"),
        ("sftp://user:@host/dumps", "must not hold a password"),
        ("az://container/dumps?sig=canary", "is not a URL of a folder"),
        ("simplecache::s3://bucket/dumps", "is not a URL of a folder"),
        ("s3://bucket/dumps #canary", "is not a URL of a folder"),
        ("s3://bucket/canary*", "is not a URL of a folder"),
        ("s3://bucket/[canary]/dumps", "is not a URL of a folder"),
        ("http://[canary", "is not a URL of a folder"),
        ("/var/canary", "is not a URL of a folder"),
        ("s3:///dumps", "names no bucket or host"),
        ("file://canary/share/dumps", "names a host"),
    ],
)
def test_a_url_that_cannot_be_one_is_told_without_it(url: str, problem: str | None) -> None:
    found = find_url_problem(url)
    assert (found or "").startswith(problem or "")
    assert (found is None) == (problem is None)
    assert "canary" not in (found or "")
    if problem is not None and is_url(url):
        refuse(RemoteFolder, url)


def test_a_url_is_shown_without_its_user() -> None:
    assert show("sftp://canary@host:22/dumps") == "sftp://host:22/dumps"
    assert show("file:///mnt/share") == "file:///mnt/share"
    assert is_url("s3://bucket")
    assert not is_url("/var/lib/dumps")

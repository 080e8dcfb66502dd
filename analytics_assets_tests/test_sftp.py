"""SFTP: no server is trusted but a known one, and nobody reads half a file of a process that was killed."""

import os
import subprocess
from datetime import timedelta
from pathlib import Path

import asyncssh
import pytest

from analytics_assets import sftp
from analytics_assets.dump_files import is_copy
from analytics_assets.remote import RemoteError, RemoteFolder
from analytics_assets.ship import Shipper, sum_counts
from analytics_assets.sources.dump_folder import copy_day
from analytics_assets.telemetry.dumps import DumpFile
from analytics_assets_tests.support.dumps import DAY
from analytics_assets_tests.support.processes import COMMAND, wait_until
from analytics_assets_tests.support.sftp import HoldingProxy, SftpServer

UNKNOWN = "the server's host key is unknown"
CHANGED = "the server's host key is not the one in known_hosts"


@pytest.fixture
def home(sftp_server: SftpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with the login key, and nothing of the server."""
    folder = tmp_path / "canary home/.ssh"
    folder.mkdir(parents=True)
    (folder / "id_ed25519").write_bytes((sftp_server.home / ".ssh/id_ed25519").read_bytes())
    monkeypatch.setenv("HOME", str(folder.parent))
    return folder


def refusal(url: str) -> str:
    with pytest.raises(RemoteError) as caught:
        RemoteFolder(url)
    assert caught.value.__cause__ is None
    text = str(caught.value)
    assert not any(secret in text for secret in ("canary", "127.0.0.1", "id_ed25519"))
    return text


def another_key(algorithm: str) -> str:
    return f"127.0.0.1 {asyncssh.generate_private_key(algorithm).export_public_key().decode()}"


def test_an_unknown_server_is_refused_until_its_key_is_known(
    sftp_server: SftpServer, sftp_url: str, home: Path
) -> None:
    assert refusal(sftp_url).startswith(UNKNOWN)
    (home / "known_hosts").write_text(another_key("ssh-ed25519").replace("127.0.0.1", "canary.example.org"))
    assert refusal(sftp_url).startswith(UNKNOWN)
    with (home / "known_hosts").open("a") as file:
        file.write((sftp_server.folder / "known_host").read_text())
    assert RemoteFolder(sftp_url).list() == {}


@pytest.mark.parametrize("algorithm", ["ssh-ed25519", "ecdsa-sha2-nistp256"])
def test_a_server_with_another_key_than_the_known_one_is_refused(sftp_url: str, home: Path, algorithm: str) -> None:
    (home / "known_hosts").write_text(another_key(algorithm))
    assert refusal(sftp_url).startswith(CHANGED)


def test_a_server_that_changes_its_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = SftpServer(tmp_path / "server")
    server.prepare()
    server.trust()
    monkeypatch.setenv("HOME", str(server.home))
    with server.running():
        assert RemoteFolder(server.url(tmp_path)).list()
    server.make_host_key()
    with server.running():
        assert refusal(server.url(tmp_path)).startswith(CHANGED)


@pytest.mark.parametrize(
    "line", ["UserKnownHostsFile none", "UserKnownHostsFile /dev/null", "StrictHostKeyChecking no"]
)
def test_no_configuration_turns_this_off(sftp_url: str, home: Path, line: str) -> None:
    (home / "config").write_text(f"Host *\n  {line}\n")
    assert refusal(sftp_url).startswith(UNKNOWN)


def ship(url: str, dumps: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [*COMMAND, "ship", url, "--from", str(dumps)]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_the_environment_names_key_and_known_hosts(sftp_server: SftpServer, sftp_url: str, tmp_path: Path) -> None:
    """A service has no home folder. No message has what the variables say, or who logs in."""
    (tmp_path / "dumps").mkdir()
    nowhere = {"HOME": str(tmp_path / "nowhere"), "SSH_AUTH_SOCK": ""}
    files = {"FSSPEC_SFTP_KNOWN_HOSTS": str(sftp_server.known_hosts)}
    key = {"FSSPEC_SFTP_CLIENT_KEYS": str(sftp_server.home / ".ssh/id_ed25519")}
    done = ship(sftp_url, tmp_path / "dumps", **nowhere, **files, **key)
    assert (done.returncode, done.stderr) == (0, "")
    shown = sftp_url.replace(sftp_url.partition("@")[0], "sftp:/").replace("sftp:/@", "sftp://")
    assert done.stdout == f"{shown}: 0 shipped, 0 unchanged\n"
    null = {"FSSPEC_SFTP": '{"known_hosts": null}'}
    for environment, words in (
        (files, "access is refused"),
        (key, UNKNOWN),
        (key | null, UNKNOWN),
        (files | key | {"FSSPEC_SFTP_CLIENT_KEYS": "/canary"}, "a file that the environment names"),
        (files | key | {"FSSPEC_SFTP_KNOWN_HOSTS": "/canary"}, "a file that the environment names"),
    ):
        done = ship(sftp_url, tmp_path / "dumps", **nowhere, **environment)
        assert done.returncode == 1
        assert words in done.stderr
        assert not any(secret in done.stderr for secret in ("canary", "127.0.0.1", "id_ed25519", "nowhere"))


def test_a_server_that_cannot_replace_a_file_at_once_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = SftpServer(tmp_path / "server")
    server.prepare()
    server.trust()
    monkeypatch.setenv("HOME", str(server.home))
    (tmp_path / "target").mkdir()
    with server.running(ForceCommand="internal-sftp -P posix-rename"):
        folder = RemoteFolder(server.url(tmp_path / "target"))
        with pytest.raises(RemoteError, match="it cannot be reached or used: SFTPOpUnsupported"):
            folder.write("2026-11-22/a", b"one")
        assert folder.list("2026-11-22") == {}


def test_a_server_that_does_not_answer_any_more_ends_the_wait(
    sftp_server: SftpServer, sftp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sftp, "_KEEPALIVE_SECONDS", 1)
    proxy = HoldingProxy(sftp_server.port)
    with proxy.running() as port:
        folder = RemoteFolder(sftp_server.url(tmp_path / "sftp", port))
        folder.write("2026-11-22/a", b"one")
        proxy.let_through = 0
        with pytest.raises(RemoteError, match="it cannot be reached or used"):
            folder.list()


def test_nobody_reads_half_of_what_a_killed_process_has_shipped(
    sftp_server: SftpServer, sftp_url: str, tmp_path: Path
) -> None:
    dumps, target, day = tmp_path / "dumps", RemoteFolder(sftp_url), tmp_path / "sftp" / str(DAY)
    dump = DumpFile(dumps, str(DAY))
    row = {"event_date": str(DAY), "event_name": "directory_searched"}
    lines = [dump.append({**row, "event_id": str(number)}, 1) for number in range(20_000)]

    def total() -> int:
        """As a reader finds it."""
        copy = tmp_path / "copy"
        copy.mkdir(exist_ok=True)
        return sum(sum_counts(path.read_bytes()) for path in copy_day(target, DAY, copy).glob("*.ndjson"))

    def ship_round() -> None:
        assert Shipper(dumps, target, 180).ship(DAY + timedelta(days=1)).problems == []

    ship_round()
    assert total() == len(lines)
    for line in lines:
        dump.add(line, 1)
    proxy = HoldingProxy(sftp_server.port, let_through=1_000_000)
    with proxy.running() as port:
        url = sftp_server.url(tmp_path / "sftp", port)
        command = [*COMMAND, "ship", url, "--from", str(dumps), "--retention-days", "3650"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_until(lambda: any(is_copy(path.name) and path.stat().st_size for path in day.iterdir()))
            assert total() == len(lines)
            process.kill()
    (left,) = (path for path in day.iterdir() if is_copy(path.name))
    assert 0 < left.stat().st_size < 2_000_000
    assert total() == len(lines)
    ship_round()
    assert total() == 2 * len(lines)
    assert left.exists()  # somebody might still write it
    dump.close()

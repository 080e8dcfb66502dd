"""A real OpenSSH server on loopback, with host and login keys of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import asyncssh
import pytest

from analytics_assets.local.processes import stop
from analytics_assets_tests.support.processes import free_port, wait_until
from analytics_assets_tests.support.s3 import CuttingProxy, answers

_PRIVILEGE_SEPARATION = Path("/run/sshd")
"""Debian's service makes it, and sshd wants it where root starts it."""


@dataclass
class SftpServer:
    """A server, and a home folder whose keys it accepts and which knows its host key."""

    folder: Path
    port: int = field(default_factory=free_port)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def known_hosts(self) -> Path:
        return self.home / ".ssh/known_hosts"

    def url(self, path: Path, port: int | None = None) -> str:
        return f"sftp://{getpass.getuser()}@127.0.0.1:{port or self.port}{path}"

    def prepare(self) -> None:
        (self.home / ".ssh").mkdir(parents=True)
        self.make_host_key()
        login = asyncssh.generate_private_key("ssh-ed25519")
        login.write_private_key(self.home / ".ssh/id_ed25519")
        login.write_public_key(self.folder / "authorized_keys")

    def make_host_key(self, algorithm: str = "ssh-ed25519") -> None:
        """Give the server another key, which the home folder does not know yet."""
        self.folder.joinpath("host_key").unlink(missing_ok=True)
        key = asyncssh.generate_private_key(algorithm)
        key.write_private_key(self.folder / "host_key")
        (self.folder / "host_key").chmod(0o600)
        public = key.export_public_key().decode()
        (self.folder / "known_host").write_text(f"127.0.0.1 {public}")  # on any port, so also behind a proxy

    def trust(self) -> None:
        shutil.copy(self.folder / "known_host", self.known_hosts)

    @contextmanager
    def running(self, **other_options: str) -> Iterator[None]:
        program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        if program is None:
            pytest.fail("the tests of SFTP need sshd: run `make test-programs`")
        if os.geteuid() == 0:
            _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        options = {
            "HostKey": self.folder / "host_key",
            "AuthorizedKeysFile": self.folder / "authorized_keys",
            "ListenAddress": f"127.0.0.1:{self.port}",
            "PidFile": "none",
            "Subsystem": "sftp internal-sftp",
            "ForceCommand": "internal-sftp",  # as an account for files only has it
            "PermitRootLogin": "prohibit-password",
            "PasswordAuthentication": "no",
            "UsePAM": "no",
            "StrictModes": "no",  # the folder for temporary files is everybody's
            "MaxStartups": "200",
        } | other_options
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        command = [
            program,
            "-D",
            "-e",
            "-f",
            "/dev/null",
            "-p",
            str(self.port),
            "-o",
            "ListenAddress=127.0.0.1",
            *words,
        ]
        with (self.folder / "sshd.log").open("ab") as log, subprocess.Popen(command, stderr=log) as process:
            try:
                wait_until(lambda: answers(self.port) or process.poll() is not None)
                assert process.poll() is None, (self.folder / "sshd.log").read_text()
                yield
            finally:
                stop(process)


@dataclass
class HoldingProxy(CuttingProxy):
    """Passes connections on, and from some moment on nothing that a client sends."""

    share: float = 0
    let_through: int | None = None
    """Bytes of a client, of each connection; None passes everything."""
    over: Event = field(default_factory=Event)

    def _pass(self, source: socket.socket, sink: socket.socket, cut_after: int | None) -> None:
        passed, to_server = 0, sink.getpeername()[1] == self.port_behind
        with suppress(OSError):
            while data := source.recv(65536):
                passed += len(data)
                if to_server and self.let_through is not None and passed > self.let_through:
                    self.over.wait()
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
                each.close()

    @contextmanager
    def running(self) -> Iterator[int]:
        with super().running() as port:
            try:
                yield port
            finally:
                self.over.set()


@contextmanager
def sftp_server(folder: Path) -> Iterator[SftpServer]:
    """Start a server that the home folder of its keys knows."""
    server = SftpServer(folder)
    server.prepare()
    server.trust()
    with server.running():
        yield server

"""A real server of S3, on loopback by default, and a proxy in front of it that cuts connections."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from random import Random

import pytest
import requests
from s3fs import S3FileSystem

from analytics_assets.local.processes import stop
from analytics_assets_tests.support.processes import LOOPBACK, free_port, wait_until

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "canary-key",
    "AWS_SECRET_ACCESS_KEY": "canary-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def environment(port: int, address: str = LOOPBACK) -> dict[str, str]:
    """What the library of S3 reads."""
    return CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://{address}:{port}"}


def forget_sessions() -> None:
    """Let the library read the environment again."""
    S3FileSystem.clear_instance_cache()


def be_away(patch: pytest.MonkeyPatch) -> None:
    """Let nobody listen where the server is looked for."""
    patch.setenv("AWS_ENDPOINT_URL", f"http://{LOOPBACK}:9")
    patch.setenv("AWS_MAX_ATTEMPTS", "1")
    forget_sessions()


def answers(port: int, address: str = LOOPBACK) -> bool:
    with suppress(OSError), socket.create_connection((address, port)):
        return True
    return False


@dataclass(frozen=True)
class Server:
    """A server of S3 without any bucket."""

    address: str
    port: int
    process: subprocess.Popen[bytes]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let requests wait for their answers."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def s3_server(address: str = LOOPBACK, **variables: str) -> Iterator[Server]:
    """Start a server of S3, with some environment variables."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", address, "-p", str(port)]
    env = os.environ | variables
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: answers(port, address))
            yield Server(address, port, process)
        finally:
            stop(process)


def make_bucket(port: int, name: str, address: str = LOOPBACK) -> None:
    with requests.Session() as session:
        session.trust_env = False  # it never goes through a proxy
        session.put(f"http://{address}:{port}/{name}", timeout=60).raise_for_status()


@dataclass
class CuttingProxy:
    """Passes connections on, and cuts some of them after some bytes, by a generator with a seed."""

    port_behind: int
    share: float
    """Of the connections, is cut."""
    random: Random = field(default_factory=lambda: Random(1))  # noqa: S311  # no secret
    cut: int = 0

    @contextmanager
    def running(self) -> Iterator[int]:
        """Yield the port to connect to."""
        with socket.create_server((LOOPBACK, 0)) as listener:
            threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
            try:
                yield listener.getsockname()[1]
            finally:
                with suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                cut_after = self.random.randrange(0, 2000) if self.random.random() < self.share else None
                try:
                    behind = socket.create_connection((LOOPBACK, self.port_behind))
                except OSError:  # the client is told, and the next one is served
                    client.close()
                    continue
                for each in (client, behind):
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else small answers wait 40 ms
                for source, sink in ((client, behind), (behind, client)):
                    threading.Thread(target=self._pass, args=(source, sink, cut_after), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, cut_after: int | None) -> None:
        passed = 0
        with suppress(OSError):
            while data := source.recv(65536):
                if cut_after is not None and passed + len(data) > cut_after:
                    sink.sendall(data[: cut_after - passed])
                    self.cut += 1
                    break
                sink.sendall(data)
                passed += len(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
                each.close()


@dataclass
class PagesProxy(CuttingProxy):
    """Passes connections on, and does something before each page of a listing that a client asks for."""

    share: float = 0
    before_page: Callable[[], object] = lambda: None

    def _pass(self, source: socket.socket, sink: socket.socket, cut_after: int | None) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if b"list-type=2" in data:
                    self.before_page()
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
                each.close()

"""Machines of their own as far as the network goes: each reaches this machine at one address, and nothing else.

They are network namespaces of Linux, which root may make unless a container keeps it from that. Where they cannot be
made, everybody is on loopback.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Address
from itertools import count

from analytics_assets_tests.support.processes import LOOPBACK

_NUMBERS = count()
_FIRST = int(IPv4Address("198.18.0.0"))
"""Of 2**17 addresses that are for tests of networks (RFC 2544)."""


@dataclass(frozen=True)
class Network:
    """Where this machine and others are."""

    address: str = LOOPBACK
    """Where the others reach this machine."""
    machines: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name -> namespace and address. Without any, all are on loopback."""

    def enter(self, machine: str) -> Sequence[str]:
        """The words before a command that lets it run on a machine."""
        return [_program(), "netns", "exec", self.machines[machine][0]] if self.machines else []

    def address_of(self, machine: str) -> str:
        return self.machines[machine][1] if self.machines else LOOPBACK


@cache
def available() -> bool:
    """Whether namespaces can be made here.

    It is tried three times: what another process does at the same moment must not decide what a session's tests are.
    """
    for _ in range(3):
        with suppress(OSError, subprocess.CalledProcessError), namespaces("machine") as network:
            subprocess.run([*network.enter("machine"), "true"], check=True, capture_output=True)
            return True
    return False


def kind() -> str:
    """What the tests on this machine have, for their names."""
    return "network namespaces" if available() else "without network namespaces"


@contextmanager
def namespaces(*machines: str) -> Iterator[Network]:
    """Make a namespace for each machine. They go afterwards, also where one could not be made.

    Raises:
        OSError: there is no program `ip`.
        subprocess.CalledProcessError: they cannot be made.
    """
    first = _FIRST + 16 * secrets.randbelow(2**13)
    ours, *theirs = (str(IPv4Address(first + number)) for number in range(1, len(machines) + 2))
    network = Network(ours)
    with ExitStack() as stack:
        for machine, address in zip(machines, theirs, strict=True):
            # Unique on this machine, and short enough for the name of a link.
            name = f"aa{os.getpid()}-{next(_NUMBERS)}"
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)
            _ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
            # At once; otherwise it stays until the last process in the namespace has ended.
            stack.callback(_ip, "link", "delete", name)
            _ip("address", "add", ours, "peer", address, "dev", name)
            _ip("link", "set", name, "up")
            _ip("-netns", name, "address", "add", address, "peer", ours, "dev", "eth0")
            _ip("-netns", name, "link", "set", "eth0", "up")
            _ip("-netns", name, "link", "set", "lo", "up")
            network.machines[machine] = (name, address)
        yield network


def _ip(*words: str) -> None:
    subprocess.run([_program(), *words], check=True, capture_output=True)


def _program() -> str:
    found = shutil.which("ip", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise FileNotFoundError("there is no program `ip`")
    return found

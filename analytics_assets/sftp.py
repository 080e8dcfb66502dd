"""SFTP for `remote`: a file system of fsspec that trusts no server but those in known_hosts.

fsspec's own accepts any host key, and so does sshfs unless it is told otherwise. Keys, agent and `~/.ssh/config` are
what SSH knows; `FSSPEC_SFTP_KNOWN_HOSTS`, `FSSPEC_SFTP_CLIENT_KEYS` and others replace them, as fsspec reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import fsspec
from asyncssh import HostKeyNotVerifiable, match_known_hosts
from sshfs import SSHFileSystem

_SYSTEM_KNOWN_HOSTS: Final = Path("/etc/ssh/ssh_known_hosts")

_CONNECT_SECONDS: Final = 30
_KEEPALIVE_SECONDS: Final = 15
"""A server that answers none of three messages so far apart is gone. Without them, a call may wait for ever."""


class HostKeyError(Exception):
    """The server's host key is not trusted. The text names no host."""


class Sftp(SSHFileSystem):  # type: ignore[misc]  # sshfs has no types
    """SFTP alone: an account for files only has no shell, and a copy is not put in place at once."""

    async def _mv(self, lpath: str, rpath: str, **_: Any) -> None:
        # sshfs copies by a shell where the server lacks this request, which replaces a file in one step.
        async with self._pool.get() as channel:
            await channel.posix_rename(lpath, rpath)

    async def _pipe_file(self, path: str, data: bytes, **_: Any) -> None:
        # sshfs makes the folder first, also that of a share which is not mounted.
        async with self._pool.get() as channel, channel.open(path, "wb") as file:
            await file.write(data)


def connect(url: str) -> tuple[Sftp, str]:
    """Return the file system of a URL, and the path in it.

    Raises:
        HostKeyError: the server is not in known_hosts, or has another key there.
    """
    options = {**fsspec.config.conf.get("sftp", {})}
    named = options.pop("known_hosts", None)
    files = [named] if named else [str(path) for path in _find_known_hosts()]
    known = []

    def match(host: str, address: str, port: int | None) -> Any:
        keys, authorities, revoked, *_ = match_known_hosts(files or b"", host, address, port)
        known.extend([*keys, *authorities])
        return keys, authorities, revoked

    options |= {
        "known_hosts": match,
        # After those of the known keys: a server with a key of another kind is told from one that does not answer.
        "server_host_key_algs": "+ssh-ed25519,ecdsa-sha2-*,rsa-sha2-*",
        "connect_timeout": _CONNECT_SECONDS,
        "keepalive_interval": _KEEPALIVE_SECONDS,
    }
    try:
        # A connection that was lost is not made again, so each folder has its own.
        opened = Sftp(**(options | Sftp._get_kwargs_from_urls(url)), skip_instance_cache=True)
    except HostKeyNotVerifiable:
        if known:
            raise HostKeyError(
                "the server's host key is not the one in known_hosts: somebody may be in between, or the server was"
                " set up anew; ask its operator for the fingerprint before you replace the line"
            ) from None
        raise HostKeyError(
            "the server's host key is unknown: compare its fingerprint with what the server's operator says, and add it"
            " to ~/.ssh/known_hosts or to the file that FSSPEC_SFTP_KNOWN_HOSTS names"
        ) from None
    return opened, str(Sftp._strip_protocol(url))


def _find_known_hosts() -> list[Path]:
    return [path for path in (Path("~/.ssh/known_hosts").expanduser(), _SYSTEM_KNOWN_HOSTS) if path.is_file()]

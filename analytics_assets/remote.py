"""A folder behind a URL of fsspec, such as `s3://`, `gs://`, `sftp://` or `file://`: names and bytes, in days.

What a dump holds, and which of them travel, belongs elsewhere. The libraries read credentials from the environment.
Their texts may hold a URL or a key, so no error of theirs is shown or chained.
"""

from __future__ import annotations

import base64
import re
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from analytics_assets.dump_files import SHIPPING

_WHOLE_OBJECTS: Final = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci"})
"""Protocols of object storage: what is written there appears at once and whole, and there are no folders to make."""

_SFTP: Final = frozenset({"sftp", "ssh"})

_PARALLEL: Final = 16
"""Transfers at once. fsspec's synchronous file systems share one connection and get one."""


class RemoteError(OSError):
    """The folder cannot be read or written. The text names neither the URL nor a credential."""


@dataclass(frozen=True)
class Entry:
    """One name in a remote folder."""

    is_file: bool
    size: int
    version: str
    """Another one where the content has changed, as far as the storage tells."""
    md5: str | None
    """In hex, where the storage tells it. It may be another number than the content's MD5, but never by chance."""
    changed: datetime | None
    """The last change by the storage's clock, None where it does not tell."""


def is_url(text: str) -> bool:
    """Return whether a text is a URL and not a path."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is not None


def find_url_problem(url: str) -> str | None:
    """Return why a URL cannot be the folder of dumps, in words that hold nothing of it."""
    try:
        parts = urlsplit(url)
        password = parts.password
    except ValueError:
        return "is not a URL of a folder (s3://bucket/folder)"
    if password is not None:
        return "must not hold a password: the library of its protocol reads credentials from the environment"
    no_folder = parts.scheme in _SFTP and not parts.path.strip("/")
    is_pattern = re.search(r"[*\[]", parts.path)  # fsspec would remove whatever fits it
    if not is_url(url) or no_folder or is_pattern or parts.query or parts.fragment or re.search(r"::|\s", url):
        return "is not a URL of a folder (s3://bucket/folder)"
    if parts.scheme == "file" and parts.netloc:
        return "names a host: the path of a share comes after three slashes (file:///mnt/share)"
    if parts.scheme != "file" and not parts.hostname:
        return "names no bucket or host (s3://bucket/folder)"
    return None


def show(url: str) -> str:
    """Return a URL as it may be printed: without a user."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@contextmanager
def _guarded() -> Iterator[None]:
    """Raise FileNotFoundError without its text, and any other error as RemoteError."""
    try:
        yield
    except RemoteError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError from None
    except PermissionError:
        raise RemoteError("access is refused: see the credentials in the environment, and their rights") from None
    except Exception as error:  # of any library; its text may hold a key
        raise RemoteError(f"it cannot be reached or used: {type(error).__name__}") from None


class RemoteFolder:
    """The folder of a URL. Paths are relative to it, such as `2026-11-22/<name>`.

    Raises:
        RemoteError: also by every method; the protocol is unknown, or its library is not installed.
    """

    def __init__(self, url: str) -> None:
        if problem := find_url_problem(url):
            raise RemoteError(f"the URL {problem}")
        scheme = urlsplit(url).scheme
        try:
            with _guarded():
                self._fs, root = _open(url, scheme)
        except FileNotFoundError:
            raise RemoteError("a file that the environment names for its library does not exist") from None
        self._root = str(root).rstrip("/")
        self._whole_objects = scheme in _WHOLE_OBJECTS
        self._parallel = _PARALLEL if self._fs.async_impl else 1

    def list(self, folder: str = "") -> dict[str, Entry]:
        """Return what is directly in a folder, sorted by name. A missing folder has nothing."""
        with _guarded():
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._path(folder), detail=True)
            except FileNotFoundError:
                return {}
        root = f"{self._path(folder)}/"
        entries: dict[str, Entry] = {}
        for info in found:
            name = str(info["name"]).removesuffix("/").removeprefix(root)
            if name and "/" not in name:  # an object whose key ends in `/` stands for the folder itself
                entries[name] = _entry(info)
        return dict(sorted(entries.items()))

    def list_folders(self, folders: Iterable[str]) -> dict[str, dict[str, Entry]]:
        """Return what is directly in some folders, with as few questions as the protocol allows."""
        if not self._whole_objects:
            names = list(folders)
            with self.in_parallel() as executor:
                return dict(zip(names, executor.map(self.list, names), strict=True))
        found: dict[str, dict[str, Entry]] = {name: {} for name in folders}
        with suppress(FileNotFoundError), _guarded():
            self._fs.invalidate_cache()
            # A thousand names per question, whatever their folders.
            for path, info in self._fs.find(self._root, detail=True).items():
                folder, _, name = path.removeprefix(f"{self._root}/").partition("/")
                if folder in found and name and "/" not in name:
                    found[folder][name] = _entry(info)
        return found

    def read(self, path: str) -> bytes:
        """Return the content of a file that is not empty. Raises FileNotFoundError where it is missing."""
        with _guarded():
            # With a start, s3fs asks once, and gets one version of the object.
            content: bytes = self._fs.cat_file(self._path(path), start=0)
        return content

    def write(self, path: str, content: bytes) -> None:
        """Write a file, so that a reader sees the old one or the new one, whole."""
        try:
            with _guarded():
                if self._whole_objects:
                    self._fs.pipe_file(self._path(path), content)
                    return
                folder = self._path(path.rpartition("/")[0])
                # The root is never made: where a share is not mounted, dumps would fill the disk below.
                if not self._fs.exists(folder):
                    try:
                        self._fs.mkdir(folder, create_parents=False)
                    except FileNotFoundError:
                        raise
                    except Exception:
                        if not self._fs.exists(folder):  # another machine has made it; SFTP does not say why it failed
                            raise
                # A name of its own: what the server still writes of a process that was killed must not get into this.
                unfinished = f"{folder}/{secrets.token_hex(16)}{SHIPPING}"
                try:
                    self._fs.pipe_file(unfinished, content)
                    self._fs.mv(unfinished, self._path(path))
                except Exception:
                    with suppress(Exception):  # out of reach: a later round removes it
                        self._fs.rm_file(unfinished)
                    raise
        except FileNotFoundError:
            raise RemoteError("the bucket or folder does not exist") from None

    def remove(self, path: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError), _guarded():
            self._fs.rm_file(self._path(path))

    def remove_folder(self, folder: str) -> None:
        """Remove a folder and all that is in it."""
        with suppress(FileNotFoundError), _guarded():
            self._fs.rm(self._path(folder), recursive=True)

    def in_parallel(self) -> ThreadPoolExecutor:
        """Return an executor for as many transfers at once as the protocol takes."""
        return ThreadPoolExecutor(self._parallel)

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root


def _open(url: str, scheme: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it. Raises also what `_guarded` takes."""
    try:
        import fsspec  # the extra "ship", which a pipeline with a local folder does not need

        if scheme not in _SFTP:
            # An object storage needs a session per process, which takes a third of a second.
            return fsspec.core.url_to_fs(url, skip_instance_cache=scheme not in _WHOLE_OBJECTS)  # type: ignore[no-any-return]  # fsspec has no types
        from analytics_assets.sftp import HostKeyError, connect
    except (ImportError, ValueError):
        raise RemoteError(
            "the library of its protocol is not installed: pip install 'analytics-assets[ship]' brings that of"
            " s3://, and [ship,sftp] that of sftp://; gs:// needs gcsfs"
        ) from None
    try:
        return connect(url)
    except HostKeyError as error:
        raise RemoteError(str(error)) from None


def _entry(info: dict[str, Any]) -> Entry:
    told = (info.get(key) for key in ("LastModified", "last_modified", "updated", "mtime"))
    changed = _moment(next(filter(None, told), None))
    md5, size = _md5(info), int(info.get("size") or 0)
    version = md5 or str(info.get("ETag") or info.get("etag") or f"{size} {changed}")
    return Entry(info.get("type") == "file", size, version, md5, changed)


def _md5(info: dict[str, Any]) -> str | None:
    etag = str(info.get("ETag", "")).strip('"')
    if re.fullmatch(r"[0-9a-f]{32}", etag):
        return etag
    try:
        found = base64.b64decode(str(info.get("md5Hash", "")), validate=True).hex()
    except ValueError:
        return None
    return found if len(found) == 32 else None


def _moment(value: object) -> datetime | None:
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    try:
        return datetime.fromisoformat(str(value))
    except ValueError:
        return None

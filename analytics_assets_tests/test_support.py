"""What tests share has one place, and leaves nothing on the machine."""

import ast
import os
import subprocess
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from analytics_assets_tests.support import namespaces

TESTS = Path(__file__).parent
SHARED = "analytics_assets_tests.support"


def imported(source: str) -> set[str]:
    """Dotted names of the modules of tests that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in {"", TESTS.name, "conftest"}}


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_no_module_of_tests_is_imported_but_those_of_support(path: Path) -> None:
    assert {name for name in imported(path.read_text(encoding="utf-8")) if not name.startswith(f"{SHARED}.")} == set()


@pytest.mark.parametrize(
    "statement",
    [
        "from analytics_assets_tests.conftest import x",
        "from analytics_assets_tests.store.test_access import x",
        "from analytics_assets_tests.store import test_access",
        "import analytics_assets_tests.test_guard",
        "import conftest",
        "from . import test_guard",
        "from .test_guard import x",
        "def f():\n    from analytics_assets_tests import test_guard",
    ],
)
def test_every_way_to_import_one_is_noticed(statement: str) -> None:
    (name,) = imported(statement)
    assert not name.startswith(SHARED)


@pytest.mark.parametrize("_kind", [namespaces.kind()])
def test_nothing_is_left_of_a_namespace_whatever_fails(_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = count(1)
    execute = namespaces._ip

    def fail(*words: str) -> None:
        if "delete" not in words and next(steps) == failing:
            raise OSError
        execute(*words)

    monkeypatch.setattr(namespaces, "_ip", fail)
    for failing in (*range(1, 8), None):
        steps = count(1)
        with suppress(OSError, subprocess.CalledProcessError), namespaces.namespaces("machine"):
            assert failing is None
            raise OSError
        made = {path.name for folder in ("/run/netns", "/sys/class/net") for path in Path(folder).glob("aa*")}
        assert not {name for name in made if name.startswith(f"aa{os.getpid()}-")}, failing

"""Imports point one way, and collecting never reaches retention. docs/architecture.md has the picture."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "analytics_assets"

PICTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("```mermaid\n")[1].split("```")[0]

# A module of `defs` may import the modules of the lines below it.
DEFS_LAYERS = [
    {"schedules", "sensors"},
    {"jobs"},
    {"assets", "checks"},
    {"collect"},
    {"evaluation", "pages"},
    {"partitions", "retries"},
]
DEFS_RANK = {name: rank for rank, names in enumerate(DEFS_LAYERS) for name in names}

WEB_APPLICATION = {"telemetry", "guard", "days", "contract"}
"""What a web application loads: the standard library and these parts."""


def name_of(path: Path) -> str:
    """`analytics_assets.store.counts` of its file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts}


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found


def own_imports(name: str) -> set[str]:
    """Modules of this package that a module imports."""
    return {found for found in imports(MODULES[name]) if found in MODULES and found != "analytics_assets"}


def part(name: str) -> str:
    """`store` of `analytics_assets.store.counts`."""
    return name.split(".")[1]


def allowed() -> dict[str, set[str]]:
    """Part -> the parts that the picture's arrows lead to from there, directly or through others."""
    found: dict[str, set[str]] = {shown: set() for shown in re.findall(r'^ +(\w+)\["<b>', PICTURE, re.MULTILINE)}
    for line in PICTURE.splitlines():
        for starts, ends in pairwise(re.findall(r"\w+", side) for side in line.split("-->")):
            for start in starts:
                found[start] |= set(ends)
    for _ in found:  # a path has no more arrows than there are parts
        for reached in found.values():
            reached |= {further for end in reached for further in found[end]}
    return found


def arrows() -> Iterator[tuple[str, str]]:
    """Every import from one module of the package to another."""
    for name in MODULES:
        yield from ((name, other) for other in own_imports(name))


def reachable(names: Iterable[str]) -> set[str]:
    """What is imported, directly or through others."""
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        found |= waiting
        waiting = set().union(*map(own_imports, waiting)) - found
    return found


def test_the_picture_shows_every_part_and_no_cycle() -> None:
    assert set(allowed()) == {part(name) for name in MODULES if name != "analytics_assets"}
    assert [shown for shown, ends in allowed().items() if shown in ends] == []
    assert {name.split(".")[2] for name in MODULES if name.startswith("analytics_assets.defs.")} == set(DEFS_RANK)


def test_every_import_is_an_arrow_of_the_picture() -> None:
    ends = allowed()
    for name, other in arrows():
        if part(name) != part(other):
            assert part(other) in ends[part(name)], f"{name} imports {other}"
        elif part(name) == "defs" and other != "analytics_assets.defs":
            assert DEFS_RANK[other.split(".")[2]] > DEFS_RANK[name.split(".")[2]], f"{name} imports {other}"


def test_no_modules_import_each_other() -> None:
    for name in MODULES:
        assert name not in reachable(own_imports(name)), f"{name} imports itself through others"


def test_collecting_does_not_reach_retention() -> None:
    found = reachable(["analytics_assets.defs.collect", "analytics_assets.defs.assets"])
    assert not {name for name in found if part(name) == "retention"}


def test_retention_has_no_dagster_definitions() -> None:
    decorators = {"asset", "asset_check", "multi_asset_check", "job", "op", "schedule", "sensor"}
    for name, path in MODULES.items():
        if name.startswith("analytics_assets.retention"):
            used = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            assert not used & (decorators | {"Definitions", "define_asset_job"}), name


def test_what_the_web_application_loads_is_the_standard_library() -> None:
    for name, path in MODULES.items():
        if name != "analytics_assets" and part(name) in WEB_APPLICATION:
            for found in imports(path):
                ours = found in MODULES and part(found) in WEB_APPLICATION
                assert ours or found.split(".")[0] in sys.stdlib_module_names, f"{name} imports {found}"


def test_importing_the_package_imports_nothing() -> None:
    assert not imports(PACKAGE / "__init__.py")


def test_only_definitions_read_the_environment_at_import() -> None:
    """Settings are read once: everything else is handed the same object."""
    readers = set()
    for name, path in MODULES.items():
        waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.Attribute) and node.attr in {"from_env", "environ", "getenv"}:
                readers.add(name)
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            waiting += [] if inside else ast.iter_child_nodes(node)
    assert readers == {"analytics_assets.definitions"}


def test_definitions_load_only_what_every_run_needs() -> None:
    """Every run loads them, in a process of its own."""
    script = (
        "import dagster, gc, sys; before = len(gc.get_objects()); import analytics_assets.definitions;"
        " print(before < gc.get_freeze_count(), *sys.modules)"
    )
    frozen, *loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert frozen == "True"
    rare = {"altair", "apprise", "celery", "fsspec", "pymysql", "starlette", "vl_convert"}
    assert not rare & set(loaded)

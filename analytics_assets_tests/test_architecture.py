"""Imports point one way."""

import ast
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "analytics_assets"

# What a module may import of ours, by its first part; everything further down is allowed to everything further up.
LAYERS = [
    {"cli"},
    {"definitions", "local"},
    {"metrics", "schedules"},
    {"access"},
    {"collect"},
    {"retention"},
    {"checks"},
    {"partitions"},
    {"sources", "store", "event_log"},
    {"database"},
    {"dictionary"},
    {"settings"},
    {"telemetry"},
    {"days"},
    {"guard"},
    {"contract"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found.add(str(node.module))
            if node.module == "analytics_assets":
                found |= {f"analytics_assets.{alias.name}" for alias in node.names}
    return found


def part(name: str) -> str | None:
    """`store` of `analytics_assets.store.counts`."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "analytics_assets" and len(pieces) > 1 else None


def modules() -> dict[Path, str]:
    return {
        path: path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for path in PACKAGE.rglob("*.py")
        if path != PACKAGE / "__init__.py"
    }


def test_every_part_has_its_place() -> None:
    assert set(modules().values()) == set(RANK)


def test_no_module_imports_from_above() -> None:
    for path, own in modules().items():
        for name in imports(path):
            other = part(name)
            if other is not None and other != own:
                assert RANK[other] > RANK[own], f"{path.relative_to(PACKAGE)} imports {name}"


def test_what_the_web_application_loads_is_the_standard_library() -> None:
    for path, own in modules().items():
        if own in {"telemetry", "guard", "contract", "days"}:
            for name in imports(path):
                standard = name.split(".")[0] in sys.stdlib_module_names
                assert standard or part(name) in {"telemetry", "guard", "contract", "days"}, (
                    f"{path.name} imports {name}"
                )


def test_importing_the_package_imports_nothing() -> None:
    assert not imports(PACKAGE / "__init__.py")

"""Documentation that the code holds to."""

import ast
import importlib
import re
from pathlib import Path

from analytics_assets.cli import main
from analytics_assets.dictionary import markdown
from analytics_assets.settings import VARIABLES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_data_dictionary_is_what_the_contract_generates() -> None:
    path = ROOT / "docs/data-dictionary.md"
    assert path.read_text(encoding="utf-8") == markdown(), f"run: analytics-assets dictionary --write {path}"


def test_the_readme_lists_every_setting_with_its_meaning() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*) \|$", README, re.MULTILINE))
    assert rows == VARIABLES


def test_the_readme_names_only_commands_and_targets_that_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets
    named = set(re.findall(r"analytics-assets ([a-z][a-z-]*)", README))
    assert named <= set(main.commands)
    assert named >= {"up", "demo", "init-db", "sources", "dictionary"}


def test_links_between_our_pages_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_python_of_our_pages_compiles_and_imports_what_exists() -> None:
    blocks = [
        block
        for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), block


def test_no_file_names_a_registry_or_a_folder_of_one_machine() -> None:
    for path in (*ROOT.glob("*.lock"), *ROOT.glob("*.toml"), *ROOT.glob("*.yaml"), ROOT / "Makefile"):
        assert not re.search(r"index-url|find-links|https?://|file://|/home/|/root/", _uncommanded(path)), path.name


def _uncommanded(path: Path) -> str:
    # The Makefile passes the options that keep addresses out of the lock files.
    return path.read_text(encoding="utf-8").replace("--no-emit-index-url", "").replace("--no-emit-find-links", "")

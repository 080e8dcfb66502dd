"""Documentation that the code holds to."""

import ast
import importlib
import re
import tomllib
from collections import Counter
from datetime import date
from pathlib import Path

import pytest

from analytics_assets.cli import main
from analytics_assets.contract import DROP_REASONS, FAILED
from analytics_assets.dictionary import markdown
from analytics_assets.settings import VARIABLES

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "analytics_assets"
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
DECISIONS = ROOT / "docs/decisions"

PAGES = sorted(
    page
    for entry in ROOT.iterdir()
    if not entry.name.startswith(".") or entry.name == ".github"  # .venv is full of other people's pages
    for page in ([entry] if entry.suffix == ".md" else entry.rglob("*.md"))
)
any_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    """The page without its blocks of code, in which `#` and brackets mean something else."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchor(heading: str) -> str:
    """What GitHub makes of a heading: its text, in lower case, without punctuation, with hyphens for spaces."""
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w -]", "", text.strip().lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """The anchors of every heading. GitHub numbers the ones that repeat."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        name = anchor(heading)
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def test_the_data_dictionary_is_what_the_contract_generates() -> None:
    path = ROOT / "docs/data-dictionary.md"
    assert path.read_text(encoding="utf-8") == markdown(), f"run: analytics-assets dictionary --write {path}"


def test_the_telemetry_page_explains_every_reason_to_drop_a_count() -> None:
    table = re.findall(r"^\|.*\|$", (ROOT / "docs/telemetry.md").read_text(encoding="utf-8"), re.MULTILINE)
    for reason in DROP_REASONS.keys() - {FAILED}:  # any other error
        assert any(f"(`{reason}`)" in row for row in table), reason


def test_the_readme_lists_every_setting_with_its_meaning() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| (.*) \|$", README, re.MULTILINE))
    assert rows == VARIABLES


@any_page
def test_a_page_names_only_commands_and_targets_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^\$ )make ([a-z-]+)", text, re.MULTILINE)) <= targets
    assert set(re.findall(r"analytics-assets ([a-z][a-z-]*)", text)) <= set(main.commands)


def test_the_readme_shows_the_commands_that_a_newcomer_needs() -> None:
    commands = set(re.findall(r"analytics-assets ([a-z][a-z-]*)", README))
    assert commands >= {"up", "demo", "init-db", "sources", "dictionary"}
    assert set(re.findall(r"^\$ make ([a-z-]+)", README, re.MULTILINE)) >= {"demo", "test", "install"}


@any_page
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    without_code = re.sub(r"`[^`]*`", "", prose(page))
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", without_code):
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert file.is_relative_to(ROOT), target
        assert not heading or heading in anchors(file), target


def test_the_python_of_our_pages_compiles_and_imports_what_exists() -> None:
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    ]
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), block


# --- decisions


RECORD = re.compile(
    r"# (?P<number>\d+)\. (?P<title>.+)\n\n- Status: (?P<status>.+)\n- Date: (?P<date>\d{4}-\d\d-\d\d)\n"
    r"\n## Context\n\n(?s:.+)\n## Decision\n\n(?s:.+)\n## Consequences\n\n(?s:.+)"
)


def records() -> list[tuple[Path, re.Match[str]]]:
    found = []
    for path in sorted(DECISIONS.glob("*.md")):
        if path.name != "README.md":
            match = RECORD.fullmatch(path.read_text(encoding="utf-8"))
            assert match, f"{path.name} has not the form of a record"
            found.append((path, match))
    return found


def test_the_decisions_are_numbered_without_gaps_and_named_by_their_titles() -> None:
    expected = [f"{number:04d}-{anchor(match['title'])}.md" for number, (_, match) in enumerate(records(), 1)]
    assert [path.name for path, _ in records()] == expected
    assert [int(match["number"]) for _, match in records()] == list(range(1, len(expected) + 1))


def test_the_decisions_are_dated_in_their_order() -> None:
    dates = [date.fromisoformat(match["date"]) for _, match in records()]
    assert dates == sorted(dates)


def test_every_decision_has_a_status_and_a_superseded_one_names_a_later_one() -> None:
    files = {int(match["number"]): path.name for path, match in records()}
    for path, match in records():
        status = re.fullmatch(r"accepted|planned|superseded by \[(\d+)\]\((.+)\)", match["status"])
        assert status, path.name
        if status[1]:
            assert int(status[1]) > int(match["number"]), path.name
            assert files[int(status[1])] == status[2], path.name


def test_the_index_lists_every_decision_with_status_and_date() -> None:
    listed = re.findall(r"^\| \d.*$", (DECISIONS / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [
        f"| {match['number']} | [{match['title']}]({path.name}) | {match['status']} | {match['date']} |"
        for path, match in records()
    ]


# --- architecture


def test_every_path_of_the_architecture_page_exists() -> None:
    paths = re.findall(r"`([\w./-]+(?:/|\.(?:py|md|sql|toml|yaml)))`", ARCHITECTURE)
    paths += re.findall(r"<b>(.*?)</b>", ARCHITECTURE)
    assert len(paths) > 20
    assert [path for path in paths if not (PACKAGE / path).exists() and not (ROOT / path).exists()] == []


# --- changelog


def test_the_changelog_begins_with_unreleased_and_the_current_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    unreleased, current, *_ = re.findall(r"^## \[(.*)$", text, re.MULTILINE)
    assert unreleased == "Unreleased]"
    assert re.fullmatch(re.escape(version) + r"\] - \d{4}-\d\d-\d\d", current)


# --- configuration


def test_no_file_names_a_registry_or_a_folder_of_one_machine() -> None:
    for path in (*ROOT.glob("*.lock"), *ROOT.glob("*.toml"), *ROOT.glob("*.yaml"), ROOT / "Makefile"):
        assert not re.search(r"index-url|find-links|https?://|file://|/home/|/root/", _uncommanded(path)), path.name


def _uncommanded(path: Path) -> str:
    # The Makefile passes the options that keep addresses out of the lock files.
    return path.read_text(encoding="utf-8").replace("--no-emit-index-url", "").replace("--no-emit-find-links", "")

"""Looking at the installation on this machine, and showing what was found on one screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Final

import dagster as dg
from rich.console import Console
from rich.table import Table
from rich.text import Text

from analytics_assets.database import DatabaseError
from analytics_assets.days import zone
from analytics_assets.local.server import existing_instance, running_databases
from analytics_assets.operations import Level, Line
from analytics_assets.operations.status import read_status
from analytics_assets.settings import Settings, SettingsError

_LOG_WIDTH: Final = 140
"""Columns where nobody looks at a terminal."""

_STYLES: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.RED: "bold red"}


def look(settings: Settings, repository: dg.RepositoryDefinition, home: Path | None = None) -> list[Line]:
    """Return the state of the installation. No server is started, and nothing is created.

    `home` is Dagster's folder, by default the one in the data folder.
    """
    settings = running_databases(settings)
    with ExitStack() as stack:
        instance: dg.DagsterInstance | SettingsError | DatabaseError
        try:
            instance = stack.enter_context(existing_instance(settings, home))
        except (SettingsError, DatabaseError) as error:
            instance = error
        return read_status(settings, instance, repository)


def look_before_start(settings: Settings, repository: dg.RepositoryDefinition) -> list[Line]:
    """Return the state as the last start has left it: before the first one, nothing is wrong with what never ran."""
    lines = look(settings, repository)
    expected = {line.key for line in lines if line.not_yet}
    return [line for line in lines if line.key not in expected and line.because_of not in expected]


def show(lines: Sequence[Line], settings: Settings) -> None:
    """Print the lines: what is not ok by itself, the rest of a group in one row."""
    table = Table("", "what", "state", f"since ({settings.time_zone})", box=None, pad_edge=False, header_style="dim")
    for level, name, words, since in _rows(lines):
        moment = since.astimezone(zone(settings.time_zone)).strftime("%Y-%m-%d %H:%M") if since else ""
        table.add_row(Text(level, style=_STYLES[level]), name, Text(words), moment)
    console = Console()
    if not console.is_terminal:
        console = Console(width=_LOG_WIDTH)
    console.print(table)


def _rows(lines: Sequence[Line]) -> Iterator[tuple[Level, str, str, datetime | None]]:
    for group, of_group in groupby(lines, key=lambda line: line.group):
        found = list(of_group)
        for line in found:
            if line.level is not Level.OK:
                yield line.level, line.key, line.words, line.since
        good = [line for line in found if line.level is Level.OK]
        if group == "checks" and good:
            yield Level.OK, group, f"{len(good)} of {len(found)} have passed or were not executed yet", None
        elif good:
            yield Level.OK, group, "; ".join(f"{line.name}: {line.words}" for line in good), None

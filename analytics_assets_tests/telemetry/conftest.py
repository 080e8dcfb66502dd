"""Fixtures of what the middlewares of telemetry have counted."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from analytics_assets.telemetry import Telemetry
from analytics_assets_tests.support.telemetry import Clock, Counting


@pytest.fixture
def counting(tmp_path: Path) -> Iterable[Counting]:
    with Telemetry(tmp_path / "dumps", clock=Clock()) as telemetry:
        yield Counting(tmp_path / "dumps", telemetry)

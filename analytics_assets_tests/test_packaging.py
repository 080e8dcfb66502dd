"""What the package installs: alone nothing else, and with an extra what the code of that extra imports."""

from __future__ import annotations

import tomllib
from typing import Any

from analytics_assets_tests.support.imports import PACKAGE  # see below

ROOT = PACKAGE.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

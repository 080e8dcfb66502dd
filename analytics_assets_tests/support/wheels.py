"""The packages of requirements.lock as wheels, so that a test installs some of them without a network."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

from packaging.tags import sys_tags

from analytics_assets.local.server import ROOT

_OF_THIS_INSTALLATION = {"INSTALLER", "REQUESTED", "direct_url.json"}


def locked() -> dict[str, str]:
    """Package -> version, of requirements.lock."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE))


def write_wheels(folder: Path) -> None:
    """Pack every locked package as it is installed here."""
    for name, version in locked().items():
        installed = distribution(name)
        assert installed.version == version, f"{name} {installed.version} is installed, {version} is locked"
        with ZipFile(folder / _file_name(installed, name), "w") as wheel:
            for file in installed.files or []:
                # Programs lie outside of the folder; pip makes them again from the package's entry points.
                if ".." not in file.parts and file.suffix != ".pyc" and file.name not in _OF_THIS_INSTALLATION:
                    wheel.write(str(file.locate()), file.as_posix())


def _file_name(installed: Distribution, name: str) -> str:
    """Of several tags one that this Python supports; a package for Python 2, too, names that first."""
    tags = re.findall(r"^Tag: (.*)$", installed.read_text("WHEEL") or "", re.MULTILINE)
    supported = {str(tag) for tag in sys_tags()}
    return f"{name.replace('-', '_')}-{installed.version}-{next(tag for tag in tags if tag in supported)}.whl"

"""Fixtures that several rooms use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden numbers and real images: ``$DETRKIT_SHARED``, else ``../shared``."""
    folder = Path(os.environ.get("DETRKIT_SHARED") or ROOT.parent / "shared")
    if not folder.is_dir():
        pytest.skip(f"no shared folder at {folder}; set DETRKIT_SHARED to where it lies")
    return folder

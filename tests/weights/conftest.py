"""A local file server and an empty download cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from detrkit.weights.published import download
from tests.weights.server import Server, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_PAUSE", 0.0)
    with serving() as running:
        yield running

"""A local hub, and a machine that may use the network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.hub.hub_server import TOKEN, HubServer
from tests.weights.server import running


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setenv("DETRKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("DETRKIT_OFFLINE", raising=False)
    # read from the environment when the library was imported; the local server has no xet storage
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    huggingface_hub.close_session()
    with running(HubServer()) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server
    huggingface_hub.close_session()

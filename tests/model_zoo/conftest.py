"""A file on a loopback server, a cache of one's own, and no Hub."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bamboo.datasets.remote.download import Patience
from bamboo.model_zoo.sources import Access
from tests.loopback import Loopback, loopback
from tests.model_zoo.released import weights


@pytest.fixture
def server() -> Iterator[Loopback]:
    """Serves `weights()` as `small.safetensors`."""
    with loopback() as running:
        running.files["small.safetensors"] = weights()
        yield running


@pytest.fixture
def access(tmp_path: Path) -> Access:
    """An empty cache, and little patience."""
    patience = Patience(stall_s=0.3, attempts=2, sleep=lambda seconds: None)
    return Access(cache=tmp_path / "cache", patience=patience, show=False)


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The Hub's cache is empty."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

"""Snapshots on the disk: what opens, and that whatever is damaged is said to be, before anybody asks for what is missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bamboo.cli.errors import DataError
from bamboo.datasets.growth.snapshot import Snapshot, open_snapshot
from tests.datasets.growth.states import write_state

GROWN = ("growth", "audit", "decisions", "window", "settled", "policy", "policy_summary")


@pytest.fixture
def grown(packed: Path, tmp_path: Path) -> Snapshot:
    """A snapshot whose card has all that `bamboo grow` says."""
    return write_state(tmp_path / "state", [packed], [np.full(21, 0.5)], card={"growth": {"alignment": 0.3}})


def rewrite(snapshot: Snapshot, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes snapshot.json in place; what `change` returns, if anything, stands for it."""
    path = snapshot.folder / "snapshot.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps(change(card) or card))


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"", b"-1", b"1.0", "\u00b2".encode(), b"9" * 5000, b"1 2"])
def test_latest_that_is_no_number(grown: Snapshot, data: bytes) -> None:
    """Bytes that are no text, nothing, no whole number, too many digits, a folder: DataError that names the file."""
    path = grown.state / "latest"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"latest: holds .*, not the number of a snapshot"):
        open_snapshot(grown.state)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="latest: cannot be read"):
        open_snapshot(grown.state)


@pytest.mark.parametrize("name", ["format", "version", "number", "sources", "training", "coupled", "files", *GROWN])
def test_a_card_that_lacks_something(grown: Snapshot, name: str) -> None:
    """Each entry taken out, and each of another type: DataError that names it, also of what only `bamboo grow` reads."""
    card = json.loads((grown.folder / "snapshot.json").read_text())
    rewrite(grown, lambda card: {key: value for key, value in card.items() if key != name})
    with pytest.raises(DataError, match=rf"snapshot\.json: damaged \(KeyError: '{name}'\)"):
        open_snapshot(grown.state)
    rewrite(grown, lambda _: card | {name: 0.5})
    with pytest.raises(DataError, match=name):
        open_snapshot(grown.state)


@pytest.mark.parametrize(
    "change",
    [
        lambda card: [card],
        lambda card: "a card",
        lambda card: card.update(number=True),
        lambda card: card.update(sources=["packed"]),
        lambda card: card.update(policy={}),
        lambda card: card["sources"][0].update(shards="shard-000000.tar"),
        lambda card: card["sources"][0].update(shards=[1]),
        lambda card: card["sources"][0].update(num_samples="21"),
        lambda card: card["sources"][0].pop("data_hash"),
        lambda card: card["training"][0].update(location=None),
        lambda card: card["training"][0].update(probabilities=7),
        lambda card: card["training"][0].update(second=7),
        lambda card: card["training"][0].update(grouped="no"),
        lambda card: card["training"][0].pop("num_samples"),
    ],
)
def test_a_card_of_other_types(grown: Snapshot, change: Callable[[dict[str, Any]], Any]) -> None:
    """No object, and entries of sources and training folders that are missing or of another type: DataError."""
    rewrite(grown, change)
    with pytest.raises(DataError, match=r"snapshot\.json: damaged"):
        open_snapshot(grown.state)


def test_a_card_that_was_laid_down_by_hand(grown: Snapshot) -> None:
    """With nothing of what `bamboo grow` says besides, a snapshot opens and its columns are read; of bytes that are no JSON: DataError."""
    rewrite(grown, lambda card: {name: value for name, value in card.items() if name not in GROWN})
    assert open_snapshot(grown.state, verify=True).columns(0).keys() >= {"decision", "gain"}
    (grown.folder / "snapshot.json").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"snapshot\.json: damaged"):
        open_snapshot(grown.state)

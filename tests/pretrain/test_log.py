"""The log: the record of a run."""

import json
import sys
from pathlib import Path

import pytest

from bamboo.cli.errors import UserError
from bamboo.pretrain.curves import draw_curves
from bamboo.pretrain.log import JsonLines, TensorBoard, Wandb, read_log


def row(step: int, loss: float) -> dict[str, object]:
    """Returns a training row."""
    return {"kind": "train", "step": step, "loss": loss, "lr": 0.1, "images_per_s": 10.0}


def test_a_resumed_run_appends_and_its_rows_win(tmp_path: Path) -> None:
    """A killed run's half line and repeated steps: nothing written is lost, the later row of a step is read."""
    first = JsonLines(tmp_path)
    for step in (1, 2, 3):
        first.write(row(step, step))
    first.close()
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(b'{"kind": "train", "ste')
    second = JsonLines(tmp_path)
    second.write(row(3, 30.0))
    second.close()
    assert [(entry["step"], entry["loss"]) for entry in read_log(tmp_path, "train")] == [(1, 1), (2, 2), (3, 30.0)]
    lines = (tmp_path / "log.jsonl").read_bytes().splitlines()
    assert len(lines) == 5
    assert json.loads(lines[2])["loss"] == 3


def test_curves_are_a_picture(tmp_path: Path) -> None:
    """A PNG, with and without evaluation rows."""
    log = JsonLines(tmp_path)
    for step in range(1, 50):
        log.write(row(step, 1 / step))
    assert draw_curves(tmp_path).startswith(b"\x89PNG")
    log.write({"kind": "eval", "step": 49, "loss": 0.1, "top1": 0.5, "top5": 1.0})
    assert draw_curves(tmp_path) == (tmp_path / "curves.png").read_bytes()


def test_tensorboard_reads_back(tmp_path: Path) -> None:
    """Against TensorBoard's own reader: every scalar at its step."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="extra tensorboard not installed")
    logger = TensorBoard(tmp_path)
    for step in (1, 2):
        logger.write(row(step, step / 2))
    logger.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.5), (2, 1.0)]


def test_wandb_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline wandb needs no network and leaves its run file in the run folder."""
    pytest.importorskip("wandb", reason="extra wandb not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = Wandb(tmp_path, "offline", {"a": 1})
    logger.write(row(1, 0.5))
    logger.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Without the package: the error says which extra to install."""
    monkeypatch.setitem(sys.modules, {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}[package], None)
    with pytest.raises(UserError, match=rf"bamboo-vision\[{package}\]"):
        Wandb(tmp_path, "offline", {}) if package == "wandb" else TensorBoard(tmp_path)

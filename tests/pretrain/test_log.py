"""The log: the record of a run."""

import json
import sys
import time
from pathlib import Path

import pytest

from bamboo.cli.errors import UserError
from bamboo.pretrain.curves import draw_curves
from bamboo.pretrain.log import JsonLines, read_log
from bamboo.pretrain.loggers.scalars import scalars, written_before
from bamboo.pretrain.loggers.tensorboard import TensorBoard
from bamboo.pretrain.loggers.wandb import Wandb
from bamboo.pretrain.settings.loggers import WandbSettings


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


def test_rows_of_several_evaluators(tmp_path: Path) -> None:
    """Rows of two evaluators and of a log that named none, some repeated by a resumed run: the last of each name and step, by step."""
    log = JsonLines(tmp_path)
    for step, name, value in ((2, None, 0.1), (2, "near", 0.2), (4, "near", 0.3), (4, "val", 0.4), (2, "near", 0.5), (3, "line", 0.6)):
        log.write({"kind": "eval", "step": step, "value": value, **({"name": name} if name else {})})
    log.close()
    assert [(entry["step"], entry["name"], entry["value"]) for entry in read_log(tmp_path, "eval", "near")] == [
        (2, "near", 0.5),
        (4, "near", 0.3),
    ]
    assert [entry["value"] for entry in read_log(tmp_path, "eval", "val")] == [0.1, 0.4]
    assert len(read_log(tmp_path, "eval")) == 5
    point = {"kind": "eval", "step": 4, "dataset": "dtd", "value": 0.3, "chosen": {"k": 1.0}}
    assert scalars({**point, "name": "near"}) == {"eval/near/value": 0.3}
    assert scalars({**point, "name": "val"}) == {"eval/value": 0.3}


def test_curves_are_a_picture(tmp_path: Path) -> None:
    """A PNG, with and without evaluation rows."""
    log = JsonLines(tmp_path)
    for step in range(1, 50):
        log.write(row(step, 1 / step))
    assert draw_curves(tmp_path).startswith(b"\x89PNG")
    log.write({"kind": "eval", "step": 49, "loss": 0.1, "top1": 0.5, "top5": 1.0})
    log.write({"kind": "eval", "step": 49, "name": "near", "error": "the features are all equal"})
    assert draw_curves(tmp_path) == (tmp_path / "curves.png").read_bytes()
    before = draw_curves(tmp_path)
    log.write({"kind": "eval", "step": 49, "name": "near", "value": 0.25})
    assert draw_curves(tmp_path) != before


def test_tensorboard_keeps_one_curve(tmp_path: Path) -> None:
    """Against TensorBoard's own reader: a run killed after step 12 and resumed at 10 has every step once, with its later value."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="extra tensorboard not installed")
    log = JsonLines(tmp_path)
    first = TensorBoard(tmp_path, 0)
    for step in range(1, 13):
        for logger in (log, first):
            logger.write(row(step, step))
    time.sleep(1.1)  # event files are ordered by the second in their names; the first is never closed
    second = TensorBoard(tmp_path, 10)
    for step in (11, 12, 13):
        second.write(row(step, step + 100))
    second.close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    expected = [*((step, step) for step in range(1, 11)), (11, 111), (12, 112), (13, 113)]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == expected


def test_tensorboard_switched_on_late_has_what_came_before(tmp_path: Path) -> None:
    """Against TensorBoard's own reader: the rows of the log up to the step where the run stands."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="extra tensorboard not installed")
    log = JsonLines(tmp_path)
    for step in range(1, 5):
        log.write(row(step, step))
    TensorBoard(tmp_path, 3).close()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]


def test_the_curve_before_a_start(tmp_path: Path) -> None:
    """Rows of a run that was killed twice against the steps that were not made again, in their order, whatever the log's cadence was."""
    log = JsonLines(tmp_path)
    log.write({"kind": "start", "step": 0})
    for step in (1, 2, 3, 4, 5):
        log.write(row(step, step))
    log.write({"kind": "start", "step": 2})
    for step in (4, 6):
        log.write(row(step, 10.0 * step))
        log.write({"kind": "eval", "step": step, "top1": 0.5})
    kept = [(entry["kind"], entry["step"], entry.get("loss")) for entry in written_before(tmp_path, 5)]
    assert kept == [("train", 1, 1), ("train", 2, 2), ("train", 4, 40.0), ("eval", 4, None)]


def test_only_numbers_become_curves() -> None:
    """Names and values by hand: no text, no truth value, nothing infinite, no start."""
    values = {"loss": 1.5, "stream": "ab", "grad_norm": None, "lr": float("nan"), "skipped": True, "samples": 7, "time": 1.0}
    assert scalars({"kind": "train", "step": 3, **values}) == {"train/loss": 1.5, "train/samples": 7}
    assert not scalars({"kind": "start", "step": 3, "world_size": 2})


@pytest.mark.parametrize("package", ["wandb", "tensorboard"])
def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Without the package: the error says which extra to install."""
    monkeypatch.setitem(sys.modules, {"wandb": "wandb", "tensorboard": "torch.utils.tensorboard"}[package], None)
    with pytest.raises(UserError, match=rf"bamboo-vision\[{package}\]"):
        Wandb(tmp_path, "offline", WandbSettings(), "id", {}, 0) if package == "wandb" else TensorBoard(tmp_path, 0)

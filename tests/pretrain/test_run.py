"""Runs as a user starts them: what they refuse, what they write."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from bamboo.cli.main import main
from bamboo.datasets.shards import Shards
from bamboo.model_zoo.backbone import open_backbone
from bamboo.pretrain.checkpoints.checkpoint import CheckpointFolder, read_checkpoint
from bamboo.pretrain.log import read_log
from tests.conftest import pack, write_pool
from tests.pretrain.launch import options

Refused = Callable[..., str]


@pytest.fixture
def refused(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Returns a function that starts a run which must end with exit code 2 and write nothing; it returns the message."""

    def start(**settings: str) -> str:
        folder = tmp_path / "refused"
        chosen = {name.replace("__", "."): value for name, value in settings.items()}
        assert main(["pretrain", *options(pool, folder, chosen)]) == 2
        assert not folder.exists()
        return capsys.readouterr().err

    return start


def test_mistakes_are_named_before_anything_is_touched(refused: Refused, pool: Path, tmp_path: Path) -> None:
    """Each mistake: exit code 2, a message with the setting and the remedy, no run folder."""
    assert "no such folder" in refused(data__train=str(tmp_path / "nowhere"))
    assert "not a shard folder" in refused(data__train=str(tmp_path))
    assert "did you mean 'resnet" in refused(model__name="resnett50", model__args="{}")
    assert "optimizer.name=sdg" in refused(optimizer__name="sdg")
    assert "no_such_option" in refused(model__args="{no_such_option: 1}")
    assert "must be even" in refused(objective__mixup="0.5", run__global_batch_size="9")
    assert "did you mean 'data.workers'" in refused(data__wokers="3")
    assert "comes to no step" in refused(run__duration="0 steps")
    assert "cannot feed" in refused(run__global_batch_size="2", run__accumulate="2", objective__mixup="1.0")
    assert "data.scale=(0.9, 0.1)" in refused(data__scale="[0.9, 0.1]")


def test_splits_with_different_classes_are_refused(refused: Refused, tmp_path: Path) -> None:
    """A validation split that lacks a class: both counts and the class are named."""
    write_pool(tmp_path / "images", 9, seed=3)
    shutil.rmtree(tmp_path / "images" / "waves")
    pack(tmp_path / "images", tmp_path / "val")
    message = refused(data__val=str(tmp_path / "val"))
    assert "2 classes, data.train has 3" in message
    assert "waves" in message


def test_a_truncated_shard_is_named(refused: Refused, pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A shard cut after it was indexed: exit code 1, the shard and the verify command are named."""
    damaged = tmp_path / "damaged"
    shutil.copytree(pool / "train", damaged)
    shard = damaged / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    assert main(["pretrain", *options(pool, tmp_path / "run", {"data.train": str(damaged)})]) == 1
    message = capsys.readouterr().err
    assert "shard-000001.tar" in message
    assert "bamboo shards verify" in message


@pytest.mark.parametrize("workers", ["0", "1"])
def test_an_unreadable_image_is_named(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: str) -> None:
    """One image overwritten inside its shard: exit code 1, shard and key are named, without a traceback."""
    damaged = tmp_path / "damaged"
    shutil.copytree(pool / "train", damaged)
    shards = Shards.open(damaged)
    with (damaged / shards.manifest.shards[0].name).open("r+b") as file:
        file.seek(int(shards.index.offset[0]))
        file.write(b"\0" * int(shards.index.size[0]))
    settings = {"data.train": str(damaged), "data.workers": workers, "run.duration": "1 epochs"}
    assert main(["pretrain", *options(pool, tmp_path / "run", settings)]) == 1
    message = capsys.readouterr().err
    assert "shard-000000.tar:" in message
    assert "Traceback" not in message


def test_a_finished_run(pool: Path, tmp_path: Path) -> None:
    """Everything a run folder holds; the exported backbone gives the last checkpoint's features, EMA weights where there are some."""
    settings = {"run.duration": "2 epochs", "run.ema_decay": "0.9", "run.eval_every": "1 epochs", "run.tensorboard": "true"}
    assert main(["pretrain", *options(pool, tmp_path, settings)]) == 0
    assert {"config.yaml", "run.json", "log.jsonl", "curves.png", "checkpoints", "export"} <= {path.name for path in tmp_path.iterdir()}
    assert len(read_log(tmp_path, "train")) == 17  # 2 · 101 samples in batches of 12
    scored = read_log(tmp_path, "eval")
    assert [row["num_images"] for row in scored] == [37, 37]
    newest = CheckpointFolder(tmp_path, keep=2).newest()
    assert newest is not None
    checkpoint = read_checkpoint(newest)
    assert checkpoint.position.samples == 17 * 12
    assert checkpoint.average is not None
    backbone = open_backbone(str(tmp_path))
    exported = backbone.module.state_dict()
    assert all(torch.equal(exported[name], checkpoint.average[name].whole()) for name in exported)
    assert any(not torch.equal(exported[name], checkpoint.model[name].whole()) for name in exported)
    card = json.loads((tmp_path / "export" / "model.json").read_text())
    assert card["classes"] == ["dots", "lines", "waves"]
    assert card["trained"]["data_hash"] == Shards.open(pool / "train").data_hash


def test_the_same_command_again_changes_nothing(pool: Path, tmp_path: Path) -> None:
    """A finished run started again: no step is made and the weights stay."""
    arguments = options(pool, tmp_path, {"run.duration": "5 steps"})
    assert main(["pretrain", *arguments]) == 0
    before = (tmp_path / "export" / "model.safetensors").read_bytes()
    assert main(["pretrain", *arguments]) == 0
    assert (tmp_path / "export" / "model.safetensors").read_bytes() == before
    assert len(read_log(tmp_path, "train")) == 5


def test_other_settings_on_the_same_folder_are_refused(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A change that would bend the run: exit code 2, old and new value named; a harmless one goes on."""
    assert main(["pretrain", *options(pool, tmp_path, {"run.duration": "3 steps"})]) == 0
    assert main(["pretrain", *options(pool, tmp_path, {"run.duration": "3 steps", "optimizer.lr": "0.5", "run.seed": "1"})]) == 2
    message = capsys.readouterr().err
    assert "optimizer.lr: was 0.001, is 0.5" in message
    assert "run.seed: was 0, is 1" in message
    assert main(["pretrain", *options(pool, tmp_path, {"run.duration": "3 steps", "data.workers": "1"})]) == 0


def test_a_diverging_run_stops(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An absurd learning rate: exit code 1, the step and what to try."""
    settings = {"optimizer.name": "sgd", "optimizer.lr": "1e30", "optimizer.weight_decay": "0"}
    assert main(["pretrain", *options(pool, tmp_path, settings)]) == 1
    assert "try a lower optimizer.lr" in capsys.readouterr().err


def test_training_learns(pool: Path, tmp_path: Path) -> None:
    """Three classes that a line of code can tell apart: validation accuracy well above chance after 20 epochs."""
    settings = {"run.duration": "20 epochs", "model.name": "test_resnet", "model.args": "{}", "optimizer.lr": "3e-3"}
    assert main(["pretrain", *options(pool, tmp_path, settings)]) == 0
    losses = [row["loss"] for row in read_log(tmp_path, "train")]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10])
    assert read_log(tmp_path, "eval")[-1]["top1"] > 0.8

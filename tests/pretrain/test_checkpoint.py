"""Checkpoints: whole or not at all."""

import dataclasses
import errno
import json
import shutil
from pathlib import Path

import pytest
import torch

from bamboo.cli.errors import DataError
from bamboo.model_zoo.ranks import Ranks
from bamboo.pretrain.checkpoint import Checkpoint, CheckpointFolder, Position, read_checkpoint
from bamboo.pretrain.engines.plain import PlainEngine


def checkpoint(step: int) -> Checkpoint:
    """Returns a checkpoint whose values tell its step."""
    model = torch.nn.Linear(3, 2)
    torch.nn.init.constant_(model.weight, step)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return Checkpoint(Position(step, step * 8, 0, 1), model.state_dict(), None, optimizer.state_dict(), {"model": {"name": "x"}})


def test_what_is_read_is_what_was_saved(tmp_path: Path) -> None:
    """Round trip against the objects themselves, tensors bit for bit, optimiser state included."""
    saved = checkpoint(7)
    read = read_checkpoint(CheckpointFolder(tmp_path, keep=2).save(saved))
    assert read.position == saved.position
    assert read.pinned == saved.pinned
    assert all(torch.equal(read.model[name], tensor) for name, tensor in saved.model.items())
    assert read.optimizer["param_groups"] == saved.optimizer["param_groups"]
    for index, state in saved.optimizer["state"].items():
        assert all(torch.equal(read.optimizer["state"][index][name], tensor) for name, tensor in state.items())


def test_newest_and_retention(tmp_path: Path) -> None:
    """Keep 2 of 4: the newest two stay, `latest` names the newest."""
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (5, 10, 100, 1000):
        folder.save(checkpoint(step))
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == ["step-00000100", "step-00001000"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-00001000\n"
    newest = folder.newest()
    assert newest is not None
    assert newest.name == "step-00001000"


def test_the_best_and_every_so_many_are_kept_too(tmp_path: Path) -> None:
    """Newest 1, best 2 by one of two evaluators, every 40 steps, of eight checkpoints: those stay; without a score none is the best."""
    folder = CheckpointFolder(tmp_path, keep=1, best=2, best_by="mine", every=40)
    scores = {10: 0.5, 20: 0.9, 30: 0.1, 40: 0.2, 50: 0.9, 60: None, 70: 0.3, 75: None}
    for step, score in scores.items():
        found = {"val": 1 - step / 100, **({} if score is None else {"mine": score})}
        folder.save(dataclasses.replace(checkpoint(step), scores=found))
    kept = sorted(int(path.name[-8:]) for path in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == [20, 40, 50, 75]
    assert read_checkpoint(tmp_path / "checkpoints" / "step-00000050").scores == {"val": 0.5, "mine": 0.9}


def test_the_best_of_before_evaluators_had_names(tmp_path: Path) -> None:
    """A state.json with `top1`, as it was first written: the score of data.val, which keep_best goes by."""
    folder = CheckpointFolder(tmp_path, keep=1, best=1)
    path = folder.save(checkpoint(10))
    tree = json.loads((path / "state.json").read_text())
    del tree["scores"]
    (path / "state.json").write_text(json.dumps({**tree, "top1": 0.7}))
    assert read_checkpoint(path).scores == {"val": 0.7}
    folder.save(dataclasses.replace(checkpoint(20), scores={"val": 0.6}))
    folder.save(dataclasses.replace(checkpoint(30), scores={"mine": 0.9}))
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == ["step-00000010", "step-00000030"]


def rewrite_version(path: Path, version: int) -> None:
    """Makes a checkpoint one of another version."""
    tree = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**tree, "version": version}))


def test_version_1_is_taken_up(tmp_path: Path) -> None:
    """A version-1 checkpoint, whose optimiser state is plain PyTorch's by number: the plain engine takes it up bit for bit."""
    path = CheckpointFolder(tmp_path, keep=1).save(checkpoint(3))
    rewrite_version(path, 1)
    read = read_checkpoint(path)
    model = torch.nn.Linear(3, 2)
    engine = PlainEngine(
        model, torch.optim.AdamW(model.parameters()), Ranks(0, 0, 1, torch.device("cpu")), precision="fp32", clip_norm=None
    )
    engine.load(read.model, read.optimizer)
    ours, theirs = engine.optimizer.state_dict(), checkpoint(3).optimizer
    assert ours["param_groups"] == theirs["param_groups"]
    assert all(torch.equal(ours["state"][number][key], value) for number in (0, 1) for key, value in theirs["state"][number].items())
    assert torch.equal(model.weight, checkpoint(3).model["weight"])


def test_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    """Version 3: refused, with its number and those that are read."""
    path = CheckpointFolder(tmp_path, keep=1).save(checkpoint(3))
    rewrite_version(path, 3)
    with pytest.raises(DataError, match="version 3; this Bamboo reads bamboo-checkpoint versions 1 and 2"):
        read_checkpoint(path)


def test_a_damaged_one_is_written_anew(tmp_path: Path) -> None:
    """The run went back to the checkpoint before a damaged one and came to the same step again: the new one takes its place."""
    folder = CheckpointFolder(tmp_path, keep=2)
    path = folder.save(checkpoint(3))
    (path / "model.safetensors").write_bytes(b"")
    assert folder.newest() is None
    assert folder.save(checkpoint(3)) == path
    assert folder.newest() == path


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
def test_a_damaged_checkpoint_is_never_taken_for_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, damage: str) -> None:
    """A file cut short, with one byte altered, or gone: the one before is taken, and the damaged one is named."""
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(checkpoint(1))
    damaged = folder.save(checkpoint(2)) / file
    data = damaged.read_bytes()
    if damage == "cut":
        damaged.write_bytes(data[: len(data) // 2])
    elif damage == "altered":
        damaged.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    else:
        damaged.unlink()
    newest = folder.newest()
    if file == "state.json" and damage == "altered":
        assert newest is not None  # whichever byte it hit, what is taken must be readable
        read_checkpoint(newest)
        return
    assert newest is not None
    assert newest.name == "step-00000001"
    assert "step-00000002" in capsys.readouterr().err
    with pytest.raises(DataError, match="step-00000002"):
        read_checkpoint(damaged.parent)


def test_a_full_disk_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC while the optimiser is written: the error comes through, no half folder stays, the checkpoint before is whole."""
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(checkpoint(1))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("bamboo.pretrain.checkpoint.sha256_file", full)
        with pytest.raises(OSError, match="No space"):
            folder.save(checkpoint(2))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == ["step-00000001"]
    assert read_checkpoint(tmp_path / "checkpoints" / "step-00000001").position.step == 1


def test_leftovers_of_a_killed_save_are_swept(tmp_path: Path) -> None:
    """A temporary folder left by SIGKILL is neither read nor kept."""
    folder = CheckpointFolder(tmp_path, keep=2)
    folder.save(checkpoint(1))
    leftover = tmp_path / "checkpoints" / ".step-00000002.tmp"
    shutil.copytree(tmp_path / "checkpoints" / "step-00000001", leftover)
    newest = folder.newest()
    assert newest is not None
    assert newest.name == "step-00000001"
    folder.save(checkpoint(2))
    assert not leftover.exists()
    assert read_checkpoint(tmp_path / "checkpoints" / "step-00000002").position.step == 2


def test_a_hostile_pickle_is_refused(tmp_path: Path) -> None:
    """An optimiser file that would run code when unpickled, with a matching hash: torch's weights-only loading refuses it."""
    path = CheckpointFolder(tmp_path, keep=1).save(checkpoint(1))

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return __import__("os").system, (f"touch {tmp_path}/owned",)

    torch.save({"state": Hostile()}, path / "optimizer.pt")
    state = (path / "state.json").read_text()
    import hashlib
    import json

    tree = json.loads(state)
    data = (path / "optimizer.pt").read_bytes()
    tree["files"]["optimizer.pt"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "state.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"optimizer\.pt"):
        read_checkpoint(path)
    assert not (tmp_path / "owned").exists()

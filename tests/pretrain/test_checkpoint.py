"""Checkpoints: whole or not at all, in parts that any number of ranks writes and reads."""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bamboo.pretrain.checkpoints.checkpoint
from bamboo.cli.errors import DataError
from bamboo.datasets.atomic import sha256_json
from bamboo.model_zoo.run_checkpoints import RunCheckpoint
from bamboo.model_zoo.tensor_files import FileFacts, TensorFile
from bamboo.pretrain.checkpoints.checkpoint import CheckpointFolder, read_checkpoint
from bamboo.pretrain.checkpoints.plain_values import from_plain, to_plain
from bamboo.pretrain.checkpoints.snapshot import Position, Snapshot, own_pieces
from bamboo.pretrain.engines.held import Held
from tests.pretrain.saving import engine_of, save, save_all, snapshots, trained

GOLDEN = Path(__file__).parent / "golden" / "version_1"

TENSORS = {
    "wide": torch.randn(257, 31),
    "half": torch.randn(64, 3).bfloat16(),
    "image": torch.randn(8, 3, 5, 5).to(memory_format=torch.channels_last),
    "count": torch.tensor(2**62 + 1),
    "mask": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 4),
    "step": torch.tensor(7.0),
}


def state_of(path: Path) -> dict[str, Any]:
    """Returns the state of a checkpoint."""
    tree: dict[str, Any] = json.loads((path / "state.json").read_text())
    return tree


def forge(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the state of a checkpoint, and its hash with it."""
    tree = state_of(path)
    change(tree)
    tree["sha256"] = sha256_json({name: value for name, value in tree.items() if name != "sha256"})
    (path / "state.json").write_text(json.dumps(tree))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_what_is_read_is_what_was_saved(tmp_path: Path, world_size: int) -> None:
    """Saved by any number of ranks, against the engine itself: another engine that takes it up holds the same bits."""
    engine, average = trained(7)
    path = save(CheckpointFolder(tmp_path, keep=2), 7, world_size)
    read = read_checkpoint(path)
    assert read.position == Position(7, 56, 0, 1)
    assert read.pinned == {"model": {"name": "x"}}
    other, its_average = trained(1)
    other.load(read.model, read.optimizer)
    its_average.load(read.average)
    for ours, theirs in ((other.module.state_dict(), engine.module.state_dict()), (its_average.shards, average.shards)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    ours, theirs = other.optimizer.state_dict(), engine.optimizer.state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for number, state in theirs["state"].items():
        assert all(torch.equal(ours["state"][number][key], value) for key, value in state.items())


@pytest.mark.parametrize("world_size", [1, 3])
def test_every_kind_of_tensor_survives(tmp_path: Path, world_size: int) -> None:
    """bfloat16, int64, bool, no dimension, no elements, channels-last: equal to themselves in dtype, shape and bits."""
    parts = [
        Snapshot(
            Position(1, 8, 0, 1),
            {"model": own_pieces({name: Held(tensor, tuple(tensor.shape)) for name, tensor in TENSORS.items()}, rank, world_size)},
            {"pinned": {}, "optimizer": {"groups": [], "state": {}}},
        )
        for rank in range(world_size)
    ]
    read = read_checkpoint(save_all(CheckpointFolder(tmp_path, keep=1), parts)[0])
    assert read.model.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        whole = read.model[name].whole()
        assert (whole.dtype, whole.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(whole, tensor)


@given(numels=st.lists(st.integers(0, 40), min_size=1, max_size=8), world_size=st.integers(1, 9), seed=st.integers(0, 99))
def test_what_all_hold_is_divided_evenly(numels: list[int], world_size: int, seed: int) -> None:
    """Any tensors, any number of ranks: the pieces tile each tensor, and no rank writes more than its share and one element a tensor."""
    dtypes = [(torch.float32, torch.bfloat16, torch.int64)[(seed + number) % 3] for number in range(len(numels))]
    held = {
        str(number): Held(torch.arange(numel).to(dtype), (numel,)) for number, (numel, dtype) in enumerate(zip(numels, dtypes, strict=True))
    }
    ranks = [own_pieces(held, rank, world_size) for rank in range(world_size)]
    for name, whole in held.items():
        pieces = [pieces[name] for pieces in ranks if name in pieces and pieces[name].values.numel()]
        assert [piece.start for piece in pieces] == [sum(p.values.numel() for p in pieces[:n]) for n in range(len(pieces))]
        assert torch.equal(torch.cat([piece.values for piece in pieces] or [whole.values]), whole.values)
    total = sum(one.values.nbytes for one in held.values())
    assert max(sum(piece.values.nbytes for piece in pieces.values()) for pieces in ranks) <= total / world_size + 16


@settings(max_examples=20)
@given(data=st.data(), world_size=st.integers(1, 5))
def test_a_range_is_read_as_a_slice(data: st.DataObject, world_size: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any range of a tensor that lies in several files, against a slice of the tensor."""
    whole = torch.arange(101)
    folder = CheckpointFolder(tmp_path_factory.mktemp("ranges"), keep=1)
    facts = {"pinned": {}, "optimizer": {"groups": [], "state": {}}}
    parts = [
        Snapshot(Position(1, 8, 0, 1), {"model": own_pieces({"line": Held(whole, (101,))}, rank, world_size)}, facts)
        for rank in range(world_size)
    ]
    stored = read_checkpoint(save_all(folder, parts)[0]).model["line"]
    start = data.draw(st.integers(0, 101))
    numel = data.draw(st.integers(0, 101 - start))
    assert torch.equal(stored.read(start, numel), whole[start : start + numel])


def test_the_form(tmp_path: Path) -> None:
    """Names, index and hashes against those written down here; every file opens with safetensors' own reader, and none is a pickle."""
    path = save(CheckpointFolder(tmp_path, keep=1), 7, 2)
    groups = ("ema", "model", "optimizer")
    files = [f"{group}-0000{part}-of-00002.safetensors" for group in groups for part in (1, 2)]
    assert sorted(file.name for file in path.iterdir()) == [*files, "state.json"]
    state = state_of(path)
    facts = ["format", "version", "position", "pinned", "scores", "optimizer", "world_size", "files", "tensors", "sha256"]
    assert list(state) == facts
    assert (state["format"], state["version"]) == ("bamboo-checkpoint", 2)
    assert state["tensors"]["model"]["0.weight"] == {"dtype": "F32", "shape": [2, 3], "ranges": [[1, 0, 6]]}
    assert state["tensors"]["optimizer"]["1.bias:exp_avg"]["shape"] == [2]
    assert state["optimizer"]["groups"][0]["betas"] == {"tuple": [0.9, 0.999]}
    for name in files:
        data = (path / name).read_bytes()
        assert state["files"][name] == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        safetensors.torch.load(data)
    joined = torch.cat([safetensors.torch.load_file(path / name).get("1.running_var", torch.zeros(0)) for name in files[2:4]])
    assert torch.equal(joined, trained(7)[0].module.state_dict()["1.running_var"])


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_rank_writes_its_share(tmp_path: Path, world_size: int) -> None:
    """A model of half a MiB with AdamW: each rank's bytes are 1/W of all, within 2 % and a header."""
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for width in (256, 100, 200)))
    engine = engine_of(model)
    parts = [own_pieces(engine.held(engine.shards()), rank, world_size) for rank in range(world_size)]
    facts = {"pinned": {}, "optimizer": {"groups": [], "state": {}}}
    path = save_all(CheckpointFolder(tmp_path, keep=1), [Snapshot(Position(1, 8, 0, 1), {"model": part}, facts) for part in parts])[0]
    sizes = [file.stat().st_size for file in sorted(path.glob("model-*"))]
    total = sum(parameter.nbytes for parameter in model.parameters())
    assert len(sizes) == world_size
    assert all(abs(size - total / world_size) <= 0.02 * total / world_size + 1024 for size in sizes)


def test_plain_values_survive() -> None:
    """Tuples in lists, None, infinity and tensors among an optimiser's settings, through JSON: equal in type and value."""
    value = {"betas": (0.9, (0.99, 1e-300)), "list": [1, None, True, "x"], "top": math.inf, "inner": {"tuple": (1,)}}
    assert from_plain(json.loads(json.dumps(to_plain(value)))) == value
    rate = torch.tensor(0.1, dtype=torch.bfloat16)
    back = from_plain(json.loads(json.dumps(to_plain(rate))))
    assert (back.dtype, back.shape) == (rate.dtype, rate.shape)
    assert torch.equal(back, rate)
    with pytest.raises(TypeError, match="set"):
        to_plain({1})


def test_newest_and_retention(tmp_path: Path) -> None:
    """Keep 2 of 4: the newest two stay, `latest` names the newest."""
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in (5, 10, 100, 1000):
        save(folder, step)
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
        save(folder, step, scores={"val": 1 - step / 100, **({} if score is None else {"mine": score})})
    kept = sorted(int(path.name[-8:]) for path in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == [20, 40, 50, 75]
    assert read_checkpoint(tmp_path / "checkpoints" / "step-00000050").scores == {"val": 0.5, "mine": 0.9}


def test_version_1_is_taken_up(tmp_path: Path) -> None:
    """A folder that the first version wrote, in the tree: its weights and numbered state, as torch and safetensors read them."""
    newest = CheckpointFolder(GOLDEN, keep=1).newest()
    assert newest is not None
    read = read_checkpoint(newest)
    assert read.position == Position(3, 24, 7, 1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    weight, *rest = model.parameters()
    engine = engine_of(model, torch.optim.AdamW([{"params": [weight]}, {"params": rest}]))
    average = trained(1)[1]
    engine.load(read.model, read.optimizer)
    average.load(read.average)
    for ours, name in ((model.state_dict(), "model"), (average.shards, "ema")):
        theirs = safetensors.torch.load_file(newest / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    theirs = torch.load(newest / "optimizer.pt", weights_only=True)
    saved = engine.optimizer.state_dict()
    assert saved["param_groups"] == theirs["param_groups"]
    assert all(torch.equal(saved["state"][number][key], value) for number in range(4) for key, value in theirs["state"][number].items())


def test_a_later_version_is_refused_by_name(tmp_path: Path) -> None:
    """Version 3: refused, with its number and those that are read."""
    path = save(CheckpointFolder(tmp_path, keep=1), 3)
    forge(path, lambda state: state.update(version=3))
    with pytest.raises(DataError, match="version 3; this Bamboo reads bamboo-checkpoint versions 1 and 2"):
        read_checkpoint(path)


def test_another_model_is_refused(tmp_path: Path) -> None:
    """A tensor of another shape, and one that is not there: DataError that names it, whatever the engine."""
    read = read_checkpoint(save(CheckpointFolder(tmp_path, keep=1), 3))
    with pytest.raises(DataError, match=r"0\.weight"):
        engine_of(torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2))).load(read.model, read.optimizer)
    with pytest.raises(DataError, match=r"1\.running_mean"):
        engine, _ = trained(3)
        engine.load({name: stored for name, stored in read.model.items() if name != "1.running_mean"}, read.optimizer)


def test_a_damaged_one_is_written_anew(tmp_path: Path) -> None:
    """The run went back to the checkpoint before a damaged one and came to the same step again: the new one takes its place."""
    folder = CheckpointFolder(tmp_path, keep=2)
    path = save(folder, 3, 2)
    (path / "model-00002-of-00002.safetensors").write_bytes(b"")
    assert folder.newest() is None
    assert save(folder, 3, 3) == path
    assert folder.newest() == path
    assert state_of(path)["world_size"] == 3


@pytest.mark.parametrize("file", [*(f"{group}-00002-of-00002.safetensors" for group in ("model", "ema", "optimizer")), "state.json"])
@pytest.mark.parametrize("damage", ["cut", "altered", "missing", "extra"])
def test_a_damaged_checkpoint_is_never_taken_for_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, damage: str) -> None:
    """A file cut short, with one byte altered, gone, or too many: the one before is taken, and the damaged one is named with its file."""
    folder = CheckpointFolder(tmp_path, keep=2)
    save(folder, 1, 2)
    damaged = save(folder, 2, 2) / file
    data = damaged.read_bytes()
    if damage == "cut":
        damaged.write_bytes(data[: len(data) // 2])
    elif damage == "altered":
        damaged.write_bytes(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
    elif damage == "extra":
        damaged = damaged.with_name(f"{damaged.stem}2{damaged.suffix}")
        damaged.write_bytes(data)
    else:
        damaged.unlink()
    newest = folder.newest()
    assert newest is not None
    assert newest.name == "step-00000001"
    message = capsys.readouterr().err
    assert "step-00000002" in message
    assert damaged.name in message


def _range(state: dict[str, Any], name: str = "0.weight", group: str = "model") -> list[list[int]]:
    ranges: list[list[int]] = state["tensors"][group][name]["ranges"]
    return ranges


FORGERIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "overlap": (
        lambda state: _range(state, "1.weight:exp_avg", "optimizer").append([2, 1, 1]),
        r"exp_avg: its ranges overlap at element 1",
    ),
    "gap": (lambda state: _range(state)[0].__setitem__(1, 1), r"0\.weight: a range is missing at element 0"),
    "short": (lambda state: _range(state).clear(), r"0\.weight: its ranges end at element 0 of 6"),
    "huge": (
        lambda state: state["tensors"]["model"]["0.weight"].update(shape=[1 << 40], ranges=[[1, 0, 1 << 40]]),
        r"do not fit into part 1",
    ),
    "no such part": (lambda state: _range(state)[0].__setitem__(0, 3), r"do not fit into part 3"),
    "negative": (lambda state: _range(state)[0].__setitem__(1, -1), r"-1 where a count should be"),
    "no count": (lambda state: _range(state)[0].__setitem__(2, "6"), r"'6' where a count should be"),
    "dtype": (lambda state: state["tensors"]["model"]["0.weight"].update(dtype="F31"), "damaged index"),
    "ranks": (lambda state: state.update(world_size=10**15), "damaged index"),
    "file name": (lambda state: state["files"].update({"../x": state["files"].pop("ema-00001-of-00002.safetensors")}), "damaged index"),
    "no index": (lambda state: state.pop("tensors"), "damaged"),
    "a list": (lambda state: state.update(tensors=[]), "damaged"),
}


@pytest.mark.parametrize("forgery", list(FORGERIES))
def test_a_forged_index_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], forgery: str) -> None:
    """An index that does not tile its tensors, or asks for more than the files hold, with a right hash: refused by name, by all readers."""
    change, message = FORGERIES[forgery]
    folder = CheckpointFolder(tmp_path, keep=2)
    before = save(folder, 1, 2)
    path = save(folder, 2, 2)
    forge(path, change)
    with pytest.raises(DataError, match=message):
        read_checkpoint(path)
    assert folder.newest() == before
    assert "step-00000002" in capsys.readouterr().err


def test_a_file_that_does_not_hold_what_the_index_says(tmp_path: Path) -> None:
    """Two ranks' files exchanged, hashes too: the header is compared with the index before anything is read."""
    path = save(CheckpointFolder(tmp_path, keep=1), 2, 2)
    one, two = (path / f"optimizer-0000{part}-of-00002.safetensors" for part in (1, 2))
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    forge(path, lambda state: state["files"].update({one.name: state["files"][two.name], two.name: state["files"][one.name]}))
    tensors = RunCheckpoint(path, state_of(path)).tensors("optimizer")
    assert tensors is not None
    with pytest.raises(DataError, match=r"optimizer-00001-of-00002\.safetensors: holds no F32 tensor 0\.weight:"):
        tensors["0.weight:exp_avg"].whole()


@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_a_full_disk_on_one_rank_keeps_the_last_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, culprit: int) -> None:
    """ENOSPC on one of three ranks: the same error on all, with rank and file; no half folder stays, the one before is whole."""
    folder = CheckpointFolder(tmp_path, keep=2)
    before = save(folder, 1, 3)
    write = bamboo.pretrain.checkpoints.checkpoint.write_tensor_file

    def full(path: Path, tensors: dict[str, torch.Tensor]) -> FileFacts:
        if path.name == f"optimizer-0000{culprit + 1}-of-00003.safetensors":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, tensors)

    with monkeypatch.context() as patch:
        patch.setattr("bamboo.pretrain.checkpoints.checkpoint.write_tensor_file", full)
        with pytest.raises(OSError, match=rf"No space left on device \(on rank {culprit}\): .*optimizer-0000{culprit + 1}-of-00003"):
            save(folder, 2, 3)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir()] == ["step-00000001"]
    assert folder.newest() == before


def test_leftovers_of_a_killed_save_are_swept(tmp_path: Path) -> None:
    """A temporary folder left by SIGKILL is neither read nor kept."""
    folder = CheckpointFolder(tmp_path, keep=2)
    before = save(folder, 1)
    leftover = tmp_path / "checkpoints" / ".step-00000002.0badcafe.tmp"
    shutil.copytree(before, leftover)
    assert folder.newest() == before
    after = save(folder, 2)
    assert not leftover.exists()
    assert folder.newest() == after


def test_a_step_that_is_there_is_not_written_again(tmp_path: Path) -> None:
    """A resumed run that comes to a saved step again: the folder stays as it is, on every rank."""
    folder = CheckpointFolder(tmp_path, keep=2)
    path = save(folder, 3, 2)
    before = path.stat().st_ino
    assert save_all(folder, snapshots(3, 3)) == [path] * 3
    assert path.stat().st_ino == before


@pytest.mark.parametrize("offsets", [[0, 1 << 50], [1 << 50, (1 << 50) + 24], [0.0, 24.0], [24, 0], "x", None])
def test_a_header_that_promises_too_much(tmp_path: Path, offsets: object) -> None:
    """Offsets beyond the file, or no offsets at all: refused by the tensor's name before anything is allocated."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1 << 48] if offsets == [0, 1 << 50] else [6], "data_offsets": offsets}}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(24))
    shape = (1 << 48,) if offsets == [0, 1 << 50] else (6,)
    with pytest.raises(DataError, match=r"x\.safetensors: holds no F32 tensor w "):
        TensorFile(path).read("w", torch.float32, shape, 0, shape[0])


def test_a_hostile_pickle_is_refused(tmp_path: Path) -> None:
    """A version-1 optimiser file that would run code when unpickled, with a matching hash: torch's weights-only loading refuses it."""
    shutil.copytree(GOLDEN, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step-00000003"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/owned",)

    torch.save({"state": Hostile()}, path / "optimizer.pt")
    tree = state_of(path)
    data = (path / "optimizer.pt").read_bytes()
    tree["files"]["optimizer.pt"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "state.json").write_text(json.dumps(tree))
    assert CheckpointFolder(tmp_path / "run", keep=1).newest() == path
    with pytest.raises(DataError, match=r"optimizer\.pt"):
        read_checkpoint(path)
    assert not (tmp_path / "owned").exists()

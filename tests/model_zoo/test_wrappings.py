"""Published checkpoints: each wrapping and key style loads fully, and nothing loads in part."""

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch

from bamboo.cli.errors import DataError, UserError
from bamboo.model_zoo.backbone import open_backbone
from bamboo.model_zoo.export import network_hash, weights_hash
from bamboo.model_zoo.weight_files import read_checkpoint
from bamboo.model_zoo.wrappings import load_match, match_backbone

State = dict[str, torch.Tensor]


def model(architecture: str, num_classes: int = 0, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    made: torch.nn.Module = timm.create_model(architecture, num_classes=num_classes)
    return made


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def opened_hash(path: Path, architecture: str) -> str:
    """Returns the hash that opening the file gives."""
    return open_backbone(f"{path}@{architecture}").checkpoint_hash


STYLES: dict[str, Callable[[State], Any]] = {
    "flat": lambda state: state,
    "flat, module.": lambda state: prefixed(state, "module."),
    "state_dict": lambda state: {"state_dict": state, "epoch": 90, "arch": "x", "optimizer": {"state": {0: {"step": 3}}}},
    "state_dict, module.": lambda state: {"state_dict": prefixed(state, "module."), "best_acc1": 76.1},
    "model": lambda state: {"model": state},
    "model, module.": lambda state: {"model": prefixed(state, "module.")},
    "model_state": lambda state: {"model_state": state, "cfg": "x"},
    "model_ema": lambda state: {"model_ema": state},
    "teacher, module.backbone.": lambda state: {"teacher": prefixed(state, "module.backbone.")},
    "student": lambda state: {"student": prefixed(state, "backbone."), "args": argparse.Namespace(lr=0.1)},
    "twice": lambda state: {"model": {"state_dict": prefixed(state, "module.")}},
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled under DDP": lambda state: {"model": prefixed(state, "module._orig_mod.")},
    "encoder.": lambda state: {"state_dict": prefixed(state, "encoder.")},
    "base_encoder.": lambda state: {
        "state_dict": {
            **prefixed(state, "module.base_encoder."),
            **prefixed({name: tensor + 1 for name, tensor in state.items()}, "module.momentum_encoder."),
            "module.predictor.0.weight": torch.zeros(3, 3),
        },
    },
    "encoder_q. with a queue": lambda state: {
        "state_dict": {**prefixed(state, "module.encoder_q."), **prefixed(state, "module.encoder_k."), "module.queue": torch.zeros(4, 2)},
    },
}


@pytest.mark.parametrize("architecture", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("style", STYLES)
def test_every_style_loads_fully(tmp_path: Path, style: str, architecture: str) -> None:
    """The hash of what was loaded against that of the model the file was made from; the file has a head, which is dropped."""
    whole = model(architecture, num_classes=11)
    torch.save(STYLES[style](dict(whole.state_dict())), tmp_path / "file.pth.tar")
    whole.reset_classifier(0)  # type: ignore[operator]  # a method of every timm model
    assert opened_hash(tmp_path / "file.pth.tar", architecture) == network_hash(architecture, {}, whole.state_dict())


@pytest.mark.parametrize("save", ["safetensors", "old pickle", "zip"])
def test_every_kind_of_file_loads(tmp_path: Path, save: str) -> None:
    """The same weights as safetensors without a card, in torch's old format and in its present one."""
    whole = model("test_vit")
    path = tmp_path / "file.bin"
    if save == "safetensors":
        safetensors.torch.save_file(whole.state_dict(), path)
    else:
        torch.save({"model": whole.state_dict()}, path, _use_new_zipfile_serialization=save == "zip")
    assert opened_hash(path, "test_vit") == network_hash("test_vit", {}, whole.state_dict())


def test_torchvision_names_are_timms() -> None:
    """torchvision's own ResNet-18 and its state dict, on the meta device: all 120 tensors and the head are matched."""
    import torchvision

    with torch.device("meta"):
        theirs, ours = torchvision.models.resnet18(), timm.create_model("resnet18", num_classes=0)
        match = match_backbone({"state_dict": prefixed(theirs.state_dict(), "module.")}, ours, Path("x"))
    assert len(match.tensors) == len(ours.state_dict()) == 120
    assert set(match.head) == {"fc.weight", "fc.bias"}
    assert match.left_out == ()


def test_a_head_as_large_as_bamboos(tmp_path: Path) -> None:
    """115,217 outputs under `module.` in a wrapper, as the released ViT: the head is found, dropped, and named as the model names it."""
    whole = model("test_vit", num_classes=115_217)
    torch.save({"state_dict": prefixed(whole.state_dict(), "module.")}, tmp_path / "vit.pth.tar.convert")
    backbone = model("test_vit")
    match = match_backbone(read_checkpoint(tmp_path / "vit.pth.tar.convert"), backbone, Path("x"))
    assert match.head["head.weight"].shape == (115_217, 64)
    assert (match.wrapping, match.prefix) == ("state_dict", "module.")
    load_match(backbone, match)
    torch.testing.assert_close(backbone.state_dict()["norm.weight"], whole.state_dict()["norm.weight"], rtol=0, atol=0)


def test_counters_may_be_absent_and_nothing_else(tmp_path: Path) -> None:
    """num_batches_tracked, which files of old lack, is set to 0; running means are not forgiven."""
    state = dict(model("test_resnet").state_dict())
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    assert opened_hash(tmp_path / "old.pth", "test_resnet") == network_hash("test_resnet", {}, state)  # a fresh model's counters are 0 too
    module = model("test_resnet")
    match = match_backbone(old, module, Path("x"))
    assert len(match.absent_counters) == len(state) - len(old) > 0
    assert "batch counters absent" in match.summary
    means = {name: tensor for name, tensor in state.items() if not name.endswith("running_mean")}
    with pytest.raises(DataError, match=r"missing: .*running_mean"):
        match_backbone(means, module, Path("x"))


@pytest.mark.parametrize("style", ["flat", "state_dict, module.", "teacher, module.backbone."])
def test_a_missing_block_is_refused(style: str) -> None:
    """A ViT without its last block: an error that names the tensors by the model's names, at most 20 of them."""
    state = dict(model("test_vit2").state_dict())
    cut = {name: tensor for name, tensor in state.items() if not name.startswith("blocks.3.") and not name.startswith("blocks.4.")}
    missing = len(state) - len(cut)
    with pytest.raises(DataError, match=f"{missing} tensors do not match, {len(cut)} are there") as caught:
        match_backbone(STYLES[style](cut), model("test_vit2"), Path("x"))
    assert "missing: blocks.3." in str(caught.value)
    assert str(caught.value).count("missing:") == min(missing, 20)


def test_wrong_shapes_superfluous_tensors_and_kinds_are_refused() -> None:
    """Another position embedding, a tensor that is nowhere in the model, integers for weights, tensors beside a wrapper's."""
    state = dict(model("test_vit").state_dict())
    module = model("test_vit")
    with pytest.raises(DataError, match=r"pos_embed: shape \(1, 50, 64\), the model has \(1, 101, 64\)"):
        match_backbone({**state, "pos_embed": torch.zeros(1, 50, 64)}, module, Path("x"))
    with pytest.raises(DataError, match=r"not part of the model: blocks\.9\.norm1\.weight"):
        match_backbone({**state, "blocks.9.norm1.weight": torch.zeros(64)}, module, Path("x"))
    with pytest.raises(DataError, match=r"norm\.weight: holds torch\.int64"):
        match_backbone({**state, "norm.weight": torch.zeros(64, dtype=torch.int64)}, module, Path("x"))
    with pytest.raises(DataError, match="not part of the model: extra"):
        match_backbone({**prefixed(state, "module."), "extra": torch.zeros(2)}, module, Path("x"))
    with pytest.raises(DataError, match="no named tensors"):
        match_backbone({"epoch": 3}, module, Path("x"))
    with pytest.raises(DataError, match="no named tensors"):
        match_backbone([1, 2], module, Path("x"))


def test_another_architecture_is_refused_with_twenty_names() -> None:
    """A ResNet's tensors for a ViT: the first 20 of the faults, and how many more."""
    with pytest.raises(DataError, match=r"and \d+ more") as caught:
        match_backbone(dict(model("test_resnet").state_dict()), model("test_vit"), Path("x"))
    assert str(caught.value).count("\n") == 21


def test_two_whole_backbones_need_a_choice(tmp_path: Path) -> None:
    """Teacher and student of different weights: refused without a part, each opened by FILE#PART@NAME; equal tensors are no choice."""
    teacher, student = model("test_vit", seed=1), model("test_vit", seed=2)
    both = {"teacher": prefixed(teacher.state_dict(), "module.backbone."), "student": prefixed(student.state_dict(), "module.backbone.")}
    path = tmp_path / "dino.pth"
    torch.save(both, path)
    with pytest.raises(UserError, match=r"2 whole backbones \(teacher, student\)"):
        opened_hash(path, "test_vit")
    assert open_backbone(f"{path}#teacher@test_vit").checkpoint_hash == network_hash("test_vit", {}, teacher.state_dict())
    assert open_backbone(f"{path}#student@test_vit").checkpoint_hash == network_hash("test_vit", {}, student.state_dict())
    with pytest.raises(UserError, match="no part 'ema'; its parts are teacher, student"):
        open_backbone(f"{path}#ema@test_vit")
    same = teacher.state_dict()
    assert match_backbone({"model": same, "state_dict": same}, model("test_vit"), Path("x")).wrapping == "state_dict"


def test_timms_own_conversion_is_used_where_the_names_are_others() -> None:
    """A mask token beside a ViT's tensors, which timm's conversion of that family drops: all others are as they were."""
    module = model("vit_tiny_patch16_224.augreg_in21k")
    match = match_backbone({**module.state_dict(), "mask_token": torch.zeros(1, 1, 192)}, module, Path("x"))
    assert match.was_renamed
    assert weights_hash(match.tensors) == weights_hash(module.state_dict())


class Hostile:
    """Runs a command when it is unpickled by a loader that runs things."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "old pickle", "bare pickle"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path: Path, form: str) -> None:
    """A file that would make a folder if it were unpickled: refused with the function named, and the folder is not there."""
    content = {"state_dict": model("test_vit").state_dict(), "extra": Hostile(f"mkdir {tmp_path / 'owned'}")}
    path = tmp_path / "file.pth"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(content["extra"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(DataError, match=r"refused: .*(posix|os)\W*\.?system.*nothing of it was run"):
        opened_hash(path, "test_vit")
    assert not (tmp_path / "owned").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    """An archive of torch.jit.save, which holds code."""
    path = tmp_path / "scripted.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(DataError, match="TorchScript archive"):
        opened_hash(path, "test_vit")


@pytest.mark.parametrize("form", ["safetensors", "zip", "old pickle"])
@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path: Path, form: str, kept: float) -> None:
    """Each kind of file cut at several places: a DataError that names the file."""
    path = tmp_path / "file.pth"
    if form == "safetensors":
        safetensors.torch.save_file(model("test_vit").state_dict(), path)
    else:
        torch.save(dict(model("test_vit").state_dict()), path, _use_new_zipfile_serialization=form == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=r"file\.pth"):
        opened_hash(path, "test_vit")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("nowhere.pth@resnet18", "no such file"),
        ("zoo:bamboo-rn5", "did you mean 'bamboo-rn50'"),
        ("run:nowhere", "no such file or folder"),
    ],
)
def test_names_that_lead_nowhere(checkpoint: str, message: str) -> None:
    """Each is a UserError with the remedy."""
    with pytest.raises(UserError, match=message):
        open_backbone(checkpoint)


def test_a_file_with_an_unknown_name(tmp_path: Path) -> None:
    """FILE@NAME with a name that is neither an id nor a model: the nearest of both."""
    torch.save({}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="did you mean 'clip-vitb16'"):
        open_backbone(f"{tmp_path / 'a.pth'}@clip-vitb1")

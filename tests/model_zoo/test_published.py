"""A registry's word against the file: sizes of model and classifier, and what counts as a classifier."""

import collections
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from bamboo.cli.errors import DataError
from bamboo.model_zoo.published import entry_recipe, load_published
from bamboo.model_zoo.registry import Entry, read_registry
from bamboo.model_zoo.weight_files import read_checkpoint
from bamboo.model_zoo.wrappings import match_backbone
from tests.model_zoo.released import legacy_weights, registry

State = dict[str, torch.Tensor]


def model(num_classes: int = 0) -> torch.nn.Module:
    torch.manual_seed(0)
    made: torch.nn.Module = timm.create_model("test_vit", num_classes=num_classes)
    return made


def saved(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "file.pth")
    return folder / "file.pth"


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    """Returns an entry of test_vit with 7 outputs, right in all."""
    return read_registry(registry(tmp_path, {"url": "https://example.org/a.pth"}))["small"]


@pytest.mark.parametrize(("field", "message"), [("num_params", "parameters"), ("num_features", "features of width 64")])
def test_a_model_of_another_size_than_the_registry_says(tmp_path: Path, entry: Entry, field: str, message: str) -> None:
    """An entry one off in parameters or width: refused; as it is: loaded."""
    path = saved(tmp_path, model(7).state_dict())
    assert load_published(path, entry_recipe(entry)).module.state_dict().keys() == model().state_dict().keys()
    right = getattr(entry, field)
    wrong = dataclasses.replace(entry, **{field: right + 1})
    with pytest.raises(DataError, match=rf"zoo:small: test_vit has .*{message}.*, the registry says {right + 1:,}"):
        load_published(path, entry_recipe(wrong))


def test_a_classifier_of_another_size_than_the_registry_says(tmp_path: Path, entry: Entry) -> None:
    """9 outputs where the registry says 7: refused with the way to open it; no classifier at all, or an entry without one: loaded."""
    with pytest.raises(DataError, match=r"9 outputs, the registry says 7 of small; .*FILE@test_vit"):
        load_published(saved(tmp_path, model(9).state_dict()), entry_recipe(entry))
    assert load_published(saved(tmp_path, model().state_dict()), entry_recipe(entry)).match.head == {}
    headless = dataclasses.replace(entry, num_classes=0)
    assert len(load_published(saved(tmp_path, model(9).state_dict()), entry_recipe(headless)).match.head) == 2


def test_two_classifiers_in_a_file_are_refused() -> None:
    """`fc` and `head` beside each other, of which the model has one: neither is taken silently."""
    state = model(7).state_dict()
    with pytest.raises(DataError, match=r"a second classifier: .*\n.*a second classifier"):
        match_backbone({**state, "fc.weight": torch.zeros(5, 64), "fc.bias": torch.zeros(5)}, model(), Path("x"))


@pytest.mark.parametrize("name", ["fc.blocks.0.attn.weight", "classifier.anything", "head.blocks.1.weight", "head.weight.more", "fc.0"])
def test_what_only_begins_like_a_classifier_is_refused(name: str) -> None:
    """Tensors under a classifier's name that are not its weight or bias, nor a projector's layers."""
    with pytest.raises(DataError, match=f"not part of the model: {name}"):
        match_backbone({**model().state_dict(), name: torch.zeros(3)}, model(), Path("x"))


@pytest.mark.parametrize(
    "names",
    [
        ["head.0.weight", "head.1.running_mean", "head.3.weight", "head.3.bias"],  # MoCo v3
        ["fc.0.weight", "fc.0.bias", "fc.2.weight"],  # MoCo v2
        ["head.mlp.0.weight", "head.last_layer.weight_g", "head.last_layer.weight_v"],  # DINO
        ["head.last_layer.parametrizations.weight.original0"],
    ],
)
def test_projectors_are_left_out_and_named(names: list[str]) -> None:
    """The projectors of self-supervised training, in the classifier's place: no classifier, and told as left out."""
    match = match_backbone({**model().state_dict(), **{name: torch.zeros(3) for name in names}}, model(), Path("x"))
    assert (match.head, set(match.left_out)) == ({}, set(names))


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_data_beside_the_tensors_is_read(tmp_path: Path, zipped: bool) -> None:
    """Numpy scalars, dtypes and defaultdicts, as trainers keep them: read back equal, by weights-only loading."""
    counts = collections.defaultdict(list, {"a": [1]})
    extra: dict[str, Any] = {"best": np.float64(3.25), "epoch": np.int64(7), "done": np.bool_(True), "kind": np.dtype("float32")}
    extra |= {"counts": counts, "state": collections.defaultdict(dict), "steps": collections.defaultdict(int, {"b": 2})}
    path = tmp_path / "file.pth"
    torch.save({"state_dict": model().state_dict(), **extra}, path, _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(path)
    assert {name: read[name] for name in extra} == extra


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_under_the_name_of_another_kind(tmp_path: Path, zipped: bool) -> None:
    """torch's own file called `.safetensors`: read by what it is, as long as it is whole."""
    path = tmp_path / "file.safetensors"
    content = legacy_weights(zipped=zipped)
    path.write_bytes(content)
    assert len(read_checkpoint(path)) == len(model(7).state_dict())
    path.write_bytes(content[:-1000])
    with pytest.raises(DataError, match="truncated or damaged"):
        read_checkpoint(path)


def test_a_refusal_does_not_hand_on_torchs_advice(tmp_path: Path) -> None:
    """A pickle with a class of its own: the class is named, and nobody is told to allow it."""
    with pytest.raises(DataError, match="pathlib") as caught:
        read_checkpoint(saved(tmp_path, {"state_dict": model().state_dict(), "where": Path("x")}))
    assert "lease" not in str(caught.value)
    assert "safe_globals" not in str(caught.value)

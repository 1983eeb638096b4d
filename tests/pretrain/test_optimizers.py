"""The large-batch optimisers, layer decay and accumulation in runs of a step or few, against their formulas."""

import math
from pathlib import Path

import pytest
import torch

from bamboo.cli.main import main
from bamboo.model_zoo.backbone import create_model
from bamboo.model_zoo.export import read_weights
from bamboo.pretrain.engines.portable import group_names, portable_groups
from bamboo.pretrain.log import read_log
from bamboo.pretrain.optimizer import create_optimizer
from bamboo.pretrain.settings.optimizer import OptimizerSettings
from tests.pretrain.launch import options

Weights = dict[str, torch.Tensor]
PLAIN = {"optimizer.name": "momentum", "optimizer.momentum": "0", "optimizer.weight_decay": "0", "optimizer.schedule": "constant"}
STEEP = 10.0  # a rate at which float32 weights tell the gradient


def after_a_step(pool: Path, folder: Path, settings: dict[str, str]) -> Weights:
    """Returns the weights after the first step of a run, in float64."""
    assert main(["pretrain", *options(pool, folder, {"run.duration": "1 steps", **settings})]) == 0
    return {name: tensor.double() for name, tensor in read_weights(folder / "export" / "model.safetensors").items()}


@pytest.fixture(scope="module")
def first() -> torch.nn.Module:
    """Returns the network as a run of seed 0 has it before its first step."""
    torch.manual_seed(0)
    return create_model("test_vit", num_classes=3, img_size=32, patch_size=8)


@pytest.fixture(scope="module")
def before(first: torch.nn.Module) -> Weights:
    """Returns its weights in float64."""
    return {name: tensor.double() for name, tensor in first.state_dict().items()}


@pytest.fixture(scope="module")
def gradient(pool: Path, before: Weights, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Returns the gradient of the first step, as plain gradient descent shows it."""
    after = after_a_step(pool, tmp_path_factory.mktemp("plain"), {**PLAIN, "optimizer.lr": str(STEEP)})
    return {name: (before[name] - after[name]) / STEEP for name in before}


def is_decayed(first: torch.nn.Module, name: str) -> bool:
    exempt = first.no_weight_decay()  # type: ignore[operator]  # timm's models have it
    return first.get_parameter(name).ndim > 1 and name not in exempt


def apart(ours: Weights, expected: Weights, before: Weights) -> dict[str, float]:
    """Returns |update - expected update| / |expected update| of each tensor."""
    return {
        name: float((ours[name] - expected[name]).norm() / (expected[name] - before[name]).norm().clamp_min(1e-12)) for name in expected
    }


def test_lamb(pool: Path, tmp_path: Path, first: torch.nn.Module, before: Weights, gradient: Weights) -> None:
    """The first step by arXiv 1904.00962, algorithm 2, with the gradient's norm cut to 1: updates to 2e-3 of their length."""
    settings = {"optimizer.name": "lamb", "optimizer.lr": "0.01", "optimizer.weight_decay": "0.1", "optimizer.schedule": "constant"}
    ours = after_a_step(pool, tmp_path, settings)
    cut = max(math.sqrt(sum(float(part.square().sum()) for part in gradient.values())), 1.0)
    expected = {}
    for name, weight in before.items():
        update = gradient[name] / cut / ((gradient[name] / cut).abs() + 1e-6)  # m / √v, both with their bias corrected
        if is_decayed(first, name):
            update = update + 0.1 * weight
            update = update * weight.norm() / update.norm()
        expected[name] = weight - 0.01 * update
    assert max(apart(ours, expected, before).values()) < 2e-3


def test_lars(pool: Path, tmp_path: Path, first: torch.nn.Module, before: Weights, gradient: Weights) -> None:
    """The first step by arXiv 1708.03888, equation 6, with a trust coefficient of 0.001: updates to 2e-3 of their length."""
    settings = {"optimizer.name": "lars", "optimizer.lr": "5", "optimizer.weight_decay": "0.1", "optimizer.schedule": "constant"}
    ours = after_a_step(pool, tmp_path, settings)
    expected = {}
    for name, weight in before.items():
        update = gradient[name]
        if is_decayed(first, name):
            trust = 0.001 * weight.norm() / (update.norm() + 0.1 * weight.norm())
            update = trust * (update + 0.1 * weight)
        expected[name] = weight - 5 * update
    assert max(apart(ours, expected, before).values()) < 2e-3


def test_layer_decay(pool: Path, tmp_path: Path, first: torch.nn.Module, before: Weights, gradient: Weights) -> None:
    """The first step's updates against the gradient: half as long per layer, from the head down to the embedding.

    timm counts the last norm to the last block.
    """
    ours = after_a_step(pool, tmp_path, {**PLAIN, "optimizer.lr": str(STEEP), "optimizer.layer_decay": "0.5"})
    depth = len(first.blocks)  # type: ignore[arg-type]  # a list of blocks
    expected = {}
    for name, weight in before.items():
        place = name.split(".")[0]
        layers_above = {"head": 0, "norm": 1, "fc_norm": 1}.get(place, depth + 1)
        if place == "blocks":
            layers_above = depth - int(name.split(".")[1])
        expected[name] = weight - STEEP * 0.5**layers_above * gradient[name]
    assert max(apart(ours, expected, before).values()) < 2e-3


def test_accumulation_changes_nothing(pool: Path, tmp_path: Path) -> None:
    """Four steps of a network without batch norm, in one pass and in three: losses and gradient norms to 1e-5."""
    for passes in ("1", "3"):
        assert main(["pretrain", *options(pool, tmp_path / passes, {"run.duration": "4 steps", "run.accumulate": passes})]) == 0
    one, three = (read_log(tmp_path / passes, "train") for passes in ("1", "3"))
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in three] == pytest.approx([row[key] for row in one], rel=1e-5)


def test_a_saved_step_count_stays_while_training_goes_on() -> None:
    """LAMB counts a group's steps in one tensor: the state saved after step 1 still says 1 after step 2."""
    model = torch.nn.Linear(2, 2)
    optimizer = create_optimizer(model, OptimizerSettings(name="lamb"))
    names = group_names(model, optimizer)

    def step() -> None:
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    step()
    saved = portable_groups(optimizer, names)
    step()
    assert [int(group["step"]) for group in saved] == [1] * len(names)
    assert [int(group["step"]) for group in optimizer.param_groups] == [2] * len(names)

"""Activation checkpointing against plain training: the same numbers, in less memory, under every engine."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch

from bamboo.cli.errors import UserError
from bamboo.model_zoo.backbone import create_model
from bamboo.pretrain.recompute import checkpoint_activations
from tests.pretrain.test_engines import ENGINES, MODELS, TOLERANCE, check_export, distance, job, relay, streams

NETWORKS = {"vit_tiny_patch16_224": {"img_size": 64, "depth": 4}, "resnet18": {}}
MOST = {"vit_tiny_patch16_224": 0.2, "resnet18": 0.6}  # of the bytes kept without; seen: 0.14, 0.55


def step(name: str, recompute: bool) -> tuple[float, int, dict[str, torch.Tensor]]:
    """Returns (loss, bytes of activations kept for the backward pass, state and gradients) of one step with stochastic depth."""
    torch.manual_seed(0)
    args: dict[str, Any] = {**NETWORKS[name], "drop_path_rate": 0.2}
    model = create_model(name, num_classes=3, **args).train()
    recomputing = checkpoint_activations(model, name) if recompute else contextlib.nullcontext
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(torch.randn(8, 3, 64, 64)).square().sum()
    num_bytes = sum(kept.values())
    with recomputing():
        loss.backward()
    gradients = {f"gradient of {key}": parameter.grad for key, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.item(), num_bytes, {**model.state_dict(), **gradients}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_same_step_in_less_memory(name: str) -> None:
    """Loss, gradients and batch-norm statistics with and without, bit for bit; bytes that autograd keeps, counted as it packs them."""
    loss, num_bytes, tensors = step(name, recompute=False)
    ours, fewer_bytes, recomputed = step(name, recompute=True)
    assert ours == loss
    assert tensors.keys() == recomputed.keys()
    assert not [key for key, tensor in tensors.items() if not torch.equal(tensor, recomputed[key])]
    assert fewer_bytes < MOST[name] * num_bytes


def test_norms_go_on_counting_afterwards() -> None:
    """Inside the block a batch norm's statistics stay; before and after it they move, and momentum and count are its own again."""
    model = create_model("resnet18", num_classes=3)
    norm, images = model.bn1, torch.randn(4, 64, 8, 8)
    recomputing = checkpoint_activations(model, "resnet18")
    norm(images)
    before = norm.running_mean.clone()
    with pytest.raises(ZeroDivisionError), recomputing():
        norm(images)
        raise ZeroDivisionError
    assert torch.equal(norm.running_mean, before)
    norm(images)
    assert not torch.equal(norm.running_mean, before)
    assert (norm.momentum, int(norm.num_batches_tracked)) == (0.1, 2)


def test_a_network_without_it_is_refused() -> None:
    """A model of timm that has no checkpointing: the setting and the model are named."""
    with pytest.raises(UserError, match=r"model.checkpoint_activations=true: timm has none for model.name=vgg11"):
        checkpoint_activations(create_model("vgg11", num_classes=3), "vgg11")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "precision"), [("ViT", "fp32"), ("ResNet", "bf16")])
def test_every_engine_recomputes(pool: Path, tmp_path: Path, model: str, precision: str) -> None:
    """Each engine on two ranks with checkpointing, 4 steps: the losses of DDP without, within the tolerance stated for the engine."""
    settings = {**MODELS[model], "run.duration": "4 steps", "run.precision": precision, "model.drop_path": "0.2"}
    recompute = {"model.checkpoint_activations": "true"}
    jobs = [job(pool, tmp_path / "plain", settings)]
    relay(tmp_path, [*jobs, *(job(pool, tmp_path / name, settings, recompute, engine) for name, engine in ENGINES.items())])
    for name in ENGINES:
        assert streams(tmp_path / name) == streams(tmp_path / "plain")
        assert distance(tmp_path / name, tmp_path / "plain") <= TOLERANCE[precision][name], name
        check_export(tmp_path / name)

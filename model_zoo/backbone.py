"""The backbone: one object that probe, growth and detection share, whatever file or name it came from.

Letters: B batch, S image side, D width, C channels, h w feature-map sides.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch

from ..cli.errors import DataError, UserError
from .architectures import create_model as create_model
from .architectures import create_offline, timm_preprocessing
from .export import WEIGHTS_NAME, Card, State, network_hash, read_card, read_weights
from .preprocessing import Normalize, Preprocessing
from .published import open_published, resize_input
from .sources import access_from_environment

Precision = Literal["fp32", "bf16"]

CHECKPOINT_FORMS = (
    "a run folder, a .safetensors file with its model.json, zoo:ID (bamboo zoo list), FILE@NAME (any checkpoint file; NAME is a zoo id or "
    "a model of timm), timm:NAME (pretrained), untrained:NAME, untrained:RUN or pixels:SIZE"
)


class Backbone:
    """A frozen feature extractor with its preprocessing and the hash of the network.

    `features` and `feature_maps` take uint8[B, S, S, 3], as the stream's batches hold them, on the backbone's device.

    Args:
        checkpoint_hash: `network_hash` of architecture and tensors; None: the name, of a module without tensors.
    """

    def __init__(
        self, name: str, module: torch.nn.Module, preprocessing: Preprocessing, num_features: int, checkpoint_hash: str | None = None
    ) -> None:
        self.name, self.module, self.preprocessing, self.num_features = name, module.eval(), preprocessing, num_features
        self.checkpoint_hash = name if checkpoint_hash is None else checkpoint_hash
        self.checkpoint = name
        """What `open_backbone` was asked for."""
        self._normalize = Normalize(preprocessing)
        self.device = torch.device("cpu")

    def to(self, device: torch.device) -> "Backbone":
        """Moves the backbone, channels-last, and returns it."""
        self.module.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        self._normalize.to(device)
        self.device = device
        return self

    @torch.inference_mode()
    def features(self, images: torch.Tensor, precision: Precision = "fp32") -> torch.Tensor:
        """Returns pooled features, float32[B, D]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16"):
            pooled: torch.Tensor = self.module(self._normalize(images))
        return pooled.float()

    @torch.inference_mode()
    def feature_maps(self, images: torch.Tensor, indices: Sequence[int] | None = None) -> list[torch.Tensor]:
        """Returns feature maps, float32[B, C, h, w] each, of the stages (ResNet) or blocks (ViT) `indices`; None: all of them."""
        forward = getattr(self.module, "forward_intermediates", None)
        if forward is None:
            raise UserError(f"{self.name}: has no feature maps")
        wanted = None if indices is None else list(indices)
        maps: list[torch.Tensor] = forward(self._normalize(images), indices=wanted, intermediates_only=True, output_fmt="NCHW")
        return maps


class Pixels(torch.nn.Module):
    """The baseline that learned nothing: the pixels themselves, [B, 3, S, S] → [B, 3·S·S]."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the flattened images."""
        return images.flatten(1)


def open_backbone(checkpoint: str, *, seed: int = 0, image_size: int | None = None) -> Backbone:
    """Returns the backbone that `checkpoint` names.

    Args:
        checkpoint: a run folder (also `run:FOLDER`), a `.safetensors` file with its card beside it, `zoo:ID` (of the registry; fetched if
            need be), `FILE@NAME` or `FILE#PART@NAME` (any checkpoint file; NAME is an id of the registry or a model of timm),
            `timm:NAME` (timm's pretrained weights), `untrained:NAME` or `untrained:RUN` (the same network and preprocessing, fresh
            weights from `seed`), `pixels:SIZE`.
        image_size: overrides the preprocessing's image side, in pixels.

    Raises:
        UserError: when the name is of none of these forms or does not exist.
        DataError: when files are damaged, cannot be fetched, or any tensor of the backbone is missing, superfluous or of another shape.
    """
    backbone = _open(checkpoint, seed, image_size)
    backbone.checkpoint = checkpoint
    return backbone


def _open(checkpoint: str, seed: int, image_size: int | None) -> Backbone:
    form, _, rest = checkpoint.partition(":")
    if form == "pixels":
        if not rest.isdecimal() or not 1 <= int(rest) <= 1024:
            raise UserError(f"checkpoint={checkpoint}: pixels:SIZE takes a side of 1 to 1024 pixels")
        size = image_size or int(rest)
        return Backbone(f"pixels:{size}", Pixels(), Preprocessing(image_size=size, crop_fraction=1.0), 3 * size * size)
    if form == "timm":
        return _at_size(_from_timm(rest, pretrained=True), image_size, checkpoint)
    if form == "untrained":
        torch.manual_seed(seed)
        card = read_card(_weights_path(rest)) if Path(rest).exists() else None
        backbone = _from_timm(rest, pretrained=False) if card is None else _from_card(card, card.architecture)
        backbone.name = f"untrained:{backbone.name} (seed {seed})"
        return _at_size(backbone, image_size, checkpoint)
    if form == "zoo" or ("@" in checkpoint and not Path(checkpoint).exists()):
        return _at_size(_from_published(checkpoint), image_size, checkpoint)
    return _at_size(_from_file(_weights_path(rest if form == "run" else checkpoint)), image_size, checkpoint)


def _at_size(backbone: Backbone, image_size: int | None, checkpoint: str) -> Backbone:
    """Returns the backbone for images of another side; its hash stays that of the network as it is in the file."""
    if image_size is None or image_size == backbone.preprocessing.image_size:
        return backbone
    resize_input(backbone.module, image_size, checkpoint)
    preprocessing = dataclasses.replace(backbone.preprocessing, image_size=image_size)
    return Backbone(backbone.name, backbone.module, preprocessing, backbone.num_features, backbone.checkpoint_hash)


def backbone_in_training(card: Card, state: State) -> Backbone:
    """Returns the backbone of a model that is being trained: what `open_backbone` would make of its export, on the tensors' own storage.

    Nothing is copied but buffers that no state dict holds, so it is good only for as long as `state` does not change; it has no hash of
    its weights.
    """
    module = create_model(card.architecture, num_classes=0, **card.model_args)
    backbone = Backbone(card.architecture, module, card.preprocessing, int(cast(Any, module).num_features))
    _load_all(module, state, "the model in training", assign=True)
    return backbone


def run_weights(run: Path) -> Path:
    """Returns where a run folder keeps its exported weights."""
    return run / "export" / WEIGHTS_NAME


def _weights_path(checkpoint: str) -> Path:
    path = Path(checkpoint)
    if path.is_dir():
        for candidate in (run_weights(path), path / WEIGHTS_NAME):
            if candidate.exists():
                return candidate
        raise UserError(f"checkpoint={checkpoint}: holds no {WEIGHTS_NAME} (an unfinished run? bamboo pretrain exports when it ends)")
    if path.suffix == ".safetensors" and path.exists():
        return path
    raise UserError(f"checkpoint={checkpoint}: no such file or folder; give {CHECKPOINT_FORMS}")


def _from_file(path: Path) -> Backbone:
    card = read_card(path)
    if card is None:
        raise UserError(f"checkpoint={path}: no model.json beside it says which architecture it is")
    tensors = read_weights(path)
    run = path.parent.parent.name if path.parent.name == "export" else path.stem
    backbone = _from_card(card, run)
    _load_all(backbone.module, tensors, str(path))
    backbone.checkpoint_hash = network_hash(card.architecture, card.model_args, backbone.module.state_dict())
    return backbone


def _from_published(checkpoint: str) -> Backbone:
    opened = open_published(checkpoint, access_from_environment())
    recipe, module = opened.recipe, opened.module
    digest = network_hash(recipe.architecture, recipe.model_args, module.state_dict())
    return Backbone(recipe.name, module, opened.preprocessing, int(cast(Any, module).num_features), digest)


def _from_card(card: Card, name: str) -> Backbone:
    module = create_model(card.architecture, num_classes=0, **card.model_args)
    digest = network_hash(card.architecture, card.model_args, module.state_dict())
    return Backbone(name, module, card.preprocessing, int(cast(Any, module).num_features), digest)


def _from_timm(name: str, *, pretrained: bool) -> Backbone:
    try:
        if pretrained and access_from_environment().offline:
            module = create_offline(name, num_classes=0)
        else:
            module = create_model(name, pretrained=pretrained, num_classes=0)
    except (OSError, RuntimeError) as error:  # no network, no such weights
        raise UserError(f"checkpoint=timm:{name}: its weights cannot be had: {error}") from None
    digest = network_hash(name, {}, module.state_dict())
    return Backbone(name, module, timm_preprocessing(module), int(cast(Any, module).num_features), digest)


def _load_all(module: torch.nn.Module, tensors: State, source: str, *, assign: bool = False) -> None:
    """Loads every tensor of the backbone; the classifier's are dropped, anything else left over is an error that lists it."""
    wanted = module.state_dict()
    classifier = cast(Any, module).pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    given = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(f"{head}." for head in heads))}
    faults = [f"missing: {name}" for name in wanted if name not in given]
    faults += [f"not part of the model: {name}" for name in given if name not in wanted]
    faults += [
        f"{name}: shape {tuple(given[name].shape)}, the model has {tuple(wanted[name].shape)}"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    if faults:
        raise DataError("\n  ".join([f"{source}: {len(faults)} tensors do not match:", *faults[:20], *(["…"] if len(faults) > 20 else [])]))
    module.load_state_dict(given, assign=assign)

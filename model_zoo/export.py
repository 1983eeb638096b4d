"""A trained model as a file for others: `model.safetensors` with timm's names, and `model.json`, the card that explains it."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from ..cli.errors import DataError
from ..datasets.atomic import sha256_json, write_bytes, write_json
from .preprocessing import Preprocessing, preprocessing_from

WEIGHTS_NAME, CARD_NAME = "model.safetensors", "model.json"

State = Mapping[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What has to be known to build and feed the model, and where it came from."""

    architecture: str
    """timm's name of the model."""
    model_args: dict[str, Any]
    """Further arguments of `timm.create_model`."""
    classes: tuple[str, ...]
    """Names of the head's outputs, in order."""
    preprocessing: Preprocessing
    trained: dict[str, Any]
    """Data hash, config hash, steps, weights ("model" or "ema"), versions."""


def write_export(folder: Path, state: State, card: Card) -> Path:
    """Writes weights and card into `folder`, each atomically, the card last; returns the weights' path."""
    path = folder / WEIGHTS_NAME
    write_bytes(path, safetensors.torch.save(contiguous(state)))
    write_json(folder / CARD_NAME, card_tree(card))
    return path


def card_tree(card: Card) -> dict[str, Any]:
    """Returns a card as JSON holds it."""
    return {"format": "bamboo-model", "version": 1, **dataclasses.asdict(card)}


def card_from(tree: Mapping[str, Any], path: Path) -> Card:
    """Returns the card that JSON holds.

    Raises:
        DataError: when it is damaged; `path` is where it was found.
    """
    try:
        return Card(
            architecture=tree["architecture"],
            model_args=tree["model_args"],
            classes=tuple(tree["classes"]),
            preprocessing=preprocessing_from(tree["preprocessing"]),
            trained=tree["trained"],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}: {error})") from None


def read_card(path: Path) -> Card | None:
    """Returns the card beside a weights file, or None where there is none.

    Raises:
        DataError: when it is damaged.
    """
    card_path = path.with_name(CARD_NAME)
    if not card_path.exists():
        return None
    try:
        tree = json.loads(card_path.read_bytes())
    except ValueError as error:
        raise DataError(f"{card_path}: damaged ({type(error).__name__}: {error})") from None
    return card_from(tree, card_path)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a safetensors file.

    Raises:
        DataError: when it is missing, truncated or no safetensors file.
    """
    try:
        tensors: dict[str, torch.Tensor] = safetensors.torch.load_file(str(path))
    except (OSError, safetensors.SafetensorError) as error:
        raise DataError(f"{path}: not a readable safetensors file: {error}") from None
    return tensors


def contiguous(state: State) -> dict[str, torch.Tensor]:
    """Returns the tensors in row-major order on the CPU, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def network_hash(architecture: str, model_args: Mapping[str, Any], state: State) -> str:
    """Returns a hex SHA-256 over timm's name of a model (without the tag of its weights), its further arguments and `weights_hash`.

    Networks of equal tensors may compute different things: an activation or a number of heads stands in no tensor.
    """
    return sha256_json({"architecture": architecture.partition(".")[0], "model_args": dict(model_args), "weights": weights_hash(state)})


def weights_hash(state: State) -> str:
    """Returns a hex SHA-256 over names, dtypes, shapes and values of all tensors; independent of their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(contiguous(state).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

"""Stochastic depth at the same rate in every block; timm's own rises from 0 in the first block to the rate in the last."""

import torch
from timm.layers import DropPath

from ..cli.errors import UserError

_PLACES = ("drop_path", "drop_path1", "drop_path2")


def even_drop_path(model: torch.nn.Module, rate: float, name: str) -> None:
    """Has every block of a model leave out its branches at one rate. Source: DeiT III, arXiv 2204.07118, and its repository.

    Raises:
        UserError: when the model has no blocks that could.
    """
    found = [(module, place) for module in model.modules() for place in _PLACES if hasattr(module, place)]
    if not found:
        raise UserError(f"model.drop_path_even=true: model.name={name} has no block with stochastic depth; leave it out")
    for module, place in found:
        setattr(module, place, DropPath(rate).train(module.training))

"""Activation checkpointing: timm's, with batch norms that count each batch once."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

from ..cli.errors import UserError


def checkpoint_activations(model: torch.nn.Module, name: str) -> Callable[[], AbstractContextManager[None]]:
    """Has a model compute the activations inside its blocks a second time in the backward pass, instead of keeping them.

    Returns what to enter around each backward pass. Inside, batch norms leave their running statistics alone: the second forward pass
    of a block would take its batch into them again (they use the batch's own statistics, so the activations are the same).

    Raises:
        UserError: when timm has no checkpointing for the model.
    """
    try:
        model.set_grad_checkpointing(True)  # type: ignore[operator]  # timm's models have it, nn.Module does not
    except (AttributeError, AssertionError, NotImplementedError):
        raise UserError(f"model.checkpoint_activations=true: timm has none for model.name={name}; leave it out") from None
    # In torch the attribute decides whether the running statistics take part at all; SyncBatchNorm and timm's variants ask it, too.
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    tracking = [norm for norm in norms if norm.track_running_stats]

    @contextlib.contextmanager
    def recomputing() -> Iterator[None]:
        try:
            for norm in tracking:
                norm.track_running_stats = False
            yield
        finally:
            for norm in tracking:
                norm.track_running_stats = True

    return recomputing

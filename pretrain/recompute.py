"""Activation checkpointing: timm's, with batch norms that count each batch once."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
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
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    return functools.partial(_counted_once, [norm for norm in norms if norm.track_running_stats])


@contextlib.contextmanager
def _counted_once(norms: Sequence[torch.nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Has the norms add nothing to their statistics inside the block; they must take part, for autograd checks that the same is saved."""
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count

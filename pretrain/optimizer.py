"""The optimiser, from timm's factory."""

import torch
from timm.optim import create_optimizer_v2

from ..cli.errors import UserError
from .settings.optimizer import OptimizerSettings


def create_optimizer(model: torch.nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Returns timm's optimiser; biases and norms are not decayed.

    Raises:
        UserError: when timm knows no such optimiser or refuses its arguments.
    """
    try:
        optimizer: torch.optim.Optimizer = create_optimizer_v2(
            model,
            opt=settings.name,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            layer_decay=settings.layer_decay,
            **settings.args,
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"optimizer.name={settings.name}: {error}") from None
    return optimizer

"""Optimiser state by parameter name: what every engine saves and takes up.

{"groups": [{"params": [names], "lr": …, …}], "state": {name: {"exp_avg": tensor, "step": …}}}; a tensor is what a rank holds of it
(`Held`) when it is saved, and where it lies (`Stored`) when it is taken up.
"""

from collections.abc import Mapping
from typing import Any

import torch

from ...cli.errors import DataError

Names = list[list[str]]
"""The names of each parameter group, in order; empty groups are left out."""

Moments = Mapping[str, Mapping[str, Any]]


def group_names(module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Names:
    """Returns the names of the parameters in each of the optimiser's groups, and drops empty groups from the optimiser."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    return [[names[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def portable_groups(optimizer: torch.optim.Optimizer, names: Names) -> list[dict[str, Any]]:
    """Returns the optimiser's settings by group, with the names of each group's parameters.

    Tensors among them (LAMB counts a group's steps in one) are copies: training may go on while they are written.
    """
    groups = []
    for group, members in zip(optimizer.param_groups, names, strict=True):
        kept = {key: _copied(value) for key, value in group.items() if key not in ("params", "param_names")}
        groups.append({**kept, "params": members})
    return groups


def by_name(optimizer: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Returns the state by name, also of what `torch.optim.Optimizer.state_dict` returned, which numbers parameters in group order."""
    if "param_groups" not in optimizer:
        return dict(optimizer)
    flat = [name for members in names for name in members]
    groups = [group for group in optimizer["param_groups"] if group["params"]]
    if sum(len(group["params"]) for group in groups) != len(flat):
        raise DataError(f"optimiser state of {sum(len(group['params']) for group in groups)} parameters; this model's has {len(flat)}")
    numbers = [number for group in groups for number in group["params"]]
    named = dict(zip(numbers, flat, strict=True))
    tree = [
        {**{key: value for key, value in group.items() if key != "param_names"}, "params": [named[number] for number in group["params"]]}
        for group in groups
    ]
    return {"groups": tree, "state": {named[number]: state for number, state in optimizer["state"].items()}}


def check_groups(tree: Mapping[str, Any], names: Names) -> None:
    """Raises DataError unless the saved groups hold the very parameters of ours."""
    saved = [list(group["params"]) for group in tree["groups"]]
    if saved != names:
        differing = sorted({name for group in saved for name in group} ^ {name for group in names for name in group})
        what = f"parameters {', '.join(differing[:3])}" if differing else "the same parameters in other groups"
        raise DataError(f"optimiser state of {what}; the model or the optimiser's settings are others than this run's")


def _copied(value: Any) -> Any:
    return value.clone() if torch.is_tensor(value) else value

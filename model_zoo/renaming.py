"""timm's own conversion of the names under which an architecture's authors published it, watched: it must rename and not resample.

timm resamples position embeddings and patch projections on the way, where a file is of another image size than the model. Here that is
a fault: a checkpoint is loaded as it is, or not.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Tensors = dict[str, torch.Tensor]

_RESAMPLING = (functional.interpolate, functional.grid_sample)
_INTERPOLATED = ""  # stands among the names that a tensor was made of


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Converted:
    """What timm makes of a checkpoint's tensors."""

    tensors: Tensors
    """By timm's names."""
    left_out: tuple[str, ...]
    """Names in the checkpoint of which nothing has been used."""
    made_anew: tuple[str, ...]
    """timm's names of tensors of the model that are no longer the checkpoint's values: interpolated, or of unknown origin."""


def convert_names(given: Tensors, module: torch.nn.Module) -> Converted | None:
    """Returns timm's conversion of the checkpoint for that model; None where timm has none, or it knows other names than these."""
    convert = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return None
    lineage = _Lineage(given)
    try:
        with lineage:
            converted = convert(dict(given), module)
    except (KeyError, IndexError, RuntimeError, AttributeError, TypeError, ValueError, AssertionError):
        return None
    if not isinstance(converted, Mapping) or any(name in given and given[name].shape != converted[name].shape for name in converted):
        return None
    used = {name for tensor in converted.values() for name in lineage.origins(tensor)}
    return Converted(
        tensors=dict(converted),
        left_out=tuple(name for name in given if name not in used),
        made_anew=tuple(name for name in module.state_dict() if name in converted and lineage.is_new(converted[name])),
    )


class _Lineage(TorchFunctionMode):
    """Follows the named tensors through torch's functions: which of them a result was made of, and whether by interpolation."""

    def __init__(self, given: Tensors) -> None:
        super().__init__()
        self._origins: dict[int, set[str]] = {}
        self._kept: list[torch.Tensor] = []  # while a tensor lives, its id is no other's
        for name, tensor in given.items():
            self._add(tensor, {name})

    def origins(self, tensor: torch.Tensor) -> set[str]:
        """Returns the names that the tensor was made of."""
        return self._origins.get(id(tensor), set())

    def is_new(self, tensor: torch.Tensor) -> bool:
        """Returns whether the tensor is interpolated, or holds values of which nobody knows where they are from; zeros are no such."""
        origins = self.origins(tensor)
        return _INTERPOLATED in origins or (not origins and (tensor.is_meta or bool(tensor.any())))

    def _add(self, tensor: torch.Tensor, names: set[str]) -> None:
        self._kept.append(tensor)
        self._origins[id(tensor)] = self.origins(tensor) | names

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the function and hands the names of what goes in on to what comes out, and to a tensor that is written into."""
        result = func(*args, **(kwargs or {}))
        into = list(_tensors((args, kwargs)))
        names = set[str]().union(*(self.origins(tensor) for tensor in into))
        if func in _RESAMPLING:
            names.add(_INTERPOLATED)
        written = into[:1] if func is cast(Any, torch.Tensor).__setitem__ else []
        for tensor in (*_tensors(result), *written):
            self._add(tensor, names)
        return result


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)

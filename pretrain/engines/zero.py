"""Where ZeRO keeps what: the flat partitions of stages 1 to 3, read and written by parameter name.

Letters: W ranks, N elements of a parameter, P = ⌈N / W⌉.
"""

import abc
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from ...model_zoo.tensor_files import Stored
from .held import Held, whole
from .portable import Moments, Names

Model = Mapping[str, Stored]


class Stages(abc.ABC):
    """The optimiser state of one ZeRO optimiser; every rank holds a part of every parameter, or of some."""

    def __init__(self, zero: Any, parameters: Mapping[str, torch.Tensor], names: Names) -> None:
        self._zero, self._parameters, self._names = zero, parameters, names

    @abc.abstractmethod
    def moments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (name, state), with `Held` for tensors."""

    @abc.abstractmethod
    def take(self, moments: Moments) -> None:
        """Takes up states, with `Stored` for tensors; where a parameter has none, zeros."""

    @abc.abstractmethod
    def take_weights(self, model: Model) -> None:
        """Takes up weights into the copies that the optimiser steps."""

    def _state(self, flat: torch.Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self._zero.optimizer.state.get(flat) or {}
        return state

    def _fill(self, flat: torch.Tensor, members: list[str], moments: Moments) -> dict[str, torch.Tensor]:
        """Gives a flat partition the state of its members' kind, zeroed; returns the tensors that are to be filled, by key."""
        first = next((name for name in members if name in moments), None)
        state = self._zero.optimizer.state[flat]
        if first is None:
            state.clear()
            return {}
        fillable = {}
        for key, value in moments[first].items():
            if isinstance(value, Stored) and value.shape == tuple(self._parameters_shape(first)) and value.shape:
                fresh = state[key] if torch.is_tensor(state.get(key)) and state[key].shape == flat.shape else torch.empty_like(flat)
                state[key] = fresh.detach().zero_()
                fillable[key] = state[key]
            else:
                state[key] = value.whole() if isinstance(value, Stored) else value
        return fillable

    def _parameters_shape(self, name: str) -> torch.Size:
        return self._parameters[name].shape


class Partitions(Stages):
    """Stages 1 and 2: a group's parameters in one line, cut in W; a rank may hold the end of one parameter and the start of the next."""

    def moments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (name, state), of each tensor this rank's fragment."""
        for number, members in enumerate(self._names):
            flat = self._zero.single_partition_of_fp32_groups[number]
            state = self._state(flat)
            for name in members if state else []:
                yield name, {key: self._held(name, value, flat) for key, value in state.items()}

    def take(self, moments: Moments) -> None:
        """Takes up each fragment that this rank holds."""
        for number, members in enumerate(self._names):
            flat = self._zero.single_partition_of_fp32_groups[number]
            for key, target in self._fill(flat, members, moments).items():
                for name in members:
                    if name in moments:
                        self._fragment(name, target).fill(moments[name][key])

    def take_weights(self, model: Model) -> None:
        """Takes up the float32 fragments."""
        for number, members in enumerate(self._names):
            for name in members:
                self._fragment(name, self._zero.single_partition_of_fp32_groups[number].data).fill(model[name])

    def _held(self, name: str, value: Any, flat: torch.Tensor) -> Any:
        if not torch.is_tensor(value):
            return value
        return self._fragment(name, value) if value.shape == flat.shape else whole(value)

    def _fragment(self, name: str, line: torch.Tensor) -> Held:
        """Returns what a flat partition holds of a parameter, which may be nothing."""
        parameter: Any = self._parameters[name]
        mapping = parameter._hp_mapping
        if mapping is None:
            return Held(line[:0], tuple(parameter.shape), 0, "rank")
        ours, theirs = mapping.hp_fragment_address, mapping.lp_fragment_address
        return Held(line[ours.start : ours.start + ours.numel], tuple(parameter.shape), theirs.start, "rank")


class Slices(Stages):
    """Stage 3: each parameter is cut in W slices of P elements, the last padded; a rank's slices of a group lie in sub-groups, flat."""

    def moments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (name, state), of each tensor this rank's slice."""
        for name in (name for members in self._names for name in members):
            flat, start, numel = self._place(name)
            state = self._state(flat)
            if state:
                yield name, {key: self._held(name, value, flat, start, numel) for key, value in state.items()}

    def take(self, moments: Moments) -> None:
        """Takes up this rank's slice of everything."""
        by_flat: dict[int, list[str]] = {}
        for name in (name for members in self._names for name in members):
            by_flat.setdefault(self._group(name), []).append(name)
        for number, members in by_flat.items():
            for key, target in self._fill(self._zero.fp32_partitioned_groups_flat[number], members, moments).items():
                for name in members:
                    if name in moments:
                        _, start, numel = self._place(name)
                        self.place(name, target[start : start + numel]).fill(moments[name][key])

    def take_weights(self, model: Model) -> None:
        """Takes up the float32 slices, and the whole of each parameter that stage 3 keeps whole."""
        for name, parameter in self._parameters.items():
            kept: Any = parameter
            if parameter.requires_grad:
                flat, start, numel = self._place(name)
                self.place(name, flat.data[start : start + numel]).fill(model[name])
            if parameter.numel() == kept.ds_numel and kept.ds_numel:
                parameter.data.copy_(model[name].whole())

    def place(self, name: str, part: torch.Tensor) -> Held:
        """Returns the range that this rank's P elements are of a parameter, without their padding."""
        parameter: Any = self._parameters[name]
        start = min(dist.get_rank() * parameter.ds_tensor.ds_numel, parameter.ds_numel)
        return Held(part[: parameter.ds_numel - start], tuple(parameter.ds_shape), start, "rank")

    def whole(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """Returns all ranks' slices, joined, in the parameter's shape."""
        parameter: Any = self._parameters[name]
        ours = part.to(parameter.device).contiguous()
        joined = torch.empty(dist.get_world_size() * ours.numel(), dtype=ours.dtype, device=ours.device)
        dist.all_gather(list(joined.view(dist.get_world_size(), -1).unbind()), ours)
        return joined[: parameter.ds_numel].view(parameter.ds_shape)

    def _held(self, name: str, value: Any, flat: torch.Tensor, start: int, numel: int) -> Any:
        if not torch.is_tensor(value):
            return value
        return self.place(name, value[start : start + numel]) if value.shape == flat.shape else whole(value)

    def _group(self, name: str) -> int:
        number: int = self._zero.grad_position[self._zero.get_param_id(self._parameters[name])][0]
        return number

    def _place(self, name: str) -> tuple[torch.Tensor, int, int]:
        number, start, numel = self._zero.grad_position[self._zero.get_param_id(self._parameters[name])]
        return self._zero.fp32_partitioned_groups_flat[number], start, numel

    def _parameters_shape(self, name: str) -> torch.Size:
        parameter: Any = self._parameters[name]
        return torch.Size(parameter.ds_shape)

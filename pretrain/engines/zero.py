"""Where ZeRO keeps what: the flat partitions of stages 1 to 3, read and written by parameter name.

Letters: W ranks, N elements of a parameter, P = ⌈N / W⌉.
"""

import abc
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist

from .portable import Moments, Names

State = Mapping[str, torch.Tensor]


class Stages(abc.ABC):
    """The optimiser state of one ZeRO optimiser; every rank holds a part of every parameter, or of some."""

    def __init__(self, zero: Any, parameters: Mapping[str, torch.Tensor], names: Names) -> None:
        self._zero, self._parameters, self._names = zero, parameters, names

    @abc.abstractmethod
    def moments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (name, state with whole tensors)."""

    @abc.abstractmethod
    def take(self, moments: Moments) -> None:
        """Takes up whole states; where a parameter has none, zeros."""

    @abc.abstractmethod
    def take_weights(self, model: State) -> None:
        """Takes up whole weights into the copies that the optimiser steps."""

    def _state(self, flat: torch.Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self._zero.optimizer.state.get(flat) or {}
        return state

    def _fill(self, flat: torch.Tensor, members: list[str], moments: Moments) -> dict[str, torch.Tensor]:
        """Gives a flat partition the state of its members' kind, zeroed; returns the tensors that are to be filled, by key."""
        kept = [moments[name] for name in members if name in moments]
        state = self._zero.optimizer.state[flat]
        if not kept:
            state.clear()
            return {}
        shape = next(self._parameters_shape(name) for name in members if name in moments)
        fillable = {}
        for key, value in kept[0].items():
            if torch.is_tensor(value) and value.shape == shape and value.dim():
                fresh = state[key] if torch.is_tensor(state.get(key)) and state[key].shape == flat.shape else torch.empty_like(flat)
                state[key] = fresh.detach().zero_()
                fillable[key] = state[key]
            else:
                state[key] = value.clone() if torch.is_tensor(value) else value
        return fillable

    def _parameters_shape(self, name: str) -> torch.Size:
        return self._parameters[name].shape


class Partitions(Stages):
    """Stages 1 and 2: a group's parameters in one line, cut in W; a rank may hold the end of one parameter and the start of the next."""

    def moments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (name, state): each rank adds its fragment to zeros, as bytes, so that every bit survives."""
        for number, members in enumerate(self._names):
            flat = self._zero.single_partition_of_fp32_groups[number]
            state = self._state(flat)
            for name in members if state else []:
                yield name, {key: self._joined(name, value, flat) for key, value in state.items()}

    def take(self, moments: Moments) -> None:
        """Takes up each fragment that this rank holds."""
        for number, members in enumerate(self._names):
            flat = self._zero.single_partition_of_fp32_groups[number]
            for key, target in self._fill(flat, members, moments).items():
                for name in members:
                    if name in moments:
                        self._copy_fragment(name, moments[name][key], target)

    def take_weights(self, model: State) -> None:
        """Takes up the float32 fragments."""
        for number, members in enumerate(self._names):
            for name in members:
                self._copy_fragment(name, model[name], self._zero.single_partition_of_fp32_groups[number].data)

    def _joined(self, name: str, value: Any, flat: torch.Tensor) -> Any:
        if not (torch.is_tensor(value) and value.shape == flat.shape):
            return value
        parameter: Any = self._parameters[name]
        whole = torch.zeros(parameter.numel(), dtype=value.dtype, device=parameter.device)
        mapping = parameter._hp_mapping
        if mapping is not None:
            ours, theirs = mapping.hp_fragment_address, mapping.lp_fragment_address
            whole[theirs.start : theirs.start + theirs.numel] = value[ours.start : ours.start + ours.numel].to(whole.device)
        dist.all_reduce(whole.view(torch.uint8))
        return whole.view(parameter.shape)

    def _copy_fragment(self, name: str, whole: torch.Tensor, target: torch.Tensor) -> None:
        parameter: Any = self._parameters[name]
        mapping = parameter._hp_mapping
        if mapping is not None:
            ours, theirs = mapping.hp_fragment_address, mapping.lp_fragment_address
            line = whole.contiguous().view(-1)
            target[ours.start : ours.start + ours.numel].copy_(line[theirs.start : theirs.start + theirs.numel])


class Slices(Stages):
    """Stage 3: each parameter is cut in W slices of P elements, the last padded; a rank's slices of a group lie in sub-groups, flat."""

    def moments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (name, state), each tensor joined from all ranks' slices."""
        for name in (name for members in self._names for name in members):
            flat, start, numel = self._place(name)
            state = self._state(flat)
            if state:
                yield name, {key: self._joined(name, value, flat, start, numel) for key, value in state.items()}

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
                        target[start : start + numel].copy_(self.slice(name, moments[name][key]))

    def take_weights(self, model: State) -> None:
        """Takes up the float32 slices, and the whole of each parameter that stage 3 keeps whole."""
        for name, parameter in self._parameters.items():
            kept: Any = parameter
            if parameter.requires_grad:
                flat, start, numel = self._place(name)
                flat.data[start : start + numel].copy_(self.slice(name, model[name]))
            if parameter.numel() == kept.ds_numel and kept.ds_numel:
                parameter.data.copy_(model[name])

    def slice(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """Returns this rank's P elements of a whole tensor, padded with zeros."""
        parameter: Any = self._parameters[name]
        numel: int = parameter.ds_tensor.ds_numel
        start = dist.get_rank() * numel
        line = whole.contiguous().view(-1)[start : start + numel]
        return torch.nn.functional.pad(line, (0, numel - line.numel())) if line.numel() < numel else line

    def whole(self, name: str, part: torch.Tensor) -> torch.Tensor:
        """Returns all ranks' slices, joined, in the parameter's shape."""
        parameter: Any = self._parameters[name]
        ours = part.to(parameter.device).contiguous()
        joined = torch.empty(dist.get_world_size() * ours.numel(), dtype=ours.dtype, device=ours.device)
        dist.all_gather(list(joined.view(dist.get_world_size(), -1).unbind()), ours)
        return joined[: parameter.ds_numel].view(parameter.ds_shape)

    def _joined(self, name: str, value: Any, flat: torch.Tensor, start: int, numel: int) -> Any:
        if not (torch.is_tensor(value) and value.shape == flat.shape):
            return value
        return self.whole(name, value[start : start + numel])

    def _group(self, name: str) -> int:
        number: int = self._zero.grad_position[self._zero.get_param_id(self._parameters[name])][0]
        return number

    def _place(self, name: str) -> tuple[torch.Tensor, int, int]:
        number, start, numel = self._zero.grad_position[self._zero.get_param_id(self._parameters[name])]
        return self._zero.fp32_partitioned_groups_flat[number], start, numel

    def _parameters_shape(self, name: str) -> torch.Size:
        parameter: Any = self._parameters[name]
        return torch.Size(parameter.ds_shape)

"""Finding the backbone in a published checkpoint, whatever it is wrapped in and whatever its tensors' names begin with.

A wrapping is a chain of keys around the tensors (`state_dict`, `model`, `teacher`, …, at most two); a prefix is what training tools put
before every name (`module.`, `backbone.`, …, any number of them). Both are found by trial: the pair that gives every tensor of the
backbone, each of the right shape, is the one. There is no partial load.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch

from ..cli.errors import DataError, UserError
from .renaming import convert_names

WRAPPINGS = (
    "state_dict",
    "model",
    "model_state",
    "model_state_dict",
    "model_ema",
    "state_dict_ema",
    "ema",
    "teacher",
    "student",
    "module",
    "net",
)
# What wraps the whole model, and so stands before each of its tensors …
_WHOLE = ("module", "_orig_mod", "model", "net", "state_dict")
# … and what names the backbone among other parts (projectors, predictors, decoders), which are then left out.
_PARTS = ("backbone", "encoder", "base_encoder", "encoder_q", "teacher", "student", "visual", "trunk")
_HEADS = ("fc", "head", "classifier")
# Of a classifier: its linear layer, and the normalisation that some models put before it …
_CLASSIFIER = re.compile(r"((bn|norm)\.)?(weight|bias|running_mean|running_var|num_batches_tracked)")
# … and of a projector that self-supervised training puts in its place: a numbered sequence of layers, DINO's last layer.
_PROJECTOR = re.compile(
    r"((mlp|layers|proj|projection_head)\.)?\d+(\.\d+)?\.(weight|bias|running_mean|running_var|num_batches_tracked)"
    r"|last_layer\.(weight|bias|weight_g|weight_v|parametrizations\.weight\.original[01])"
)
_LISTED = 20

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Match:
    """The backbone's tensors, and what else the checkpoint held."""

    tensors: Tensors
    """Every tensor of the backbone by its name there, but for the counters of `absent_counters`."""
    head: Tensors
    """The classifier's tensors under the names that the model gives them; empty where there is none. A projector is none."""
    wrapping: str
    """Keys around the tensors, joined by dots; empty: none."""
    prefix: str
    """What stood before the names."""
    absent_counters: tuple[str, ...]
    """Batch norm's `num_batches_tracked`, integers that count batches and that evaluation does not use; files older than 2018 lack them."""
    left_out: tuple[str, ...]
    """Names of tensors of other parts."""
    was_renamed: bool = False
    """Whether timm's own conversion of that architecture's published names was needed."""

    @property
    def summary(self) -> str:
        """What was matched, in a line."""
        notes = [f"{len(self.tensors)} tensors of the backbone", f"{len(self.head)} of the head"]
        notes += [f"in {self.wrapping!r}"] if self.wrapping else []
        notes += [f"under {self.prefix!r}"] if self.prefix else []
        notes += ["renamed by timm"] if self.was_renamed else []
        notes += [f"{len(self.absent_counters)} batch counters absent, set to 0"] if self.absent_counters else []
        notes += [f"{len(self.left_out)} tensors of other parts left out"] if self.left_out else []
        return ", ".join(notes)


@dataclasses.dataclass(frozen=True, eq=False)
class _Attempt:
    match: Match
    faults: list[str]


def match_backbone(checkpoint: Any, module: torch.nn.Module, path: Path, part: str = "") -> Match:
    """Returns the tensors of `module`, a timm model without classifier, found in what `read_checkpoint` returned.

    Args:
        path: named in errors.
        part: the wrapping to take, where several hold a whole backbone (`teacher` and `student`); empty: there must be only one.

    Raises:
        DataError: when any tensor is missing, of another shape, or belongs to nothing that is known; lists the first 20.
        UserError: when `part` is not there, or needed.
    """
    states = list(_states(checkpoint))
    if not states:
        raise DataError(f"{path}: holds no named tensors")
    if part:
        states = [(wrapping, state) for wrapping, state in states if part in (wrapping, wrapping.rpartition(".")[2])]
        if not states:
            raise UserError(f"{path}: has no part {part!r}; its parts are {_named(checkpoint)}")
    wanted = module.state_dict()
    classifiers = _classifiers(module)
    attempts = [_attempt(wrapping, state, prefix, wanted, classifiers) for wrapping, state in states for prefix in _prefixes(state)]
    whole = _distinct([attempt.match for attempt in attempts if not attempt.faults])
    if not whole:
        tried = [_renamed(wrapping, state, prefix, module, classifiers) for wrapping, state in states for prefix in _prefixes(state)]
        renamed = [attempt for attempt in tried if attempt is not None]
        whole = _distinct([attempt.match for attempt in renamed if not attempt.faults])
        attempts += renamed
    if not whole:
        raise DataError(_report(path, min(attempts, key=lambda attempt: len(attempt.faults))))
    if len(whole) > 1:
        names = ", ".join(match.wrapping or match.prefix.rstrip(".") or "the top" for match in whole)
        raise UserError(f"{path}: holds {len(whole)} whole backbones ({names}); name the part to take: FILE#PART@NAME, or --part")
    return whole[0]


def load_match(module: torch.nn.Module, match: Match) -> None:
    """Puts the tensors into the module they were matched to; absent counters become 0."""
    counters = {name: torch.zeros((), dtype=torch.int64) for name in match.absent_counters}
    module.load_state_dict({**match.tensors, **counters})


def _states(tree: Any, wrapping: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensors]]:
    """Yields (wrapping, its tensors) of the top and of each known key, at most two deep."""
    if not isinstance(tree, Mapping):
        return
    tensors = {name: value for name, value in tree.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}
    if tensors:
        yield ".".join(wrapping), tensors
    if len(wrapping) < 2:
        for key in WRAPPINGS:
            yield from _states(tree.get(key), (*wrapping, key))


def _named(checkpoint: Any) -> str:
    return ", ".join(wrapping or "the top" for wrapping, _ in _states(checkpoint))


def _prefixes(state: Tensors) -> list[str]:
    """Returns every chain of known words that any name begins with, the empty one first."""
    found = {""}
    for name in state:
        words = name.split(".")
        length = 0
        while length < len(words) - 1 and words[length] in (*_WHOLE, *_PARTS):
            length += 1
            found.add(".".join(words[:length]) + ".")
    return sorted(found, key=len)


def _classifiers(module: torch.nn.Module) -> tuple[str, ...]:
    named = cast(Any, module).pretrained_cfg.get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _attempt(
    wrapping: str, state: Tensors, prefix: str, wanted: Mapping[str, torch.Tensor], classifiers: tuple[str, ...], *, renamed: bool = False
) -> _Attempt:
    given = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    outside = [name for name in state if not name.startswith(prefix)]
    heads = _head_names(classifiers, wanted)
    kinds = {name: _head_kind(name, heads) for name in given if name not in wanted}
    named = {name: _as_classifier(name, heads, classifiers) for name, kind in kinds.items() if kind == "classifier"}
    head = {known: given[name] for name, known in named.items()}
    absent = [name for name in wanted if name not in given]
    counters = tuple(name for name in absent if name.endswith("num_batches_tracked"))
    of_part = bool(set(prefix.split(".")) & set(_PARTS))
    faults = [f"missing: {name}" for name in absent if name not in counters]
    faults += [f"{name}: {fault}" for name in wanted if name in given and (fault := _differs(given[name], wanted[name]))]
    faults += [f"not part of the model: {name}" for name, kind in kinds.items() if not kind]
    faults += [f"a second classifier: {name}" for name, known in named.items() if head[known] is not given[name]]
    faults += [] if of_part else [f"not part of the model: {name}" for name in outside]
    tensors = {name: given[name] for name in wanted if name in given}
    match = Match(
        tensors=tensors,
        head=head,
        wrapping=wrapping,
        prefix=prefix,
        absent_counters=counters,
        left_out=(*outside, *(f"{prefix}{name}" for name, kind in kinds.items() if kind == "projector")),
        was_renamed=renamed,
    )
    return _Attempt(match, faults)


def _head_names(classifiers: tuple[str, ...], wanted: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    """Returns the beginnings of a head's names: the model's own classifier, and the usual ones that the backbone does not use itself."""
    around = (name.rpartition(".")[0] for name in classifiers)
    usual = (name for name in (*filter(None, around), *_HEADS) if not any(known.startswith(f"{name}.") for known in wanted))
    return tuple(f"{name}." for name in dict.fromkeys((*classifiers, *usual)))


def _head_kind(name: str, heads: tuple[str, ...]) -> str:
    """Returns "classifier" or "projector" for a tensor of one; empty: it is of neither, wherever its name begins."""
    rests = [name.removeprefix(head) for head in heads if name.startswith(head)]
    if any(_CLASSIFIER.fullmatch(rest) for rest in rests):
        return "classifier"
    return "projector" if any(_PROJECTOR.fullmatch(rest) for rest in rests) else ""


def _as_classifier(name: str, heads: tuple[str, ...], classifiers: tuple[str, ...]) -> str:
    """Returns the name that the model gives a tensor of its only classifier: `fc.weight` of a `head.fc` is `head.fc.weight`."""
    if len(classifiers) != 1 or name.startswith(f"{classifiers[0]}."):
        return name
    rest = name.removeprefix(next(head for head in heads if name.startswith(head)))
    return name if "." in rest else f"{classifiers[0]}.{rest}"


def _differs(given: torch.Tensor, wanted: torch.Tensor) -> str:
    if given.shape != wanted.shape:
        return f"shape {tuple(given.shape)}, the model has {tuple(wanted.shape)}"
    if given.is_quantized or given.is_floating_point() != wanted.is_floating_point():
        return f"holds {given.dtype}, the model {wanted.dtype}"
    return ""


def _renamed(wrapping: str, state: Tensors, prefix: str, module: torch.nn.Module, classifiers: tuple[str, ...]) -> _Attempt | None:
    """Tries timm's conversion of the names that the authors of that architecture published; one that resamples a tensor is a fault."""
    given = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if len(given) != len(state) or (converted := convert_names(given, module)) is None:
        return None
    attempt = _attempt(wrapping, converted.tensors, "", module.state_dict(), classifiers, renamed=True)
    faults = [f"{name}: of another image size in the file, and is not resampled here" for name in converted.made_anew]
    left_out = (*attempt.match.left_out, *(f"{prefix}{name}" for name in converted.left_out))
    return _Attempt(dataclasses.replace(attempt.match, left_out=left_out), faults + attempt.faults)


def _distinct(matches: list[Match]) -> list[Match]:
    """Returns the matches that are not the very same tensors as an earlier one."""
    found: dict[tuple[int, ...], Match] = {}
    for match in matches:
        found.setdefault(tuple(tensor.data_ptr() for tensor in match.tensors.values()), match)
    return list(found.values())


def _report(path: Path, best: _Attempt) -> str:
    where = [f"in {best.match.wrapping!r}" if best.match.wrapping else "", f"under {best.match.prefix!r}" if best.match.prefix else ""]
    tried = f" ({' '.join(filter(None, where))})" if any(where) else ""
    lines = best.faults[:_LISTED] + ([f"… and {len(best.faults) - _LISTED} more"] if len(best.faults) > _LISTED else [])
    return "\n  ".join([f"{path}{tried}: {len(best.faults)} tensors do not match, {len(best.match.tensors)} are there:", *lines])

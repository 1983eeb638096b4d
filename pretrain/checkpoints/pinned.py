"""The settings that a resumed run must share with the run it goes on from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...cli.config import dump, leaves
from ...cli.errors import UserError
from ..settings.pretrain import PretrainSettings

_PINNED = ("model", "objective", "optimizer")  # besides the parts of data and run that change the stream or the numbers
_PINNED_DATA = (
    *("image_size", "scale", "ratio", "flip", "interpolation", "mean", "std", "repeats", "bad_samples", "max_bad_samples"),
    *("augment", "rand_augment", "color_jitter", "hue_jitter", "erase", "erase_mode", "erase_area", "erase_aspect", "erase_count"),
)
_PINNED_RUN = ("duration", "seed", "precision", "ema_decay")  # the order of samples is pinned by its own record, plan.json


def pinned(config: PretrainSettings) -> dict[str, Any]:
    """Returns the settings that change the network, the stream or the numbers, as a tree."""
    tree = dump(config)
    kept = {name: tree[name] for name in _PINNED}
    del kept["model"]["checkpoint_activations"]  # the numbers stay the same
    kept["data"] = {name: tree["data"][name] for name in _PINNED_DATA}
    kept["run"] = {name: tree["run"][name] for name in _PINNED_RUN}
    kept["sampling"] = {"loss_beta": tree["sampling"]["loss_beta"]}
    kept["changes"] = {str(number): change for number, change in enumerate(tree["changes"])}
    return kept


def refuse_changes(then: Mapping[str, Any], config: PretrainSettings, folder: Path) -> None:
    """Raises UserError, which lists them, where `pinned` settings differ from those of the run in `folder`."""
    defaults = {leaf.key: leaf.default for leaf in leaves(PretrainSettings)}  # of settings that came after the checkpoint
    before, now = _flatten(then), _flatten(pinned(config))
    differing = [name for name in sorted(before | now) if before.get(name, defaults.get(name)) != now.get(name)]
    if differing:
        changes = [f"  {name}: was {before.get(name)!r}, is {now.get(name)!r}" for name in differing]
        remedy = "give the old values back, or another run.folder"
        raise UserError("\n".join([f"run.folder={folder}: holds a run with other settings; {remedy}", *changes]))


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat.update(_flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value})
    return flat

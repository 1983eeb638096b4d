"""The data of a run, opened and checked against its settings."""

import dataclasses

from ..cli.errors import UserError
from ..datasets.shards import Shards
from .config import PretrainSettings
from .duration import Lengths


@dataclasses.dataclass(frozen=True)
class Pool:
    """The opened data of a run."""

    train: Shards
    val: Shards | None
    lengths: Lengths


def open_pool(config: PretrainSettings) -> Pool:
    """Opens the shard folders and works out the run's length; no process group or device is touched.

    Raises:
        UserError: when the splits do not fit each other or the settings.
    """
    train = Shards.open(config.data.train)
    val = None if config.data.val is None else Shards.open(config.data.val)
    if len(train) == 0:
        raise UserError(f"data.train={config.data.train}: holds no sample")
    if not train.class_names:
        raise UserError(f"data.train={config.data.train}: has no classes; pack it with labels")
    if train.index.is_multi_label:
        raise UserError(f"data.train={config.data.train}: samples have several labels; softmax cross-entropy takes one each")
    if (train.labels < 0).any():
        raise UserError(f"data.train={config.data.train}: {(train.labels < 0).sum()} samples have no label")
    if val is not None and val.class_names != train.class_names:
        raise UserError(_class_difference(train, val, config))
    lengths = Lengths(len(train), config.run.global_batch_size)
    total = lengths.steps(config.run.duration)
    if total < 1:
        raise UserError(f"run.duration={config.run.duration}: comes to no step")
    return Pool(train, val, dataclasses.replace(lengths, total_steps=total))


def _class_difference(train: Shards, val: Shards, config: PretrainSettings) -> str:
    only = sorted(set(val.class_names) ^ set(train.class_names))
    what = f"not in both: {', '.join(only[:5])}" if only else "their order differs"
    counts = f"{len(val.class_names)} classes, data.train has {len(train.class_names)}"
    return f"data.val={config.data.val}: {counts} ({what}); pack both with one --classes"

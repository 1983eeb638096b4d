"""The data of a run, opened and checked against its settings."""

import dataclasses

from ..cli.errors import UserError
from ..datasets.joined import JoinedShards
from ..datasets.plan.sources import Source, parse_source, quotas
from ..datasets.plan.weighting import Weighting, drawn_samples
from ..datasets.remote.cache import ShardCache
from ..datasets.shards import Shards
from .config import DataSettings, PretrainSettings, SamplingSettings
from .duration import Lengths


@dataclasses.dataclass(frozen=True)
class Pool:
    """The opened data of a run, and how much of each training folder an epoch takes."""

    train: JoinedShards
    val: Shards | None
    weightings: tuple[Weighting, ...]
    """One per training folder."""
    quotas: tuple[int, ...]
    """Places of an epoch for each training folder; a single 0: the folder's own epoch."""
    lengths: Lengths


def open_pool(config: PretrainSettings) -> Pool:
    """Opens the shard folders and works out the run's length; no process group or device is touched.

    Raises:
        UserError: when the splits do not fit each other or the settings.
        DataError: when a folder is damaged, or a remote one cannot be read.
    """
    sources = [parse_source(text) for text in config.data.train]
    if not sources:
        raise UserError("data.train: names no folder")
    cache = open_cache(config.data)
    train = JoinedShards([_open_train(source, cache) for source in sources])
    val = None if config.data.val is None else open_location(config.data.val, cache)
    if val is not None and val.class_names != train.class_names:
        raise UserError(_class_difference(train, val, config))
    weightings = tuple(_weighting(config.sampling, number, sources) for number in range(len(sources)))
    own_epochs = [
        len(part) if weighting.is_even else drawn_samples(weighting, part.index, _what(number, config))
        for number, (part, weighting) in enumerate(zip(train.parts, weightings, strict=True))
    ]
    plain = len(sources) == 1 and sources[0].is_plain and (config.sampling.epoch is None or not config.sampling.is_even)
    places = (0,) if plain else tuple(quotas(sources, own_epochs, config.sampling.epoch))
    for part, share in zip(train.parts, places, strict=True):
        window = -(-config.data.window * share // sum(places)) if sum(places) else config.data.window
        part.check_cache(window + config.data.shards_ahead, "lower data.window or data.shards_ahead, or raise data.cache_bytes")
    epoch_samples = sum(places) or (-(-len(train) // 2) if config.sampling.coupled else own_epochs[0])
    lengths = Lengths(epoch_samples, config.run.global_batch_size)
    total = lengths.steps(config.run.duration)
    if total < 1:
        raise UserError(f"run.duration={config.run.duration}: comes to no step")
    return Pool(train, val, weightings, places, dataclasses.replace(lengths, total_steps=total))


def open_cache(data: DataSettings) -> ShardCache:
    """Returns the cache of remote shards that the settings name."""
    default = ShardCache()
    return ShardCache(data.cache or default.folder, int(data.cache_bytes), default.patience)


def open_location(location: str, cache: ShardCache) -> Shards:
    """Opens a shard folder, local or remote."""
    return Shards.open(location, cache=cache)


def _open_train(source: Source, cache: ShardCache) -> Shards:
    shards = open_location(source.location, cache)
    name = f"data.train={shards.folder}"
    if len(shards) == 0:
        raise UserError(f"{name}: holds no sample")
    if not shards.class_names:
        raise UserError(f"{name}: has no classes; pack it with labels")
    if shards.index.is_multi_label:
        raise UserError(f"{name}: samples have several labels; softmax cross-entropy takes one each")
    if shards.index.num_unlabelled:
        raise UserError(f"{name}: {shards.index.num_unlabelled} samples have no label")
    return shards


def _weighting(sampling: SamplingSettings, number: int, sources: list[Source]) -> Weighting:
    alone = len(sources) == 1 and sources[0].is_plain
    return Weighting(
        weights=sampling.weights[number] if sampling.weights else None,
        probabilities=sampling.weights_are == "probabilities",
        balance=sampling.balance,
        max_repeats=sampling.max_repeats,
        epoch_samples=sampling.epoch if alone and not sampling.is_even else None,
        coupled=sampling.coupled,
    )


def _what(number: int, config: PretrainSettings) -> str:
    if config.sampling.weights:
        return "sampling.weights"
    return f"sampling.balance={config.sampling.balance:g}: {parse_source(config.data.train[number]).shown}"


def _class_difference(train: JoinedShards, val: Shards, config: PretrainSettings) -> str:
    only = sorted(set(val.class_names) ^ set(train.class_names))
    what = f"not in both: {', '.join(only[:5])}" if only else "their order differs"
    counts = f"{len(val.class_names)} classes, data.train has {len(train.class_names)}"
    return f"data.val={val.folder}: {counts} ({what}); pack both with one --classes"

"""The data of a run, opened and checked against its settings."""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from ..cli.errors import UserError
from ..datasets.joined import JoinedShards
from ..datasets.plan.mixture import BLOCK
from ..datasets.plan.sources import Source, parse_source, quotas
from ..datasets.plan.weighting import OF_SNAPSHOT, Weighting, paired_samples
from ..datasets.remote.cache import ShardCache
from ..datasets.shards import Shards
from .columns import samples_an_epoch
from .grown import Grown, open_grown
from .settings.data import DataSettings, SamplingSettings
from .settings.duration import Lengths
from .settings.pretrain import PretrainSettings


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
    coupled: bool = False
    """Whether epochs come in pairs."""
    grown: Grown | None = None
    """The snapshot that folders and weightings are of."""


def open_pool(config: PretrainSettings) -> Pool:
    """Opens the shard folders and works out the run's length; no process group or device is touched.

    Raises:
        UserError: when the splits do not fit each other or the settings.
        DataError: when a folder is damaged, or a remote one cannot be read.
    """
    grown = _open_grown(config)
    cache = open_cache(config.data)
    sources, weightings = _sources(config, grown)
    train = JoinedShards([_open_train(source, cache, "data.train" if grown is None else "data.snapshot") for source in sources])
    if grown is not None:
        grown.check_data(train.parts)
    val = None if config.data.val is None else open_location(config.data.val, cache)
    if val is not None and val.class_names != train.class_names:
        raise UserError(_class_difference(train, val))
    own_epochs = [_own_epochs(config, number, *of) for number, of in enumerate(zip(weightings, train.parts, strict=True))]
    coupled = config.sampling.coupled if grown is None else grown.snapshot.coupled
    plain = len(sources) == 1 and sources[0].is_plain and (config.sampling.epoch is None or not config.sampling.is_even)
    means = [-(-sum(lengths) // len(lengths)) for lengths in own_epochs]
    places = (0,) if plain else tuple(quotas(sources, means, config.sampling.epoch))
    _check_cache(config, train, cache, own_epochs, places)
    epoch_samples = sum(places) or means[0]
    lengths = Lengths(epoch_samples, config.run.global_batch_size)
    total = lengths.steps(config.run.duration)
    if total < 1:
        raise UserError(f"run.duration={config.run.duration}: comes to no step")
    return Pool(train, val, weightings, places, dataclasses.replace(lengths, total_steps=total), coupled, grown)


def _open_grown(config: PretrainSettings) -> Grown | None:
    if config.data.snapshot is None:
        return None
    grown = open_grown(config.data.snapshot, config.run.folder, replan=config.sampling.replan)
    if grown.snapshot.coupled and config.sampling.loss_beta:
        why = f"snapshot {grown.snapshot.number} is of coupled epochs, which see every sample once a pair, so there is nothing to correct"
        raise UserError(f"sampling.loss_beta={config.sampling.loss_beta:g}: {why}; leave it out")
    return grown


def _sources(config: PretrainSettings, grown: Grown | None) -> tuple[list[Source], tuple[Weighting, ...]]:
    """Returns the training folders with their amounts, and how often the samples of each are taken."""
    if grown is not None:
        return [Source(folder.location) for folder in grown.snapshot.training], grown.weightings()
    sources = [parse_source(text) for text in config.data.train]
    return sources, tuple(_weighting(config.sampling, number, sources) for number in range(len(sources)))


def _own_epochs(config: PretrainSettings, number: int, weighting: Weighting, part: Shards) -> tuple[int, ...]:
    """Returns the samples of an epoch of one folder by itself, of coupled ones of the first and the second; errors as `compile_rates`."""
    if config.data.snapshot is not None and weighting.is_even:
        return (0,)  # it is passed over
    what = _what(number, config)
    drawn = samples_an_epoch(config.run.folder, weighting, part, what)
    return (drawn, paired_samples(weighting, len(part), what) - drawn) if weighting.coupled else (drawn,)


def _check_cache(
    config: PretrainSettings, train: JoinedShards, cache: ShardCache, own_epochs: Sequence[tuple[int, ...]], places: Sequence[int]
) -> None:
    """Checks that the cache holds what is read at a time of all folders, which share it: see docs/streaming.md."""
    total, sizes = sum(places), list[int]()
    for part, lengths, place in zip(train.parts, own_epochs, places, strict=True):
        if part.cache is not None and (place or not total):
            count = shards_read(config, part, min(filter(None, lengths)), Fraction(place, total) if total else None)
            sizes += sorted((entry.size_bytes for entry in part.manifest.shards), reverse=True)[:count]
    if sizes:
        settings = "data.window, data.shards_ahead, data.workers, data.prefetch or run.global_batch_size"
        cache.check_holds(sizes, f"the {len(sizes)} largest shards of data.train at once (or lower {settings})")


def shards_read(config: PretrainSettings, part: Shards, own_epoch: int, share: Fraction | None) -> int:
    """Returns how many shards of a folder are in use at a time within an epoch: with fewer in the cache, some are fetched again and again.

    They are those of the window, those by which the reading moves on from the oldest batch under way to the newest, and those ahead.

    Args:
        own_epoch: samples of the folder's own epoch.
        share: of the places of an epoch, which are mixed in blocks; None: the folder is alone and its places are not mixed.
    """
    data = config.data
    places = (data.workers * data.prefetch + 1) * (config.run.global_batch_size // data.repeats)
    if share is None:
        share = Fraction(1)
    else:
        places += 2 * BLOCK  # a batch reads of the whole blocks at both its ends
    spread = math.ceil(places * share * Fraction(int(np.count_nonzero(part.shard_counts)), own_epoch))
    return math.ceil(data.window * share) + data.shards_ahead + spread


def open_cache(data: DataSettings) -> ShardCache:
    """Returns the cache of remote shards that the settings name."""
    default = ShardCache()
    return ShardCache(data.cache or default.folder, int(data.cache_bytes), default.patience)


def open_location(location: str, cache: ShardCache) -> Shards:
    """Opens a shard folder, local or remote."""
    return Shards.open(location, cache=cache)


def _open_train(source: Source, cache: ShardCache, setting: str) -> Shards:
    shards = open_location(source.location, cache)
    name = f"{setting}={shards.folder}"
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
    if config.data.snapshot is not None:
        return OF_SNAPSHOT
    if config.sampling.weights:
        return "sampling.weights"
    return f"sampling.balance={config.sampling.balance:g}: {parse_source(config.data.train[number]).shown}"


def _class_difference(train: JoinedShards, val: Shards) -> str:
    only = sorted(set(val.class_names) ^ set(train.class_names))
    what = f"not in both: {', '.join(only[:5])}" if only else "their order differs"
    counts = f"{len(val.class_names)} classes, data.train has {len(train.class_names)}"
    return f"data.val={val.folder}: {counts} ({what}); pack both with one --classes"

"""Steps of `bamboo grow` for the tests: features of shard folders, arguments, and what a state holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bamboo.datasets.feature_folder import write_features
from bamboo.datasets.shards import Shards
from tests.datasets.growth.grown import IDENTITY

Grow = Callable[..., tuple[int, str, str]]


def put_features(out: Path, features: np.ndarray, shards: Path, **identity: Any) -> None:
    """Writes features as those of a shard folder."""
    opened = Shards.open(shards)
    made_from = {**IDENTITY, "data": opened.data_hash, **identity}
    write_features(out, features, np.asarray(opened.labels, np.int64), opened.class_names, made_from, {})


def content(state: Path) -> dict[str, bytes]:
    """Returns every file of a state but locks."""
    return {str(path.relative_to(state)): path.read_bytes() for path in sorted(state.rglob("*")) if path.is_file() and path.name != ".lock"}


def step(arrivals: Path, name: str, *modalities: str) -> list[object]:
    """Returns the arguments of a step over one of the folders."""
    return ["--data", arrivals / name, *(word for kind in modalities or ("image",) for word in (f"--{kind}", arrivals / f"{name}-{kind}"))]


def cosines_of_all(features: np.ndarray) -> np.ndarray:
    """Returns float64[N, N] cosines, those with itself -inf."""
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    near: np.ndarray = unit @ unit.T
    np.fill_diagonal(near, -np.inf)
    return near

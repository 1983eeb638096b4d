"""Features to grow over: synthetic clusters (S), and patches of real photographs (R); width 256, unit length.

Letters: N samples, D width, Z directions within a cluster.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

WIDTH = 256
PATCH = 16
TOPICS, CLUSTERS, DIRECTIONS = 200, 4000, 8
DUPLICATES = 0.08
"""Share of samples that are near-duplicates of an earlier one."""

Floats = npt.NDArray[np.float32]

_TILE = 20_000
_SPARE = 1.15  # patches cut for one that is wanted, since flat ones are thrown away
_FLAT = 50.0  # least norm of a patch, its mean removed, in grey levels


def synthetic(count: int, seed: int = 0) -> Floats:
    """Returns float32[count, 256]: 4,000 clusters of uneven size (Zipf) in 200 topics, each spread along 8 directions of its own.

    There is noise in all directions, and one that all share; 8 % are near-duplicates of an earlier sample, anywhere before it.
    So the first n rows of a greater pool are a pool of n.
    """
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Floats:
        return random.standard_normal(shape, dtype=np.float32)

    topics = normal(TOPICS, WIDTH)
    centres = topics[random.integers(0, TOPICS, CLUSTERS)] + np.float32(0.8) * normal(CLUSTERS, WIDTH)
    spread_CZD = np.float32(0.35) * normal(CLUSTERS, DIRECTIONS, WIDTH)
    share = 1 / np.arange(1, CLUSTERS + 1) ** 0.8
    shared = np.float32(0.5) * normal(WIDTH)
    features = np.empty((count, WIDTH), np.float32)
    for start in range(0, count, _TILE):
        size = min(_TILE, count - start)
        cluster = np.sort(random.choice(CLUSTERS, size, p=share / share.sum()))
        tile = centres[cluster] + np.float32(0.25) * normal(size, WIDTH) + shared
        for number, stretch in zip(*np.unique(cluster, return_index=True), strict=True):
            stop = stretch + int((cluster == number).sum())
            tile[stretch:stop] += normal(stop - stretch, DIRECTIONS) @ spread_CZD[number]
        features[start : start + size] = tile[random.permutation(size)]
    copies = np.flatnonzero(random.random(count) < DUPLICATES)[1:]
    features[copies] = features[(random.random(len(copies)) * copies).astype(np.int64)] + np.float32(0.05) * normal(len(copies), WIDTH)
    return _unit(features)


def patches(folder: Path, count: int, seed: int = 0) -> Floats:
    """Returns float32[count, 256]: grey patches of 16 × 16 of the JPEGs below a folder, mean removed, in random order.

    Flat patches are left out.
    """
    random = np.random.default_rng(seed)
    paths = sorted(folder.rglob("*.JPEG"))
    each = int(np.ceil(_SPARE * count / len(paths)))
    cut = list[npt.NDArray[np.uint8]]()
    for path in paths:
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"))
        places = zip(random.integers(0, grey.shape[0] - PATCH + 1, each), random.integers(0, grey.shape[1] - PATCH + 1, each), strict=True)
        cut += [grey[y : y + PATCH, x : x + PATCH].ravel() for y, x in places]
    features = np.stack(cut).astype(np.float32)
    features -= features.mean(1, keepdims=True)
    features = features[np.linalg.norm(features, axis=1) > _FLAT]
    if len(features) < count:
        raise SystemExit(f"{folder}: {len(paths)} JPEGs give {len(features):,} patches that are not flat, {count:,} are wanted")
    return _unit(features[random.permutation(len(features))[:count]])


def _unit(features_ND: Floats) -> Floats:
    for start in range(0, len(features_ND), _TILE):
        tile = features_ND[start : start + _TILE]
        tile /= np.linalg.norm(tile, axis=1, keepdims=True)
    return np.ascontiguousarray(features_ND)

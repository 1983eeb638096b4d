"""Small features of several classes that overlap, for any protocol."""

import numpy as np

from bamboo.linear_probe.protocols.outcome import Rows


def sides(num_train: int = 600, num_test: int = 300, *, spread: float = 0.35, seed: int = 0) -> tuple[Rows, Rows]:
    """Returns train and test rows of 5 Gaussian classes, float16[N, 16] away from the origin."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(5, 16)) * spread
    labels = random.integers(0, 5, num_train + num_test)
    features = (centres[labels] + random.normal(size=(len(labels), 16)) + 3.0).astype(np.float16)
    return Rows(features[:num_train], labels[:num_train]), Rows(features[num_train:], labels[num_train:])

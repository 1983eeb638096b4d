"""What the table of facts says of each set."""

import pytest

from bamboo.datasets.downstream.facts import SETS

Facts = tuple[int | None, tuple[int, int] | None, str, dict[str, int], int | None]

OFFICIAL: dict[str, Facts] = {  # classes, (train, test), metric, images of every class where all have as many, validation part
    "cifar10": (10, (50_000, 10_000), "top1", {"train": 5_000, "test": 1_000}, None),
    "cifar100": (100, (50_000, 10_000), "top1", {"train": 500, "test": 100}, None),
    "food": (101, (75_750, 25_250), "top1", {"train": 750, "test": 250}, None),
    "pet": (37, (3_680, 3_669), "mean_per_class", {}, None),
    "flower": (102, (2_040, 6_149), "mean_per_class", {"train": 20}, 1_020),
    "sun": (397, (19_850, 19_850), "top1", {"train": 50, "test": 50}, None),
    "sun-seeded": (397, (19_850, 19_850), "top1", {"train": 50, "test": 50}, None),
    "car": (196, (8_144, 8_041), "top1", {}, None),
    "dtd": (47, (3_760, 1_880), "top1", {"train": 80, "test": 40}, 1_880),
    "caltech": (102, (3_060, 6_084), "mean_per_class", {"train": 30}, None),
    "aircraft": (100, (6_667, 3_333), "mean_per_class", {}, 3_333),
    "imagenet": (1_000, (1_281_167, 50_000), "top1", {"test": 50}, None),
    "folder": (None, None, "top1", {}, None),
    "shards": (None, None, "top1", {}, None),
}


@pytest.mark.parametrize("name", sorted({*OFFICIAL, *SETS}))
def test_the_official_numbers(name: str) -> None:
    """Classes, images, metric, images per class and validation part, against the sets' publications, written out here once more."""
    described = SETS[name]
    counts = None if described.counts is None else (described.counts["train"], described.counts["test"])
    found = (described.num_classes, counts, described.metric, dict(described.class_counts), described.validation)
    assert found == OFFICIAL[name]


def test_the_classes_of_cifar10() -> None:
    """The names in the order of the archive's batches.meta: the class ids of lists and folders depend on it."""
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    assert SETS["cifar10"].class_names == tuple(names.split())
    assert [name for name, described in SETS.items() if described.class_names is not None] == ["cifar10"]

"""What is known of each downstream set before it is opened: official counts, metric, other folder names, where it can be had.

Training splits are what a probe is trained on: official training and validation parts together, where a set has both.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

from ...cli.config import nearest
from ...cli.errors import UserError

SplitName = Literal["train", "test"]
Metric = Literal["top1", "mean_per_class"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownstreamSet:
    """Facts of one set; None stands for "whatever is there"."""

    name: str
    title: str
    metric: Metric = "top1"
    """The one that is reported by convention."""

    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    """Official names in their order, where readers need them."""

    counts: Mapping[str, int] | None = None
    """Images per split."""

    class_counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Images per class, for the splits in which all classes have the same; of a drawn split, how many are drawn."""

    validation: int | None = None
    """Images of the official validation part, which are among those of the training split."""

    folders: tuple[str, ...] = ()
    """Names that its folder goes by below a data root, beside `name`."""

    source: str
    """Where it can be had, in a few words."""

    recipe: str
    """What to do when it is not found."""

    @property
    def own_kind(self) -> str | None:
        """ "folder" or "shards" for a set of one's own, else None."""
        kind = self.name.partition(":")[0]
        return kind if kind in OWN_KINDS else None


OWN_KINDS = ("folder", "shards")


def describe(name: str) -> DownstreamSet:
    """Returns the entry of `SETS`, or that of a set of one's own, `folder:NAME` or `shards:NAME`.

    Raises:
        UserError: for an unknown name, naming the nearest, and for a NAME that is no plain folder name.
    """
    kind, colon, own = name.partition(":")
    if colon and own and kind in OWN_KINDS:
        if "/" in own or own in (".", ".."):
            raise UserError(f"dataset={name}: {own!r} is not the name of a folder; give {kind}:NAME, which lies in DATA_ROOT/NAME")
        recipe = f"it lies in DIR/{own}, and data_root is DIR or DIR/{own}: {SETS[kind].recipe.replace('DIR', f'DIR/{own}')}"
        return dataclasses.replace(SETS[kind], name=name, title=own, folders=(own,), recipe=recipe)
    if name not in SETS:
        raise UserError(f"dataset={name}: no such set{nearest(name, list(SETS))}")
    return SETS[name]


def _fetch(name: str) -> str:
    return f"fetch it with: bamboo sets download {name} DIR, and give DIR"


_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SLOW_HOST = "torchvision; its host gives 50 to 85 kB/s since June 2026 (about an hour)"
_SUN_IMAGES = "SUN397.tar.gz from a copy (its hosts are down since mid-2025), so that DIR/SUN397/a/abbey/sun_….jpg is there"

_ENTRIES = (
    DownstreamSet(
        name="cifar10",
        title="CIFAR-10",
        num_classes=10,
        class_names=_CIFAR10,
        counts={"train": 50_000, "test": 10_000},
        class_counts={"train": 5_000, "test": 1_000},
        source=_SLOW_HOST,
        recipe="extract the archive there (tar xzf cifar-10-python.tar.gz -C DIR) and give data_root=DIR",
    ),
    DownstreamSet(
        name="cifar100",
        title="CIFAR-100",
        num_classes=100,
        counts={"train": 50_000, "test": 10_000},
        class_counts={"train": 500, "test": 100},
        source=_SLOW_HOST,
        recipe="extract the archive there (tar xzf cifar-100-python.tar.gz -C DIR) and give data_root=DIR",
    ),
    DownstreamSet(
        name="food",
        title="Food-101",
        num_classes=101,
        counts={"train": 75_750, "test": 25_250},
        class_counts={"train": 750, "test": 250},
        folders=("food-101", "food101"),
        source="torchvision, 5 GB",
        recipe=_fetch("food"),
    ),
    DownstreamSet(
        name="pet",
        title="Oxford-IIIT Pets",
        metric="mean_per_class",
        num_classes=37,
        counts={"train": 3_680, "test": 3_669},
        folders=("oxford-iiit-pet", "pets"),
        source="torchvision, 0.8 GB",
        recipe=_fetch("pet"),
    ),
    DownstreamSet(
        name="flower",
        title="Oxford Flowers-102",
        metric="mean_per_class",
        num_classes=102,
        counts={"train": 2_040, "test": 6_149},
        class_counts={"train": 20},
        validation=1_020,
        folders=("flowers", "flowers-102", "flowers102"),
        source="torchvision, 0.3 GB",
        recipe=_fetch("flower"),
    ),
    DownstreamSet(
        name="sun",
        title="SUN397, partition 1",
        num_classes=397,
        counts={"train": 19_850, "test": 19_850},
        class_counts={"train": 50, "test": 50},
        folders=("SUN397", "sun397"),
        source="dead since mid-2025",
        recipe=f"extract {_SUN_IMAGES}, and put Training_01.txt and Testing_01.txt of Partitions.zip beside SUN397; "
        "without those two files use the set sun-seeded, which is another split",
    ),
    DownstreamSet(
        name="sun-seeded",
        title="SUN397, 50 + 50 per class drawn here",
        num_classes=397,
        counts={"train": 19_850, "test": 19_850},
        class_counts={"train": 50, "test": 50},
        folders=("SUN397", "sun397"),
        source="dead since mid-2025",
        recipe=f"extract {_SUN_IMAGES}",
    ),
    DownstreamSet(
        name="car",
        title="Stanford Cars",
        num_classes=196,
        counts={"train": 8_144, "test": 8_041},
        folders=("stanfordcar", "stanford_cars", "cars"),
        source="dead since April 2023",
        recipe="its source is gone since April 2023; from a copy of the archives put cars_train/, cars_test/, devkit/ and "
        "cars_test_annos_withlabels.mat into DIR/stanford_cars and give data_root=DIR",
    ),
    DownstreamSet(
        name="dtd",
        title="Describable Textures, partition 1",
        num_classes=47,
        counts={"train": 3_760, "test": 1_880},
        class_counts={"train": 80, "test": 40},
        validation=1_880,
        source="torchvision, 0.6 GB",
        recipe=_fetch("dtd"),
    ),
    DownstreamSet(
        name="caltech",
        title="Caltech-101 with background, 30 per class drawn here",
        metric="mean_per_class",
        num_classes=102,
        # The archive holds 9,144 images: 3,060 and 6,084. The 6,085 test images of other tables count its stray file `tmp`.
        counts={"train": 3_060, "test": 6_084},
        class_counts={"train": 30},
        folders=("caltech101", "caltech-101"),
        source="torchvision, 0.1 GB",
        recipe=_fetch("caltech"),
    ),
    DownstreamSet(
        name="aircraft",
        title="FGVC-Aircraft, variants",
        metric="mean_per_class",
        num_classes=100,
        counts={"train": 6_667, "test": 3_333},
        validation=3_333,
        folders=("fgvc-aircraft", "fgvc-aircraft-2013b"),
        source="torchvision, 2.6 GB",
        recipe=_fetch("aircraft"),
    ),
    DownstreamSet(
        name="imagenet",
        title="ImageNet-1k, tested on its validation images",
        num_classes=1_000,
        counts={"train": 1_281_167, "test": 50_000},
        class_counts={"test": 50},
        folders=("ILSVRC2012", "imagenet-1k", "ILSVRC/Data/CLS-LOC"),
        source="by registration",
        recipe="register at image-net.org for ILSVRC2012_img_train.tar and _val.tar, extract them to DIR/train/WNID/*.JPEG and "
        "DIR/val/WNID/*.JPEG, and give data_root=DIR",
    ),
    DownstreamSet(
        name="folder",
        title="class folders or LMDBs of your own",
        source="your own",
        recipe="DIR must hold train/CLASS/… and test/CLASS/… (or val/CLASS/…), or train.lmdb and test.lmdb",
    ),
    DownstreamSet(
        name="shards",
        title="shards of your own",
        source="your own",
        recipe="make the folders with: bamboo shards pack SRC --out DIR/train, and the same for DIR/test",
    ),
)

SETS: dict[str, DownstreamSet] = {entry.name: entry for entry in _ENTRIES}

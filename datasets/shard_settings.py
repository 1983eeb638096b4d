"""The settings of `bamboo shards pack|index|verify|show|bench`; this module is light, so that help costs no import of torch."""

from pathlib import Path
from typing import Annotated, Literal

import pydantic

from ..cli.config import settings
from .sources import Format

Count = Annotated[int, pydantic.Field(ge=1)]


@settings
class PackSettings:
    """Pack a pool of images into WebDataset shards with an index, or into an LMDB.

    SRC is a folder of class folders (nested: the class is the relative path), a tar or zip of one, a list file of `path label`
    lines, an ML-Images list of `name<TAB>class:confidence …` lines, an LMDB of encoded images (its keys name them), or a shard
    folder. A killed pack goes on when the same command runs again.

      bamboo shards pack photos/ --out shards/ --resize 256
      bamboo shards pack tiny-imagenet-20k.tar.gz --subdir tiny-imagenet-20k/train --out shards/
      bamboo shards pack shards/ --to lmdb --out train.lmdb
    """

    src: Path
    """Folder of class folders, tar or zip of one, list file, ML-Images list, LMDB, or shard folder."""
    out: Path
    """Folder for shards, index.arrow and dataset.json; or for data.mdb and annotations.json."""
    to: Literal["shards", "lmdb"] = "shards"
    """What to write: shards, or one LMDB in the order of its keys (meanwhile as large again in OUT)."""
    format: Format = "auto"
    """What SRC is: auto, folder, archive, list, ml-images, lmdb or shards."""
    subdir: str | None = None
    """Take only this folder of SRC (folders, archives and LMDBs)."""
    annotations: Path | None = None
    """InfoGrowth's JSON list for an LMDB: the images to take, with their captions and gains."""
    root: Path | None = None
    """Folder that a list's paths are relative to; by default the list's own."""
    classes: Path | None = None
    """Class names: one a line, `key<TAB>name`, or ML-Images' dictionary."""
    name: str = "shard"
    """Shards are called NAME-000000.tar, …"""
    samples_per_shard: Count | None = None
    """Images per shard; 10000 unless --bytes-per-shard is given."""
    bytes_per_shard: Count | None = None
    """Source bytes per shard, instead."""
    shuffle: int | Literal["none"] = 0
    """Seed of the pool's order; `none` keeps the source's own."""
    resize: Count | None = None
    """Shrink images to this short side; never enlarges."""
    quality: Annotated[int, pydantic.Field(ge=1, le=100)] | None = None
    """JPEG quality of resized images; 90 by default."""
    unreadable: Literal["fail", "skip"] = "fail"
    """What an unreadable image does: end the pack, or be listed in skipped.tsv."""
    processes: Count | None = None
    """Worker processes; by default one per CPU core."""
    overwrite: bool = False
    """Replace what OUT holds."""
    dry_run: bool = False
    """Only say what would be packed."""

    def problems(self) -> list[str]:
        """Returns what is wrong across settings."""
        found = []
        if self.samples_per_shard is not None and self.bytes_per_shard is not None:
            found.append("samples_per_shard and bytes_per_shard are both given; give one")
        if self.quality is not None and self.resize is None:
            found.append(f"quality={self.quality}: only resized images are encoded again; give --resize too, or leave it out")
        if not self.name or "/" in self.name or self.name.startswith("."):
            found.append(f"name={self.name!r}: must be a file name prefix without `/`, not starting with a dot")
        if self.to == "lmdb":
            given: dict[str, int | str | None] = {"samples_per_shard": self.samples_per_shard, "bytes_per_shard": self.bytes_per_shard}
            given |= {"shuffle": None if self.shuffle in (0, "none") else self.shuffle, "name": None if self.name == "shard" else self.name}
            reason = "an LMDB has no shards and the order of its keys; leave it out"
            found += [f"{name}={value}: {reason}" for name, value in given.items() if value is not None]
            if self.src.resolve() == (self.out / "data.mdb").resolve():
                found.append(f"out={self.out}: is where SRC lies; use another folder")
        if self.src.is_dir() and self.out.resolve().is_relative_to(self.src.resolve()):
            found.append(f"out={self.out}: lies inside SRC={self.src}, so the next run would read it; use another folder")
        return found


@settings
class IndexSettings:
    """Write index.arrow and dataset.json beside WebDataset tars that others made; the tars are only read.

    Labels come from `.cls` members (an integer), else from `.json` members: "labels" with "confidences" as Bamboo writes them,
    or the field named by --json-label. With --classes a label may also be a class name.

      bamboo shards index imagenet-shards/ --classes names.txt
    """

    folder: Path
    """Folder of WebDataset tars."""
    classes: Path | None = None
    """Class names: one a line, `key<TAB>name`, or ML-Images' dictionary."""
    json_label: str = "label"
    """Field of `.json` members that holds the label, where there is no "labels"."""
    unreadable: Literal["fail", "skip"] = "fail"
    """What a sample without a readable image does: end the command, or stay out of the index."""
    processes: Count | None = None
    """Worker processes; by default one per CPU core."""
    overwrite: bool = False
    """Replace the index that FOLDER has."""


@settings
class VerifySettings:
    """Check a shard folder: every size, hash and tar, the index against the tars, dataset.json against both.

    Each defect is listed by file; the exit code is 0 without and 1 with any. `--decode` also decodes every image.

      bamboo shards verify shards/
    """

    folder: Path
    """Shard folder."""
    decode: bool = False
    """Also decode every image and compare its size with the index."""
    processes: Count | None = None
    """Worker processes; by default one per CPU core."""


@settings
class ShowSettings:
    """Show what a shard folder holds: counts, class histogram, image sizes, labels per image, a contact sheet.

    bamboo shards show shards/ --contact-sheet sheet.png
    """

    folder: str
    """Shard folder, local or remote (s3://, https://, gs://)."""
    bars: Annotated[int, pydantic.Field(ge=0)] = 10
    """Classes shown at the top and at the bottom of the histogram."""
    json: bool = False
    """Print JSON, every class included, instead of text."""
    contact_sheet: Path | None = None
    """PNG to write with a sample of the images."""
    images: Count = 64
    """Images on the contact sheet."""
    columns: Count = 8
    """Columns of the contact sheet."""
    seed: int = 0
    """Which images the contact sheet shows."""
    views: Annotated[int, pydantic.Field(ge=0, le=64)] = 0
    """Training views beside each image of the contact sheet, which then has a row per image; 0: the images alone."""
    augment: Literal["none", "rand", "three"] = "none"
    """What the views are changed by, as data.augment of bamboo pretrain."""
    rand_augment: str = "rand-m9-n2-mstd0.5-inc1"
    """augment=rand: timm's spelling of magnitude m, number of ops n, their probability p, noise mstd, cut mmax, increasing set inc."""
    color_jitter: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    """Strength of the views' colour jitter; none: 0.3 with augment=three, else 0."""
    erase: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.0
    """Probability of random erasing in the views."""

    def problems(self) -> list[str]:
        """Returns what does not fit together."""
        found = []
        for name, off in (("augment", "none"), ("color_jitter", None), ("erase", 0.0)):
            if not self.views and getattr(self, name) != off:
                found.append(f"{name}={getattr(self, name)}: changes views; give views too, or leave it out")
        if self.views and self.contact_sheet is None:
            found.append(f"views={self.views}: are shown on the contact sheet; give contact_sheet too")
        if self.views and self.columns != 8:
            found.append(f"columns={self.columns}: with views={self.views} the sheet has a row per image; leave columns out")
        if self.rand_augment != "rand-m9-n2-mstd0.5-inc1" and self.augment != "rand":
            found.append(f"rand_augment={self.rand_augment}: augment={self.augment} does not use it; give augment=rand, or leave it out")
        return found


@settings
class BenchSettings:
    """Measure how fast a shard folder streams: rate, time per image and share of the workers' time of each stage, the slowest named.

    The stream is pretraining's: planned order, random-resized crops with flips, uint8 batches. Nothing is written.

      bamboo shards bench shards/ --workers 4 --image-size 224
    """

    folder: str
    """Shard folder, local or remote (s3://, https://, gs://)."""
    workers: Annotated[int, pydantic.Field(ge=0, le=256)] = 2
    """Loader workers; 0 loads in the main process."""
    kind: Literal["processes", "threads"] = "processes"
    """What the workers are."""
    batch_size: Count = 128
    """Images per batch."""
    image_size: Annotated[int, pydantic.Field(ge=8, le=2048)] = 224
    """Side of the crops, in pixels."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Of the crops, antialiased."""
    window: Count = 64
    """Shards interleaved at a time by the plan."""
    prefetch: Count = 2
    """Batches that each worker makes ahead."""
    seconds: Annotated[float, pydantic.Field(gt=0)] = 10.0
    """About how long to measure."""
    images: Count | None = None
    """Images to measure, instead."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where batches go; on a GPU the transfer is measured too."""
    seed: int = 0
    """Seed of order and crops."""
    json: bool = False
    """Print JSON instead of the table."""

"""The settings of `bamboo shards pack|index|verify|show`; this module is light, so that help costs no import of torch."""

from pathlib import Path
from typing import Annotated, Literal

import pydantic

from ..cli.config import settings
from .sources import Format

Count = Annotated[int, pydantic.Field(ge=1)]


@settings
class PackSettings:
    """Pack a pool of images into WebDataset shards with an index.

    SRC is a folder of class folders (nested: the class is the relative path), a tar or zip of one, a list file of `path label`
    lines, or an ML-Images list of `name<TAB>class:confidence …` lines. A killed pack goes on when the same command runs again.

      bamboo shards pack photos/ --out shards/ --resize 256
      bamboo shards pack tiny-imagenet-20k.tar.gz --subdir tiny-imagenet-20k/train --out shards/
    """

    src: Path
    """Folder of class folders, tar or zip of one, list file, or ML-Images list."""
    out: Path
    """Folder for shards, index.arrow and dataset.json."""
    format: Format = "auto"
    """What SRC is: auto, folder, archive, list or ml-images."""
    subdir: str | None = None
    """Take only this folder of SRC (folders and archives)."""
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

    folder: Path
    """Shard folder."""
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

"""Show what a shard folder holds: counts, class histogram, image sizes, labels per image, a contact sheet.

bamboo shards show shards/ --contact-sheet sheet.png
bamboo shards show shards/ --contact-sheet views.png --images 8 --views 8 --augment rand
"""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from ..cli.errors import EXIT_DONE, DataError, UserError
from .amounts import bytes_text
from .atomic import atomic_file
from .augment.crops import TrainView, View
from .augment.sheet import augmented_sheet
from .augment.views import training_view
from .counters import key, mix
from .images import UnreadableImageError
from .shard_settings import ShowSettings
from .shards import Shards
from .sources import printable

_BAR = 40  # characters of the longest bar
_NAME = 32  # characters of a class name in the histogram
_TILE, _CAPTION, _GAP = 128, 16, 4  # pixels
_SHEET_STREAM = 0x53484554  # "SHET": keeps this use of the seed apart from any other
_WHITE, _BLACK, _GREY = (255, 255, 255), (0, 0, 0), (160, 160, 160)


def run(config: ShowSettings) -> int:
    """Prints the summary, writes the contact sheet where one is asked for, and returns the exit code."""
    if config.contact_sheet is not None and config.contact_sheet.suffix.lower() != ".png":
        raise UserError(f"--contact-sheet={config.contact_sheet}: only PNG is written; name it {config.contact_sheet.stem}.png")
    shards = Shards.open(config.folder)
    view = _view(config)
    summary = summarise(shards)
    if config.json:
        sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    else:
        sys.stdout.write("\n".join(_text(summary, config.bars)) + "\n")
    if config.contact_sheet is not None:
        if config.views:
            sheet = augmented_sheet(list(_readable(shards, _chosen(shards, config.images, config.seed))), view, config.views, config.seed)
        else:
            sheet = contact_sheet(shards, config.images, config.columns, config.seed)
        with atomic_file(config.contact_sheet) as file:
            sheet.save(file, "PNG")
        sys.stderr.write(f"contact sheet: {config.contact_sheet}\n")
    return EXIT_DONE


def summarise(shards: Shards) -> dict[str, Any]:
    """Returns counts, sizes and labels of a shard folder as plain data; minima, medians and maxima are of pixels, bytes and labels."""
    index, manifest = shards.index, shards.manifest
    counts = np.bincount(index.labels, minlength=len(manifest.classes))
    num_labels = np.diff(index.label_starts)
    return {
        "folder": str(shards.folder),
        "num_samples": len(index),
        "num_shards": len(manifest.shards),
        "num_classes": len(manifest.classes),
        "num_empty_classes": int(np.sum(counts[: len(manifest.classes)] == 0)),
        "num_unlabelled": int(np.sum(num_labels == 0)),
        "shard_bytes": sum(entry.size_bytes for entry in manifest.shards),
        "image_bytes": _spread(index.size),
        "width": _spread(index.width),
        "height": _spread(index.height),
        "labels_per_image": {**_spread(num_labels), "mean": float(num_labels.mean()) if len(index) else 0.0},
        "data_hash": manifest.data_hash,
        "made_by": manifest.made_by,
        "classes": [{"id": i, "name": entry.name, "num_samples": int(counts[i])} for i, entry in enumerate(manifest.classes)],
    }


def contact_sheet(shards: Shards, num_images: int, columns: int, seed: int) -> Image.Image:
    """Returns a grid of the first `num_images` samples of a seeded order, in the order of their labels, each over its class name."""
    chosen = _chosen(shards, num_images, seed)
    columns = max(1, min(columns, len(chosen)))
    rows = -(-len(chosen) // columns)
    cell = _TILE + _GAP
    sheet = Image.new("RGB", (columns * cell + _GAP, rows * (cell + _CAPTION) + _GAP), _WHITE)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for place, sample in enumerate(chosen.tolist()):
        left, top = _GAP + place % columns * cell, _GAP + place // columns * (cell + _CAPTION)
        tile = _tile(shards, sample)
        sheet.paste(tile, (left + (_TILE - tile.width) // 2, top + (_TILE - tile.height) // 2))
        caption = _caption(shards, sample)
        while draw.textlength(caption, font) > _TILE:
            caption = caption[:-2] + "…"
        draw.text((left, top + _TILE + 1), caption, _BLACK, font)
    return sheet


def _chosen(shards: Shards, num_images: int, seed: int) -> npt.NDArray[np.int64]:
    numbers = np.arange(len(shards), dtype=np.uint64)
    chosen = np.argsort(mix(numbers ^ key(_SHEET_STREAM, seed)), kind="stable")[:num_images]
    return chosen[np.argsort(shards.labels[chosen], kind="stable")]


def _readable(shards: Shards, samples: npt.NDArray[np.int64]) -> Iterator[torch.Tensor]:
    for sample in samples.tolist():
        with contextlib.suppress(UnreadableImageError, DataError):  # as in `_tile`
            yield shards.load(sample)


def _view(config: ShowSettings) -> View:
    crop = TrainView(_TILE, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")
    try:
        return training_view(
            crop,
            interpolation="bicubic",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            augment=config.augment,
            rand_augment=config.rand_augment,
            color_jitter=config.color_jitter,
            erase=config.erase,
        )
    except ValueError as error:
        raise UserError(f"--rand-augment={config.rand_augment}: {error}") from None


def _tile(shards: Shards, sample: int) -> Image.Image:
    try:
        image = Image.fromarray(shards.load(sample).permute(1, 2, 0).numpy())
    except (UnreadableImageError, DataError):  # a sheet is for looking; `verify --decode` is for finding
        return Image.new("RGB", (_TILE, _TILE), _GREY)
    scale = _TILE / max(image.size)
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BICUBIC)


def _caption(shards: Shards, sample: int) -> str:
    names = [shards.class_names[label] for label in shards.index.labels_of(sample)]
    return printable(", ".join(names)) if names else "–"


def _spread(values: npt.NDArray[Any]) -> dict[str, float]:
    if not len(values):
        return {"min": 0, "median": 0, "max": 0}
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def _text(summary: dict[str, Any], bars: int) -> Iterator[str]:
    labels = summary["labels_per_image"]
    yield f"{summary['folder']}: {summary['num_samples']:,} images of {summary['num_classes']:,} classes"
    yield f"shards      {summary['num_shards']:,}, {bytes_text(summary['shard_bytes'])}"
    yield f"image bytes {_spread_text(summary['image_bytes'])}"
    yield f"width       {_spread_text(summary['width'])}"
    yield f"height      {_spread_text(summary['height'])}"
    yield f"labels      {_spread_text(labels)}, mean {labels['mean']:.2f} per image; {summary['num_unlabelled']:,} images have none"
    yield f"data hash   {summary['data_hash']}"
    skipped = summary["made_by"].get("num_skipped", 0)
    if skipped:
        yield f"skipped     {skipped:,} unreadable images when it was made"
    if summary["num_empty_classes"]:
        yield f"empty       {summary['num_empty_classes']:,} classes have no image"
    yield from _histogram(summary["classes"], bars)


def _histogram(classes: Sequence[dict[str, Any]], bars: int) -> Iterator[str]:
    ranked = sorted(classes, key=lambda entry: (-entry["num_samples"], entry["id"]))
    if not ranked or not bars:
        return
    largest = max(1, ranked[0]["num_samples"])
    width = min(_NAME, max(len(printable(entry["name"])) for entry in ranked))
    top, bottom = (ranked, []) if len(ranked) <= 2 * bars else (ranked[:bars], ranked[-bars:])
    yield ""
    yield from (_bar(entry, largest, width) for entry in top)
    if bottom:
        yield f"… {len(ranked) - 2 * bars:,} classes between …"
        yield from (_bar(entry, largest, width) for entry in bottom)


def _bar(entry: dict[str, Any], largest: int, width: int) -> str:
    name = printable(entry["name"])
    shown = name if len(name) <= width else name[: width - 1] + "…"
    return f"{shown:<{width}} {'█' * round(_BAR * entry['num_samples'] / largest):<{_BAR}} {entry['num_samples']:,}"


def _spread_text(spread: dict[str, float]) -> str:
    return f"{spread['min']:,} to {spread['max']:,}, median {spread['median']:,.6g}"

"""`bamboo sets list|check|download`: the downstream sets that a probe is scored on.

bamboo sets check pet data/
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...cli.commands import Command, run_command, settings_of
from ...cli.config import settings
from ...cli.errors import EXIT_DONE, EXIT_FAILURE
from .facts import SETS, SplitName, describe

if TYPE_CHECKING:
    from .sets import OpenedSplit

_METRICS = {"top1": "top-1", "mean_per_class": "mean per class"}
_SPLITS: tuple[SplitName, ...] = ("train", "test")
_CHUNK = 1024  # images handed to the threads at a time


@settings
class ListSettings:
    """Lists the sets: name, title, classes, official numbers of images, metric, source."""


@settings
class CheckSettings:
    """Opens both splits of a set on disk and says what was found: layout, numbers of images, choices, hash."""

    name: str
    """Name of the set, as in `bamboo sets list`."""
    root: Path
    """Folder in which the set lies."""
    any_counts: bool = False
    """Accept other numbers of images than the official ones."""
    decode: bool = False
    """Decode every image too, and list those that cannot be."""


@settings
class DownloadSettings:
    """Downloads a set through torchvision, checks it and moves it to its place; says what to do where there is no live source."""

    name: str
    """Name of the set, as in `bamboo sets list`."""
    root: Path
    """Folder to put it in."""


COMMANDS = {
    "list": Command(settings=ListSettings, run=f"{__name__}.run_list", line="the sets, their official numbers and sources"),
    "check": Command(
        settings=CheckSettings,
        run=f"{__name__}.run_check",
        line="open both splits of a set on disk and say what was found",
        positional=("name", "root"),
    ),
    "download": Command(
        settings=DownloadSettings,
        run=f"{__name__}.run_download",
        line="download a set, or say how it can be had",
        positional=("name", "root"),
    ),
}
SETTINGS = settings_of(COMMANDS)


def main(argv: Sequence[str]) -> int:
    """Runs one of the commands and returns its exit code."""
    return run_command("sets", COMMANDS, argv, start="bamboo sets list")


def run_list(config: ListSettings) -> int:
    """Writes the table of sets and returns the exit code."""
    del config
    rows = [("name", "title", "classes", "train", "test", "metric", "source")]
    for entry in SETS.values():
        train, test = (f"{entry.counts[split]:,}" if entry.counts else "any" for split in _SPLITS)
        classes = "any" if entry.num_classes is None else f"{entry.num_classes:,}"
        rows.append((entry.name, entry.title, classes, train, test, _METRICS[entry.metric], entry.source))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        sides = (str.rjust if 2 <= column <= 4 else str.ljust for column in range(len(row)))
        cells = [side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)]
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
    return EXIT_DONE


def run_check(config: CheckSettings) -> int:
    """Opens both splits, says what they are and returns the exit code: 1 when an image cannot be decoded."""
    described = describe(config.name)
    from .sets import open_both_described  # torch is imported only once the name is known to be right

    opened = dict(zip(_SPLITS, open_both_described(described, config.root, any_counts=config.any_counts), strict=True))
    sys.stdout.write(f"{described.title}: {opened['train'].layout} in {opened['train'].place}; metric {_METRICS[described.metric]}\n")
    for split, part in opened.items():
        sys.stdout.write("".join(f"{line}\n" for line in _lines(split, part)))
    if not config.decode:
        return EXIT_DONE
    unreadable = [line for split, part in opened.items() for line in undecodable(part, f"decode {split}")]
    sys.stdout.write("".join(f"{line}\n" for line in unreadable))
    total = sum(map(len, opened.values()))
    sys.stdout.write(f"{total - len(unreadable):,} of {total:,} images decode\n")
    return EXIT_FAILURE if unreadable else EXIT_DONE


def run_download(config: DownloadSettings) -> int:
    """Downloads a set and returns the exit code."""
    described = describe(config.name)
    from .download import download

    sys.stderr.write(f"{described.title}: {described.source}\n")
    place = download(config.name, config.root)
    sys.stdout.write(f"{config.name}: whole, in {place}; use it with: --dataset {config.name} --data-root {config.root}\n")
    return EXIT_DONE


def undecodable(part: "OpenedSplit", what: str) -> list[str]:
    """Decodes every image of a split and returns `name: reason` of each that cannot be; files of their own are decoded in threads."""
    import concurrent.futures
    import os

    from ...cli.errors import DataError
    from ...cli.progress import track
    from ..images import UnreadableImageError
    from ..sources import printable
    from .listed import ListedImages

    def fault(sample: int) -> str | None:
        try:
            part.load(sample)
        except (UnreadableImageError, DataError, OSError) as error:
            return f"{printable(part.name(sample))}: {error}"
        return None

    num_threads = len(os.sched_getaffinity(0)) if isinstance(part.store, ListedImages) else 1  # a shard store has one read buffer
    chunks = (range(start, min(start + _CHUNK, len(part))) for start in range(0, len(part), _CHUNK))
    with concurrent.futures.ThreadPoolExecutor(num_threads) as threads:
        lines = (line for chunk in chunks for line in threads.map(fault, chunk))
        return [line for line in track(lines, len(part), what) if line is not None]


def _lines(split: SplitName, part: "OpenedSplit") -> list[str]:
    held = "" if part.validation_rows is None else f", {len(part.validation_rows):,} of them the official validation part"
    lines = [f"  {split:<6}{len(part):>9,} images, {len(part.class_names):,} classes{held}"]
    lines += [f"        {note}" for note in part.notes]
    return [*lines, f"        data {part.data_hash}"]

"""`bamboo zoo show`: all that is known of one checkpoint."""

import sys
from collections.abc import Iterator

from ..cli.errors import EXIT_DONE
from .receipts import read_receipt
from .registry import Entry, Source, find_entry, read_registry
from .sources import Access, access_from_environment, copies
from .zoo_cli import ShowSettings
from .zoo_list import show_bytes


def run(config: ShowSettings) -> int:
    """Prints it and returns the exit code."""
    access = access_from_environment(cache=config.cache, registry=config.registry)
    entry = find_entry(read_registry(access.registry), config.id)
    lines = [*_facts(entry), *_sources(entry, access)]
    sys.stdout.write("\n".join(f"{name + ':' if name else '':<15} {value}" for name, value in lines) + "\n")
    return EXIT_DONE


def _facts(entry: Entry) -> Iterator[tuple[str, str]]:
    wanted = entry.preprocessing
    mean, std = wanted.statistics
    yield "zoo", entry.id
    yield "architecture", entry.architecture + (f" {entry.model_args}" if entry.model_args else "")
    yield "backbone", f"{entry.num_params:,} parameters, {entry.num_features} features"
    yield "head", f"{entry.num_classes:,} outputs" if entry.num_classes else "none"
    yield "images", f"{wanted.image_size} pixels, crop {wanted.crop_fraction:g}, {wanted.interpolation}"
    yield "normalisation", f"{wanted.normalisation or 'own'}: mean {mean}, std {std}"
    yield "pretraining", entry.pretraining
    yield "licence", entry.licence
    yield "paper", entry.paper
    if entry.note:
        yield "note", entry.note


def _sources(entry: Entry, access: Access) -> Iterator[tuple[str, str]]:
    for number, source in enumerate(entry.sources):
        size = f", {show_bytes(source.num_bytes)}" if source.num_bytes else ""
        yield "sources" if number == 0 else "", f"{source}, {source.name}{size}"
        yield "", f"  {_pin(entry, source, access)}"
    here = [path for _, path in copies(entry, access)]
    for number, path in enumerate(here):
        yield "here" if number == 0 else "", str(path)
    if not here:
        yield "here", f"no; bamboo zoo fetch {entry.id}, or put it at {access.place(entry, entry.sources[0].name)}"


def _pin(entry: Entry, source: Source, access: Access) -> str:
    if source.sha256 is not None:
        return f"sha256 {source.sha256}" + ("" if len(source.sha256) == 64 else "… (the publisher gives these digits only)")
    receipt = read_receipt(access.place(entry, source.name))
    if receipt.sha256:
        return f"not pinned; first download ({receipt.date}) had sha256 {receipt.sha256}"
    return "not pinned: its hash is recorded at the first download"

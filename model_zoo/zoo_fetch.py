"""`bamboo zoo fetch`: downloads checkpoints."""

import dataclasses
import sys

from ..cli.errors import EXIT_DONE, EXIT_FAILURE, BambooError
from ..datasets.remote.download import Patience
from .registry import Entry, find_entry, read_registry
from .sources import Access, access_from_environment, copies, fetch
from .zoo_cli import FetchSettings
from .zoo_list import show_bytes


def run(config: FetchSettings) -> int:
    """Fetches each of the ids and returns the exit code; one that fails does not keep the others from being fetched."""
    access = access_from_environment(
        cache=config.cache,
        shared=config.shared,
        mirror=config.mirror,
        offline=config.offline,
        registry=config.registry,
    )
    access = dataclasses.replace(access, patience=Patience(stall_s=config.stall_s, attempts=config.attempts))
    entries = read_registry(access.registry)
    names = [name for word in config.ids for name in word.split(",") if name]
    chosen = list(entries.values()) if names == ["all"] else [find_entry(entries, name) for name in dict.fromkeys(names)]
    if config.dry_run:
        return _dry_run(chosen, access)
    failures: list[BambooError | OSError] = []
    for entry in chosen:
        try:
            fetched = fetch(entry, access)
        except (BambooError, OSError) as error:  # OSError: the disk, which may have room for a smaller one
            failures.append(error)
            sys.stderr.write(f"bamboo zoo: {error}\n")
            continue
        how = "sha256 as in the registry" if fetched.source.sha256 else "not pinned: sha256 recorded at the first download"
        sys.stdout.write(f"{entry.id}: {fetched.path}\n  sha256 {fetched.sha256} ({how}), from {fetched.came_from}\n")
    if failures and len(chosen) > 1:
        sys.stderr.write(f"bamboo zoo: {len(failures)} of {len(chosen)} could not be had\n")
    if len(failures) == 1:
        return getattr(failures[0], "exit_code", EXIT_FAILURE)
    return EXIT_FAILURE if failures else EXIT_DONE


def _dry_run(chosen: list[Entry], access: Access) -> int:
    missing = 0
    for entry in chosen:
        here = next(copies(entry, access), None)
        missing += 0 if here else entry.num_bytes
        about = "" if entry.sources[0].num_bytes else "about "
        size = f"{about}{show_bytes(entry.num_bytes)}"
        sys.stdout.write(f"{entry.id}: {f'here, {here[1]}' if here else f'{size} from {entry.sources[0]}'}\n")
    sys.stdout.write(f"would fetch about {show_bytes(missing)}\n")
    return EXIT_DONE

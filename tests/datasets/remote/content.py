"""What lies in a cache folder, and since when it was not used."""

import os
import time

from bamboo.datasets.remote.cache import Remote, ShardCache

SIZE = 200_000
"""Bytes of each of the fixture `files`."""


def held(cache: ShardCache, files: list[Remote]) -> list[int]:
    """Returns the numbers of the files that are in the cache, whole."""
    return [number for number, wanted in enumerate(files) if (cache.folder / wanted.sha256).exists()]


def set_used(cache: ShardCache, wanted: Remote, seconds_ago: float) -> None:
    """Sets the last use of a file."""
    then = time.time() - seconds_ago
    os.utime(cache.folder / wanted.sha256, (then, then))

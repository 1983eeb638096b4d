"""`bamboo shards pack|index|verify|show|bench`: make, check and look at shard folders.

bamboo shards pack photos/ --out shards/
"""

from collections.abc import Sequence

from ..cli.commands import Command, run_command, settings_of
from .shard_settings import BenchSettings, IndexSettings, PackSettings, ShowSettings, VerifySettings

COMMANDS = {
    "pack": Command(
        settings=PackSettings,
        run="bamboo.datasets.pack.run",
        line="pack a folder, archive, list or LMDB of images into shards or an LMDB",
        positional=("src",),
    ),
    "index": Command(
        settings=IndexSettings,
        run="bamboo.datasets.indexing.run",
        line="write index.arrow and dataset.json beside WebDataset tars of others",
        positional=("folder",),
    ),
    "verify": Command(
        settings=VerifySettings,
        run="bamboo.datasets.verify.run",
        line="find every truncated, swapped or altered shard",
        positional=("folder",),
    ),
    "show": Command(
        settings=ShowSettings,
        run="bamboo.datasets.show.run",
        line="counts, class histogram, sizes, a contact sheet",
        positional=("folder",),
    ),
    "bench": Command(
        settings=BenchSettings,
        run="bamboo.datasets.stream.bench.run",
        line="how fast a shard folder streams, stage by stage",
        positional=("folder",),
    ),
}
SETTINGS = settings_of(COMMANDS)


def main(argv: Sequence[str]) -> int:
    """Runs one of the commands and returns its exit code."""
    return run_command("shards", COMMANDS, argv, start="bamboo shards pack SRC --out DIR")

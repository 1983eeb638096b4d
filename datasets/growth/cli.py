"""The verb `grow`: what is new in a shard folder that has arrived, and how often training is to take each sample.

One process:     bamboo grow grown/ --data shards/train --image runs/features/resnet18-…
Many processes:  torchrun --nproc-per-node 8 -m bamboo.cli grow grown/ --data shards/train --image runs/features/resnet18-…
Another policy:  bamboo grow grown/ --policy.kind two-phase --report growth.html
Then:            bamboo pretrain --data.snapshot grown/ …

A killed call goes on where it stopped, and ends with the same snapshot. docs/growth.md has the rest.
"""

from collections.abc import Sequence

from ...cli.arguments import parse
from .settings import GrowSettings

SETTINGS = {"": GrowSettings}


def main(argv: Sequence[str]) -> int:
    """Runs `bamboo grow` and returns its exit code."""
    config = parse(GrowSettings, argv, prog="bamboo grow", doc=__doc__ or "", positional=("state",))
    from .step import run  # torch is imported only once the settings are known to be right

    return run(config)

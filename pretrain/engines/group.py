"""A process group for a single process: sharding engines speak to their ranks even where there is but one."""

import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from ...datasets.ranks import Ranks


def open_group(ranks: Ranks) -> bool:
    """Joins a group of one, unless there is a group; returns whether it did."""
    if dist.is_initialized():
        return False
    dist.init_process_group("nccl" if ranks.device.type == "cuda" else "gloo", store=HashStore(), rank=0, world_size=1)
    return True


def close_group() -> None:
    """Leaves the group of one."""
    if dist.is_initialized():
        dist.destroy_process_group()

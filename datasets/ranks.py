"""The processes of one job: who we are among them, and the few words we exchange."""

import dataclasses
import datetime
import os
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ..cli.errors import UserError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Ranks:
    """This process among `world_size`; a single process needs no process group."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    timeout: datetime.timedelta | None = None
    """How long a collective may take; None: as long as PyTorch lets it."""

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, the one that writes and speaks."""
        return self.rank == 0

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the tensor summed over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.world_size > 1:
            dist.barrier()

    def from_first(self, value: str) -> str:
        """Returns rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def from_all(self, value: T) -> list[T]:
        """Returns every rank's value, by rank, on every rank; it must pickle."""
        if self.world_size == 1:
            return [value]
        box: list[Any] = [None] * self.world_size
        dist.all_gather_object(box, value)
        return box

    def share_cores(self, workers: int, threads: int = 0) -> None:
        """Sets this process's intra-op threads: `threads`, or (0) its share of the machine's cores less its loader workers.

        More threads than cores wait for one another in busy loops: two of them beside a worker on two cores are slower than one.
        A single process leaves OMP_NUM_THREADS its say; torchrun sets that itself, so ranks do not.
        """
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if not threads and local_ranks == 1 and "OMP_NUM_THREADS" in os.environ:
            return
        torch.set_num_threads(threads or max(len(os.sched_getaffinity(0)) // local_ranks - workers, 1))

    def close(self) -> None:
        """Ends the process group."""
        if self.world_size > 1:
            dist.destroy_process_group()


ALONE = Ranks(0, 0, 1, torch.device("cpu"))
"""A single process, on the CPU."""


def start_ranks(device: str = "auto", timeout_s: float | None = None) -> Ranks:
    """Joins the job that torchrun's environment describes (none: a single process) and returns this process's place in it.

    Args:
        device: "auto" (CUDA where there is one), "cpu" or "cuda".
        timeout_s: how long a collective may take before it fails; None: PyTorch's own limit (NCCL 10 minutes, gloo 30).

    Raises:
        UserError: when CUDA is asked for and there is none.
    """
    require_device(device)
    rank, local_rank, world_size = (int(os.environ.get(name, default)) for name, default in _TORCHRUN)
    cuda = device != "cpu" and torch.cuda.is_available()
    place = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    timeout = None if timeout_s is None else datetime.timedelta(seconds=timeout_s)
    if cuda:
        torch.cuda.set_device(place)
    if world_size > 1:
        dist.init_process_group("nccl" if cuda else "gloo", device_id=place if cuda else None, timeout=timeout)
    return Ranks(rank, local_rank, world_size, place, timeout)


def require_device(device: str) -> None:
    """Raises UserError for a device that is none of "auto", "cpu", "cuda", and for "cuda" where there is no such device."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"device={device}: allowed are auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda: this machine has no CUDA device; use device=cpu or auto")


_TORCHRUN = (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))

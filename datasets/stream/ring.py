"""A ring of batches in memory that the main process shares with its loader workers.

The memory is an anonymous file (memfd_create(2)): no name in /dev/shm, so nothing is left there by whatever ends, and no share of its
size, which containers keep at 64 MB. Its pages are taken when it is laid out, so that a lack of memory is an error there and no bus
error later.
"""

import contextlib
import math
import mmap
import os
from collections.abc import Callable
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import torch

from ...cli.errors import UserError
from ..amounts import bytes_text
from .stages import ROW_BYTES, Readings


class SharedMemory:
    """`num_bytes` zeroed bytes, in the open file `descriptor`, that forked and spawned children see too."""

    def __init__(self, num_bytes: int) -> None:
        """Takes the memory; raises OSError where there is not enough."""
        self.descriptor = os.memfd_create("bamboo-stream", os.MFD_CLOEXEC)
        os.posix_fallocate(self.descriptor, 0, num_bytes)
        self._map(num_bytes)

    def _map(self, num_bytes: int) -> None:
        self.bytes = memoryview(mmap.mmap(self.descriptor, num_bytes))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):  # also where laying it out failed
            os.close(self.descriptor)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _attach, (reduction.DupFd(self.descriptor), len(self.bytes))


def _attach(descriptor: Any, num_bytes: int) -> SharedMemory:
    """Returns the memory in a spawned process."""
    memory = SharedMemory.__new__(SharedMemory)
    memory.descriptor = descriptor.detach()
    memory._map(num_bytes)
    return memory


class Ring:
    """`num_slots` batches of images, uint8[n, B, S, S, 3], taken in turn, and the stage clocks of `num_workers` workers.

    `shape` is the largest batch's, [B, S, S, 3].
    """

    def __init__(self, shape: tuple[int, int, int, int], num_slots: int, num_workers: int) -> None:
        """Lays the ring out.

        Raises:
            UserError: naming the bytes, when the machine does not have them.
        """
        self.shape = (num_slots, *shape)
        self._clocks_bytes = -(-num_workers * ROW_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
        num_bytes = self._clocks_bytes + math.prod(self.shape)
        try:
            if num_bytes > (available := _available_bytes()):
                raise MemoryError(f"{bytes_text(available)} are left")  # the kernel would not refuse: it would kill
            self._memory = SharedMemory(max(num_bytes, 1))
        except (OSError, MemoryError) as error:
            raise UserError(
                f"no memory for {num_slots} batches of {shape[0]} images of {shape[1]}×{shape[2]}, {bytes_text(num_bytes)} "
                f"({num_bytes:,} bytes): {error}; use fewer data.workers, a smaller data.prefetch or a smaller batch"
            ) from None
        self._look(num_workers)

    def _look(self, num_workers: int) -> None:
        self.readings = Readings(num_workers, self._memory.bytes)
        with torch.inference_mode(False):  # laid out for an evaluation it would be closed to worker threads, which are not in that mode
            self.slots = torch.empty(self.shape, dtype=torch.uint8)
            if self.slots.numel():
                self.slots = torch.frombuffer(self._memory.bytes, dtype=torch.uint8, offset=self._clocks_bytes).view(self.shape)

    def slot(self, turn: int, shape: tuple[int, int, int, int]) -> torch.Tensor:
        """Returns where the batch of that turn lies, uint8[B, S, S, 3] of its own shape, at the start of a slot."""
        slot = self.slots[turn % len(self.slots)]
        return slot if slot.shape == shape else slot.view(-1)[: math.prod(shape)].view(shape)

    def __getstate__(self) -> dict[str, Any]:
        plain = {name: value for name, value in vars(self).items() if name not in ("slots", "readings")}
        return {**plain, "num_workers": self.readings.num_workers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        num_workers = state.pop("num_workers")
        vars(self).update(state)
        self._look(num_workers)


def _available_bytes(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the memory that the machine has left, at most what this job's control group has left; cached files count as left."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    left = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for folder, limit, used, cached in (
        (groups, "memory.max", "memory.current", ("active_file", "inactive_file")),
        (groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
    ):
        with contextlib.suppress(OSError, ValueError):  # another version of control groups, or no limit (`max`)
            most, taken = (int((folder / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            left = min(left, max(most - taken + sum(int(stat.get(name, 0)) for name in cached), 0))
    return left

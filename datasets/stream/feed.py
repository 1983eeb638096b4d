"""Batches onto the device, a batch ahead of their use: page-locked ring, a copy engine of its own, uint8 channels-last all the way."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import torch

from .batches import Batch
from .loader import Loader


class Copier(Protocol):
    """Copies images, labels and weights of batches to where they are used."""

    def start(self, batch: Batch) -> "Copy":
        """Begins a copy and returns at once."""


class Copy(Protocol):
    """A copy under way."""

    def source_is_free(self) -> None:
        """Returns when the batch's own memory has been read and may be written again."""

    def ready(self) -> Batch:
        """Returns the batch with images, labels and weights on the device, for what the caller's stream does from now on."""


HOLD = 2
"""Batches that the loader must keep valid: one copied and maybe in use, one being copied."""


def feed(loader: Loader, device: torch.device) -> Iterator[Batch]:
    """Yields a loader's batches with images (uint8[B, S, S, 3]), labels and weights on `device`; other columns stay where they are.

    On a GPU the copy of batch n + 1 runs beside the work on batch n; the loader must have been made with `hold=HOLD`. Elsewhere
    nothing is copied.
    """
    if device.type != "cuda":
        yield from loader
        return
    with page_locked(loader.slots) as locked:
        yield from ahead(iter(loader), CudaCopier(device, locked=locked))


def ahead(batches: Iterator[Batch], copier: Copier) -> Iterator[Batch]:
    """Yields the batches as `copier` copies them, one ahead.

    When batch n + 1 is taken, batch n - 1's slot is written again, so its copy has to be over by then; it is, long since, unless
    copying is what everyone waits for.
    """
    current = _started(batches, copier)
    while current is not None:
        following = _started(batches, copier)
        yield current.ready()
        current.source_is_free()
        current = following


def _started(batches: Iterator[Batch], copier: Copier) -> Copy | None:
    batch = next(batches, None)
    return None if batch is None else copier.start(batch)


class CudaCopier:
    """Copies on a CUDA stream of its own."""

    def __init__(self, device: torch.device, *, locked: bool) -> None:
        """`locked`: whether the batches' images lie in page-locked memory already; otherwise each is copied into such memory first."""
        self._device, self._locked = device, locked
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's own signature

    def start(self, batch: Batch) -> "CudaCopy":
        """Begins a copy and returns at once."""
        images = batch.images if self._locked else batch.images.pin_memory()
        weights = None if batch.weights is None else batch.weights.pin_memory()
        labels = batch.labels.pin_memory()  # back to torch's pool of page-locked memory only after the copy, as torch sees to
        with torch.cuda.stream(self._stream):
            moved = batch._replace(
                images=images.to(self._device, non_blocking=True),
                labels=labels.to(self._device, non_blocking=True),
                weights=None if weights is None else weights.to(self._device, non_blocking=True),
            )
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own signature
            done.record(self._stream)
        return CudaCopy(moved, done)


class CudaCopy:
    """A copy under way on a CUDA stream."""

    def __init__(self, batch: Batch, done: torch.cuda.Event) -> None:
        self._batch, self._done = batch, done

    def source_is_free(self) -> None:
        """Returns when the copy is over."""
        self._done.synchronize()

    def ready(self) -> Batch:
        """Has the current stream wait for the copy; the memory is kept from reuse until that stream is done with it, too."""
        using = torch.cuda.current_stream(self._batch.images.device)
        using.wait_event(self._done)
        for tensor in (self._batch.images, self._batch.labels, self._batch.weights):
            if tensor is not None:
                tensor.record_stream(using)
        return self._batch


@contextlib.contextmanager
def page_locked(memory: torch.Tensor, cudart: Any = None) -> Iterator[bool]:
    """Locks a tensor's pages for the GPU's copy engine (cudaHostRegister) inside the block; gives whether that could be done."""
    cudart = cudart or torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch's own signature
    code = int(cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)) if memory.nbytes else 0
    if code:
        with contextlib.suppress(RuntimeError):  # the next launch would report the refusal as its own failure
            torch.zeros(1, device="cuda")
        warnings.warn(f"the ring cannot be page-locked (CUDA error {code}): every batch is copied once more", stacklevel=2)
    try:
        yield code == 0
    finally:
        if memory.nbytes and code == 0:
            torch.cuda.synchronize()
            cudart.cudaHostUnregister(memory.data_ptr())

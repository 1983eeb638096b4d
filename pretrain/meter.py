"""How fast it goes: images a second, the share of time spent waiting for data, and model FLOPs utilisation (MFU)."""

import dataclasses
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

# Dense peak of the tensor cores in bf16 FLOP/s, from NVIDIA's data sheets; the first whose words are all in the device's name.
_PEAK_FLOPS = {
    "H200 NVL": 835e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}


@dataclasses.dataclass(frozen=True)
class Pace:
    """One stretch of training, as measured on this rank's clock."""

    images_per_s: float
    """Global images per second."""
    data_wait: float
    """Share of the time spent waiting for the loader, in [0, 1]."""
    mfu: float
    """Model FLOPs (3 × forward) over the peak of all ranks, in [0, 1]."""


class Meter:
    """Adds up waiting and total time between two readings."""

    def __init__(self, global_batch_size: int, flops_per_image: Callable[[int], float], peak_flops: float) -> None:
        """`flops_per_image`: of a step, which may differ as the images' size changes."""
        self._global_batch_size = global_batch_size
        self._flops_per_image, self._peak_flops = flops_per_image, peak_flops
        self.restart()

    def restart(self) -> None:
        """Starts a new stretch; call it after anything that is not training (evaluation, saving)."""
        self._started, self._waited_s, self._steps, self._flops = time.perf_counter(), 0.0, 0, 0.0

    def count(self, step: int, waited_s: float) -> None:
        """Counts one step, of which `waited_s` seconds went into waiting for its batch."""
        self._waited_s += waited_s
        self._steps += 1
        self._flops += self._flops_per_image(step) * self._global_batch_size

    def read(self) -> Pace:
        """Returns the pace since the last restart, and restarts."""
        elapsed_s = max(time.perf_counter() - self._started, 1e-9)
        rate = self._steps * self._global_batch_size / elapsed_s
        pace = Pace(rate, self._waited_s / elapsed_s, self._flops / elapsed_s / self._peak_flops)
        self.restart()
        return pace


def training_flops(model: torch.nn.Module, image: torch.Tensor) -> float:
    """Returns FLOPs per training image: 3 × those of a forward pass of `image`, float32[1, 3, S, S] (2 FLOPs a multiply-add)."""
    was_training = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    model.train(was_training)
    return 3.0 * float(counter.get_total_flops())


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """Returns (peak FLOP/s of one rank, where the figure is from): the data sheet of a known GPU, else a measured matrix product."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, peak in _PEAK_FLOPS.items():
            if set(part.split()) <= set(name.replace("-", " ").split()):
                return peak, f"data sheet of {part}, dense bf16"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    side, repeats = (8192, 10) if device.type == "cuda" else (1024, 3)
    left = torch.randn(side, side, device=device, dtype=dtype)
    best_s = float("inf")
    for _ in range(repeats):
        started = time.perf_counter()
        float((left @ left)[0, 0])  # reading a value waits for the device
        best_s = min(best_s, time.perf_counter() - started)
    return 2.0 * side**3 / best_s, f"measured {side}³ {precision} matrix product"

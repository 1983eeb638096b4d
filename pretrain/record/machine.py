"""The machine a rank runs on, and the software below Python: cheap to find out, from files and from what torch knows."""

import dataclasses
import os
import platform
import re
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


@dataclasses.dataclass(frozen=True)
class Machine:
    """One host, as one rank sees it."""

    host: str
    cpu: str
    cpus: int
    """Logical cores that this process may use."""
    memory_bytes: int
    gpu: str | None
    """Name of this rank's GPU."""
    infiniband: tuple[str, ...]
    """Names of the host's InfiniBand or RoCE adapters."""


def this_machine(device: torch.device) -> Machine:
    """Returns the machine of this rank."""
    return Machine(
        host=socket.gethostname(),
        cpu=cpu_model(),
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        infiniband=tuple(sorted(path.name for path in Path("/sys/class/infiniband").glob("*"))),
    )


def cpu_model(listing: Path = Path("/proc/cpuinfo")) -> str:
    """Returns what the kernel calls the processor."""
    try:
        lines = listing.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def accelerator_versions(device: torch.device) -> dict[str, str]:
    """Returns the versions of CUDA, cuDNN, NCCL and the driver, as far as the run uses them."""
    if device.type != "cuda":
        return {}
    nccl = torch.cuda.nccl.version() if torch.distributed.is_nccl_available() else ()  # type: ignore[no-untyped-call]  # torch's own
    found = {
        "cuda": torch.version.cuda or "",
        "cudnn": str(torch.backends.cudnn.version() or ""),  # type: ignore[no-untyped-call]  # torch's own
        "nccl": ".".join(map(str, nccl)),
        "driver": driver_version(),
    }
    return {name: text for name, text in found.items() if text}


def driver_version(listing: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Returns the version of NVIDIA's driver; empty where there is none."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", listing.read_text(encoding="utf-8"))
    except OSError:
        return ""
    return found.group() if found else ""


def package_version(name: str) -> str:
    """Returns the version of an installed package, without importing it; empty where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""

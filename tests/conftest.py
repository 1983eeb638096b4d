"""A small pool, packed once, and a run of timm's test models on it; and a disk that fills up."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

from bamboo.cli.main import main

hypothesis.settings.register_profile("house", deadline=None)  # machines are shared: a slow example is no failure
hypothesis.settings.load_profile("house")

CLASSES = ("dots", "lines", "waves")


def write_pool(folder: Path, num_images: int, seed: int) -> None:
    """Writes images of three easily told classes, 40 × 48 pixels, into class folders."""
    random = np.random.default_rng(seed)
    ramp = np.linspace(0, 6 * np.pi, 48)
    for number in range(num_images):
        kind = number % len(CLASSES)
        pattern = [np.zeros((40, 48)), np.sin(ramp)[None] + np.zeros((40, 1)), np.sin(ramp[:40])[:, None] + np.zeros((1, 48))][kind]
        noisy = pattern[..., None] * 60 + random.normal(128, 40, (40, 48, 3))
        path = folder / CLASSES[kind] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)


def pack(source: Path, out: Path, *options: str) -> None:
    """Packs a folder with the real command."""
    assert main(["shards", "pack", str(source), "--out", str(out), "--samples-per-shard", "20", "--processes", "1", *options]) == 0


_ALONE = ("tests/datasets/remote/", "tests/faults/test_remote.py", "tests/datasets/stream/test_bench.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests whose patience is counted in tenths of a second: beside another process they would lose it."""
    for item in items:
        if any(part in item.path.as_posix() for part in _ALONE):
            item.add_marker("alone")


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with shard folders `train` (101 images) and `val` (37 images)."""
    folder = tmp_path_factory.mktemp("pool")
    for split, num_images, seed in (("train", 101, 0), ("val", 37, 1)):
        write_pool(folder / "images" / split, num_images, seed)
        pack(folder / "images" / split, folder / split)
    return folder


@pytest.fixture
def mount_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Returns a function that mounts a real file system of a given size (`4m`) and returns where; it goes with the test."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs takes root")
    mounted: list[Path] = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"no tmpfs can be mounted here: {done.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)

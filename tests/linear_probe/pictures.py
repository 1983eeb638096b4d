"""Class folders of easily told images, and the command that probes them."""

from pathlib import Path

import numpy as np
from PIL import Image

from bamboo.cli.main import main


def draw(root: Path, num_train: int = 30, num_test: int = 10) -> Path:
    """Writes 16 × 16 images whose brightness is their class, `num_train` and `num_test` of each of 3, and returns `root`."""
    random = np.random.default_rng(0)
    for split, count in (("train", num_train), ("test", num_test)):
        for label, name in enumerate(("dark", "grey", "light")):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                array = random.normal(60 + 70 * label, 20, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(array).save(root / split / name / f"{number}.png")
    return root


def arguments(images: Path, folder: Path, *options: str, checkpoint: str = "pixels:16") -> list[str]:
    """Returns the command line of a probe whose results and features lie in `folder`."""
    place = ["--data-root", str(images), "--out", str(folder / "probe"), "--cache", str(folder / "cache")]
    common = ["--dataset", "folder", "--workers", "0", "--precision", "fp32", "--device", "cpu"]
    return ["probe", "--checkpoint", checkpoint, *place, *common, *options]


def probe(images: Path, folder: Path, *options: str, checkpoint: str = "pixels:16") -> int:
    """Runs a probe and returns its exit code."""
    return main(arguments(images, folder, *options, checkpoint=checkpoint))

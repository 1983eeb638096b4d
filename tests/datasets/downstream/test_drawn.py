"""The splits that are drawn here: fixed for ever, and the same wherever they are drawn."""

import hashlib
import random

from bamboo.datasets.downstream.drawn import draw

FILES = [f"accordion/image_{number:04d}.jpg" for number in range(1, 56)]
GOLDEN = [6, 12, 15, 16, 17, 21, 28, 34, 42, 45]


def test_the_draw_is_what_it_says() -> None:
    """The draw against SHA-256 of the stated text, computed here; every file is in one split."""
    keys = {file: hashlib.sha256(f"bamboo split, seed 0:caltech:{file}".encode()).hexdigest() for file in FILES}
    ordered = sorted(FILES, key=keys.__getitem__)
    drawn = draw(FILES, "caltech", 30, None)
    assert drawn == {"train": sorted(ordered[:30]), "test": sorted(ordered[30:])}
    assert draw(FILES, "caltech", 20, 25) == {"train": sorted(ordered[:20]), "test": sorted(ordered[20:45])}


def test_golden_draw() -> None:
    """Numbers of the images drawn for training, written down: another list would make recorded scores incomparable."""
    drawn = [int(file[-8:-4]) for file in draw(FILES, "caltech", 10, None)["train"]]
    assert drawn == GOLDEN


def test_neither_order_nor_other_files_matter() -> None:
    """Shuffled names: the same draw; without some test files: the same training files; another set: another draw."""
    shuffled = random.Random(0).sample(FILES, len(FILES))
    drawn = draw(FILES, "caltech", 30, None)
    assert draw(shuffled, "caltech", 30, None) == drawn
    assert draw(drawn["train"] + drawn["test"][:3], "caltech", 30, None)["train"] == drawn["train"]
    assert draw(FILES, "sun-seeded", 30, None) != drawn
    assert draw(["a\udcff.jpg", "b.jpg"], "caltech", 1, None)["train"]  # a file name that is no UTF-8

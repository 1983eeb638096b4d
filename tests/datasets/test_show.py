"""What `bamboo shards show` says, and the `shards` command line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bamboo.cli.main import main
from bamboo.datasets.manifest import read_manifest

Bamboo = Callable[..., tuple[int, str, str]]


def test_json_against_the_folder(packed: Path, photo_folder: Path, bamboo: Bamboo) -> None:
    """Counts, sizes and bytes against the image files themselves."""
    code, text, _ = bamboo("show", packed, "--json")
    shown = json.loads(text)
    widths = sorted(Image.open(path).width for path in photo_folder.rglob("*.*"))
    assert code == 0
    assert (shown["num_samples"], shown["num_classes"], shown["num_shards"], shown["num_unlabelled"]) == (21, 3, 3, 0)
    assert {entry["name"]: entry["num_samples"] for entry in shown["classes"]} == {"animal/cat": 8, "animal/dog": 7, "plant": 6}
    assert shown["width"] == {"min": widths[0], "median": np.median(widths), "max": widths[-1]}
    assert shown["labels_per_image"] == {"min": 1, "median": 1.0, "max": 1, "mean": 1.0}
    assert shown["shard_bytes"] == sum(path.stat().st_size for path in packed.glob("*.tar"))
    assert shown["data_hash"] == read_manifest(packed).data_hash


def test_histogram_bars_are_proportional(packed: Path, bamboo: Bamboo) -> None:
    """Forty characters for the largest class, the others in proportion; top and bottom only when there are many."""
    _, text, _ = bamboo("show", packed)
    assert "21 images of 3 classes" in text
    assert [line.count("█") for line in text.splitlines() if "█" in line] == [40, 35, 30]
    _, text, _ = bamboo("show", packed, "--bars", 1)
    assert [line.split()[0] for line in text.splitlines()[-3:]] == ["animal/cat", "…", "plant"]


def test_contact_sheet(packed: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """A readable PNG of the expected size, the same for the same seed, another for another; no other format is written."""
    first, again, other = (tmp_path / f"{name}.png" for name in "abc")
    for path, seed in ((first, 0), (again, 0), (other, 1)):
        assert bamboo("show", packed, "--contact-sheet", path, "--images", 6, "--columns", 3, "--seed", seed)[0] == 0
    assert Image.open(first).size == (3 * 132 + 4, 2 * 148 + 4)
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()
    code, _, errors = bamboo("show", packed, "--contact-sheet", tmp_path / "sheet.jpg")
    assert code == 2
    assert "only PNG is written; name it sheet.png" in errors


def test_a_truncated_shard_is_refused(packed: Path, bamboo: Bamboo) -> None:
    """`show` on a folder with a cut shard: exit 1, and the command that tells more."""
    (packed / "shard-000001.tar").write_bytes(b"")
    code, _, errors = bamboo("show", packed)
    assert code == 1
    assert f"bamboo shards verify {packed}" in errors


@pytest.mark.parametrize(("argument", "message"), [("pakc", "did you mean 'pack'"), ("", "no command ''")])
def test_a_mistyped_command_names_the_nearest(bamboo: Bamboo, argument: str, message: str) -> None:
    """Unknown commands: exit 2 and the nearest or all of them."""
    code, _, errors = bamboo(argument)
    assert code == 2
    assert message in errors


def test_help_is_light(bamboo: Bamboo) -> None:
    """`bamboo shards --help` and its commands' settings come without torch (checked in a fresh interpreter)."""
    import subprocess

    code, text, _ = bamboo("--help")
    assert code == 0
    assert all(name in text for name in ("pack", "index", "verify", "show"))
    check = "import sys, bamboo.datasets.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    with pytest.raises(SystemExit) as ended:
        main(["shards", "pack", "--help"])
    assert ended.value.code == 0

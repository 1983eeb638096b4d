"""Feature folders that were written by hand, and that are damaged."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bamboo.cli.errors import DataError, UserError
from bamboo.datasets.feature_folder import read_features, verify_features, write_features

FEATURES = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four features of width 3."""
    write_features(tmp_path / "made", FEATURES, np.arange(4), ["one"], {"data": "d", "checkpoint": "c"}, {"numpy": "2"})
    return tmp_path / "made"


def claims(path: Path, shape: tuple[int, ...], dtype: str = "<i8") -> None:
    """Writes the header of an .npy file of that shape, with one value behind it."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
        file.write(bytes(8))


def becomes_a_zip(path: Path) -> None:
    """Puts an .npz in place of an .npy, as np.savez writes it."""
    with path.open("wb") as file:
        np.savez(file, FEATURES)
    assert zipfile.is_zipfile(path)


def holds_objects(path: Path) -> None:
    """Puts pickled objects in place of numbers."""
    np.save(path, np.array([None] * 4, object), allow_pickle=True)


def test_what_was_written_is_read(folder: Path) -> None:
    """Features, labels, identity and classes against what went in; features that were altered since are found by their hash."""
    found = read_features(folder)
    assert np.array_equal(found.features, FEATURES)
    assert found.labels.tolist() == [0, 1, 2, 3]
    assert (found.manifest["identity"], found.manifest["classes"]) == ({"data": "d", "checkpoint": "c"}, ["one"])
    verify_features(found)
    path = folder / "features.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    with pytest.raises(DataError, match=r"features\.npy: altered since"):
        verify_features(read_features(folder))


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.parametrize("name", ["features.npy", "labels.npy"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        lambda path: path.write_bytes(b"PK\3\4 and no zip"),
        lambda path: path.write_bytes(b"\x80\x04 a pickle"),
        Path.unlink,
        becomes_a_zip,
        holds_objects,
        lambda path: claims(path, (10**13,)),
        lambda path: claims(path, (10**13, 10**13)),
        lambda path: claims(path, (-4,)),
        lambda path: claims(path, ()),
        lambda path: np.save(path, np.array(["a", "b", "c", "d"])),
        lambda path: np.save(path, np.arange(5)),
        lambda path: np.save(path, np.array(["a", "b", "c", "d"] * 3).reshape(4, 3)),
    ],
)
def test_a_damaged_array_is_data_that_is_damaged(folder: Path, name: str, damage: Callable[[Path], object]) -> None:
    """Empty, cut off, no .npy, a zip, objects, shapes that the file cannot hold or that do not fit: DataError with the folder's name."""
    damage(folder / name)
    with pytest.raises(DataError, match=f"{folder}.*remove it and run again"):
        read_features(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: [card], "manifest.json is no JSON object"),
        (lambda card: None, "manifest.json is no JSON object"),
        (lambda card: {**card, "shape": 4}, "manifest.json has no shape that is a list"),
        (lambda card: {**card, "shape": [4, 4]}, "the manifest says"),
        (lambda card: {**card, "identity": "d"}, "manifest.json has no identity that is a dict"),
        *(
            (lambda card, name=name: {key: value for key, value in card.items() if key != name}, f"has no {name} that is a")
            for name in ("identity", "shape", "classes", "features_sha256")
        ),
    ],
)
def test_a_damaged_manifest_is_data_that_is_damaged(folder: Path, change: Callable[[object], object], message: str) -> None:
    """No object, entries missing or of another kind: DataError that says which. Without a manifest: unfinished, the user's affair."""
    path = folder / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=message):
        read_features(folder)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="damaged"):
        read_features(folder)
    path.unlink()
    with pytest.raises(UserError, match="not a finished feature folder"):
        read_features(folder)

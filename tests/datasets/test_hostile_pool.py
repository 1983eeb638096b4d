"""Manifests and indexes that somebody made to mislead: refused when the folder is opened, here and from an address alike."""

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from bamboo.cli.errors import DataError
from bamboo.datasets import index_check
from bamboo.datasets import shards as shard_folders
from bamboo.datasets.atomic import sha256_file
from bamboo.datasets.index import read_table, write_index
from bamboo.datasets.manifest import parse_manifest
from bamboo.datasets.members import members
from bamboo.datasets.remote.cache import ShardCache
from bamboo.datasets.remote.transport import Patience
from bamboo.datasets.shards import Shards
from tests.loopback import Loopback, loopback

Tree = dict[str, Any]


@pytest.fixture
def server() -> Iterator[Loopback]:
    """An HTTP server without files."""
    with loopback() as running:
        yield running


@pytest.fixture
def folder(pool: Path, tmp_path: Path) -> Path:
    """A copy of a pool of 101 samples in six shards and four classes, to be spoilt."""
    return Path(shutil.copytree(pool / "train", tmp_path / "train"))


def rewrite(folder: Path, spoil: Callable[[Tree], object]) -> None:
    """Changes what the manifest says."""
    path = folder / "dataset.json"
    tree = json.loads(path.read_text())
    spoil(tree)
    path.write_text(json.dumps(tree))


def replace(folder: Path, name: str, sample: int, value: object) -> None:
    """Changes one value of the index, with the hash in the manifest."""
    path = folder / "index.arrow"
    table = read_table(path)
    place = table.schema.get_field_index(name)
    values = table.column(place).to_pylist()
    values[sample] = value
    write_index(path, [table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))])
    rewrite(folder, lambda tree: tree.update(index_sha256=sha256_file(path)))


def assert_refused(folder: Path, server: Loopback, message: str) -> None:
    """Opens the folder and its copy behind an address."""
    with pytest.raises(DataError, match=message):
        Shards.open(folder)
    cache = ShardCache(folder.parent / "cache", 10**9, Patience(attempts=1))
    with pytest.raises(DataError, match=message):
        Shards.open(server.serve(folder, "pool"), cache=cache)


MANIFESTS: list[tuple[Callable[[Tree], object], str]] = [
    (lambda tree: tree["shards"][0].update(size_bytes="5"), "size_bytes '5'.*: must be integers"),
    (lambda tree: tree["shards"][0].update(size_bytes=True), "size_bytes True"),
    (lambda tree: tree["shards"][0].update(size_bytes=2**63), "must be integers"),
    (lambda tree: (tree["shards"][0].update(num_samples=-20), tree["shards"][1].update(num_samples=60)), "num_samples -20"),
    (lambda tree: tree["shards"][0].update(sha256=None), "sha256 None: must be 64 hex digits"),
    (lambda tree: tree["shards"][0].update(sha256="../" * 21 + "a"), "must be 64 hex digits"),
    (lambda tree: tree["shards"][0].update(name=5), "name 5: must be a file name"),
    (lambda tree: tree["shards"][0].update(name="../train/shard-000000.tar"), "must be a file name"),
    (lambda tree: tree["shards"][0].update(name="a\\b.tar"), "must be a file name"),
    (lambda tree: tree["shards"][0].update(name=".."), "must be a file name"),
    (lambda tree: tree["shards"][0].update(name=".hidden.tar"), "must be a file name"),
    (lambda tree: tree["shards"][0].update(name="a\0b"), "must be a file name"),
    (lambda tree: tree["shards"][0].update(name=""), "must be a file name"),
    (lambda tree: tree["shards"][0].update(name="\ud800"), "surrogates not allowed"),
    (lambda tree: tree["shards"].append(5), "TypeError"),
    (lambda tree: tree["classes"][0].update(name=5), "class 0: name 5: must be a string"),
    (lambda tree: tree["classes"][0].update(parent=10**6), "parent 1000000: must be null or a class id"),
    (lambda tree: tree.update(index_sha256=5), "index_sha256 5: must be 64 hex digits"),
    (lambda tree: tree.update(made_by=[]), "made_by must be an object"),
]


@pytest.mark.parametrize(("spoil", "message"), MANIFESTS)
def test_a_manifest_that_cannot_be(folder: Path, server: Loopback, spoil: Callable[[Tree], object], message: str) -> None:
    """Values of other types and ranges, and names that lead out of the folder: the file and the value, not what comes of it later."""
    rewrite(folder, spoil)
    assert_refused(folder, server, rf"dataset\.json: damaged .*{message}")


@pytest.mark.parametrize("data", [b"[" * 200_000, b'{"num_samples": ' + b"9" * 5000 + b"}", b"5", b'"x"', b"\xff"])
def test_json_that_is_no_manifest(data: bytes) -> None:
    """Nested beyond Python's depth, a number beyond its digits, no object, no text: the usual error."""
    with pytest.raises(DataError, match=r"^here: damaged"):
        parse_manifest(data, "here")


INDEXES: list[tuple[str, object, str]] = [
    ("shard", 999, "sample 45: its shard is not the one"),
    ("shard", -1, "sample 45: its shard is not the one"),
    ("shard", 1, "sample 45: its shard is not the one"),
    ("offset", -5, "sample 45: its bytes begin before byte 512"),
    ("offset", 511, "sample 45: its bytes begin before byte 512"),
    ("offset", 2**62, "sample 45: its bytes do not lie inside its shard"),
    ("offset", None, "column offset has 1 rows without a value"),
    ("size", -1, "sample 45: its bytes do not lie inside its shard"),
    ("size", 204_800, "sample 45: its bytes do not lie inside its shard"),
    ("size", 2**63 - 1, "sample 45: its bytes do not lie inside its shard"),
    ("labels", [99], r"sample 45: a label is not in \[0, "),
    ("labels", [0, -1], r"sample 45: a label is not in \[0, "),
    ("labels", [None], "a label or a confidence has no value"),
    ("labels", None, "column labels has 1 rows"),
    ("confidences", [1.0, 0.5], "sample 45: it has another number of confidences than of labels"),
    ("confidences", [1.5], r"sample 45: a confidence is not in \[0, 1\]"),
    ("confidences", [float("nan")], r"sample 45: a confidence is not in \[0, 1\]"),
]


@pytest.mark.parametrize(("name", "value", "message"), INDEXES)
def test_an_index_that_cannot_be(
    folder: Path, server: Loopback, monkeypatch: pytest.MonkeyPatch, name: str, value: object, message: str
) -> None:
    """One value of row 45 of 101, in stretches of 16 rows: index, sample and what is wrong with it."""
    monkeypatch.setattr(index_check, "_STRETCH_ROWS", 16)
    Shards.open(folder)
    replace(folder, name, 45, value)
    assert_refused(folder, server, rf"arrow: damaged: .*{message}")


@pytest.mark.parametrize("count", [0, 8, 1000, 5000])
def test_a_cut_index(folder: Path, count: int) -> None:
    """The first bytes alone: no crash, and the file is named."""
    os.truncate(folder / "index.arrow", count)
    with pytest.raises(DataError, match=r"index\.arrow: cannot be read"):
        Shards.open(folder)


def test_starts_that_fall_are_refused(folder: Path, server: Loopback) -> None:
    """List offsets that go back and forth, which Arrow's own quick check lets through: refused, as labels outside of their column are."""
    path = folder / "index.arrow"
    data, starts = bytearray(path.read_bytes()), b"".join(number.to_bytes(4, "little") for number in range(40, 44))
    place = data.index(starts)
    data[place + 4 : place + 8] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(data)
    rewrite(folder, lambda tree: tree.update(index_sha256=sha256_file(path)))
    assert_refused(folder, server, "sample 4[01]: its labels do not lie inside their column")


def test_a_large_index_is_checked_once(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An index above the bound for marks: the second opening does not read it, another file or manifest does; no mark, no difference."""
    monkeypatch.setenv("BAMBOO_CACHE", str(tmp_path / "home"))
    monkeypatch.setattr(index_check, "_MARKED_ROWS", 101)
    checked: list[Path] = []
    real = index_check._check
    monkeypatch.setattr(index_check, "_check", lambda path, *rest: (checked.append(path), real(path, *rest)))
    for _ in range(2):
        Shards.open(folder)
    assert len(checked) == 1
    rewrite(folder, lambda tree: tree["classes"].append({"id": len(tree["classes"]), "name": "more", "parent": None}))
    Shards.open(folder)
    os.utime(folder / "index.arrow", (0, 0))
    Shards.open(folder)
    assert len(checked) == 3
    shutil.rmtree(tmp_path / "home")
    (tmp_path / "home").write_bytes(b"")  # no folder can be made there
    for _ in range(2):
        Shards.open(folder)
    assert len(checked) == 5


def test_rows_that_lie_on_each_other(folder: Path) -> None:
    """Two rows whose offsets are the wrong way round: an error of the sample, not of Python."""
    offsets = read_table(folder / "index.arrow").column("offset").to_pylist()
    replace(folder, "offset", 45, offsets[41])
    with pytest.raises(DataError, match=r"the index has sample 44 .* at the same bytes"):
        members(Shards.open(folder), 44)


def test_closed_folders_leave_nothing_for_forks(folder: Path) -> None:
    """Fifty folders opened and dropped: a fork has the living ones to see to, and none of those."""
    gc.collect()
    before = len(shard_folders._opened)
    kept = Shards.open(folder)
    for _ in range(50):
        Shards.open(folder)
    gc.collect()
    assert len(shard_folders._opened) == before + 1
    assert kept.read(0)

"""Verifying: every kind of damage is found, named by file, and nothing is found where there is none."""

import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from bamboo.datasets.atomic import sha256_file
from bamboo.datasets.index import read_table, write_index

Bamboo = Callable[..., tuple[int, str, str]]


def change_manifest(folder: Path, **changes: object) -> None:
    tree = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**tree, **changes}))


def change_shards(folder: Path, number: int, **changes: object) -> None:
    shards = json.loads((folder / "dataset.json").read_text())["shards"]
    shards[number].update(changes)
    change_manifest(folder, shards=shards)


def defects(bamboo: Bamboo, folder: Path, *options: object) -> list[str]:
    code, text, _ = bamboo("verify", folder, "--processes", 1, *options)
    *lines, verdict = text.splitlines()
    assert code == (1 if lines else 0)
    assert verdict.endswith(f"{len(lines)} defects" if lines else "no defect")
    return lines


@pytest.mark.parametrize("options", [(), ("--decode",), ("--processes", 2)])
def test_a_sound_folder_has_no_defect(packed: Path, bamboo: Bamboo, options: Sequence[object]) -> None:
    """A freshly packed folder: exit 0."""
    assert defects(bamboo, packed, *options) == []


def test_every_altered_byte_is_found(packed: Path, bamboo: Bamboo) -> None:
    """One flipped bit at forty random places (seeded) of a shard: found each time, and only there."""
    shard = packed / "shard-000001.tar"
    raw, places = shard.read_bytes(), random.Random(0)
    for place in places.sample(range(len(raw)), 40):
        shard.write_bytes(raw[:place] + bytes([raw[place] ^ 1 << places.randrange(8)]) + raw[place + 1 :])
        lines = defects(bamboo, packed)
        assert lines
        assert all(line.startswith("shard-000001.tar: ") for line in lines)
        assert "altered: its SHA-256" in lines[0]
    shard.write_bytes(raw)
    assert defects(bamboo, packed) == []


@pytest.mark.parametrize("cut", [0, 511, 5000, -1])
def test_a_truncated_shard_is_found(packed: Path, bamboo: Bamboo, cut: float) -> None:
    """A shard cut to nothing, inside its first header, in the middle, and by one byte."""
    shard = packed / "shard-000002.tar"
    os.truncate(shard, cut if cut >= 0 else shard.stat().st_size + cut)
    lines = defects(bamboo, packed)
    assert "shard-000002.tar: truncated:" in "\n".join(lines)


def test_swapped_missing_and_foreign_shards_are_found(packed: Path, bamboo: Bamboo) -> None:
    """Two shards exchanged are said to be; one removed is missing; a tar that nobody lists is named."""
    first, second, third = (packed / f"shard-00000{number}.tar" for number in range(3))
    first.rename(packed / "x"), second.rename(first), (packed / "x").rename(second)
    third.rename(packed / "other.tar")
    text = "\n".join(defects(bamboo, packed))
    assert "shard-000000.tar: swapped: it holds the content of shard-000001.tar" in text
    assert "shard-000001.tar: swapped: it holds the content of shard-000000.tar" in text
    assert "shard-000002.tar: missing" in text
    assert "other.tar: not in dataset.json" in text


@pytest.mark.parametrize(("column", "by"), [("offset", 512), ("size", -1), ("key_hash", 1), ("shard", 1)])
def test_an_index_that_does_not_fit_the_tars_is_found(packed: Path, bamboo: Bamboo, column: str, by: int) -> None:
    """A changed cell of the index, its hash in dataset.json made to fit: still found against the tar itself."""
    path = packed / "index.arrow"
    table = read_table(path)
    values = table.column(column).to_pylist()
    values[3] += by
    at = table.schema.get_field_index(column)
    changed = table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))
    write_index(packed / "new.arrow", [changed])
    del table, changed
    (packed / "new.arrow").rename(path)
    assert any(line.startswith("index.arrow: altered: its SHA-256") for line in defects(bamboo, packed))
    change_manifest(packed, index_sha256=sha256_file(path))
    assert any(line.startswith("shard-000000.tar: ") for line in defects(bamboo, packed))


def test_sizes_in_the_index_are_checked_by_decoding(packed: Path, bamboo: Bamboo) -> None:
    """A wrong width is found by --decode, with both sizes in the message."""
    path = packed / "index.arrow"
    table = read_table(path)
    at = table.schema.get_field_index("width")
    wrong = table.set_column(at, table.schema.field(at), pa.array([1, *table.column("width").to_pylist()[1:]], pa.int32()))
    write_index(path, [wrong])
    change_manifest(packed, index_sha256=sha256_file(path))
    assert not [line for line in defects(bamboo, packed) if "pixels" in line]
    assert [line for line in defects(bamboo, packed, "--decode") if "pixels, index.arrow says 1×" in line]


@pytest.mark.parametrize("damage", [b"", b"ARROW1\0\0garbage", None])
def test_a_damaged_index_is_found(packed: Path, bamboo: Bamboo, damage: bytes | None) -> None:
    """An empty, overwritten or missing index: named, and the shards are checked all the same."""
    path = packed / "index.arrow"
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    os.truncate(packed / "shard-000000.tar", 1000)
    text = "\n".join(defects(bamboo, packed))
    assert "index.arrow: " in text
    assert "shard-000000.tar: truncated" in text


def test_altered_counts_and_hashes_in_dataset_json_are_found(packed: Path, bamboo: Bamboo) -> None:
    """Every count and hash of dataset.json changed in turn: found."""
    sound = (packed / "dataset.json").read_text()
    tree = json.loads(sound)
    for change in (
        {"num_samples": 22},
        {"num_classes": 4},
        {"data_hash": "0" * 64},
        {"index_sha256": "0" * 64},
        {"classes": tree["classes"][::-1]},
        {"classes": tree["classes"][:2], "num_classes": 2},
        {"version": 99},
    ):
        change_manifest(packed, **change)
        assert defects(bamboo, packed), change
        (packed / "dataset.json").write_text(sound)
    for shard_change in ({"num_samples": 6}, {"size_bytes": 1}, {"sha256": "0" * 64}, {"name": "nobody.tar"}):
        change_shards(packed, 1, **shard_change)
        assert defects(bamboo, packed), shard_change
        (packed / "dataset.json").write_text(sound)
    change_shards(packed, 1, num_samples=6)
    change_manifest(packed, num_samples=20)
    assert "shard-000001.tar: holds 7 samples, dataset.json says 6" in defects(bamboo, packed)
    (packed / "dataset.json").write_text(sound[:100])
    assert "damaged" in defects(bamboo, packed)[0]


def test_what_is_no_shard_folder_is_the_users_mistake(tmp_path: Path, bamboo: Bamboo) -> None:
    """No folder, and a folder without dataset.json: exit 2 and how to make one."""
    assert bamboo("verify", tmp_path / "nowhere")[0] == 2
    code, _, errors = bamboo("verify", tmp_path)
    assert code == 2
    assert "bamboo shards pack SRC --out DIR" in errors

"""Indexing shards that others made, written here with the webdataset library's own writer."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from bamboo.cli.errors import DataError
from bamboo.datasets.index import read_index
from bamboo.datasets.manifest import read_manifest
from bamboo.datasets.shards import Shards
from bamboo.datasets.tars import scan

Bamboo = Callable[..., tuple[int, str, str]]
ImageBytes = Callable[..., bytes]


def write_shards(folder: Path, samples: list[dict[str, bytes]], per_shard: int = 3) -> dict[str, bytes]:
    """Writes samples with webdataset.ShardWriter and returns what the tars hold."""
    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/foreign-%04d.tar", maxcount=per_shard, verbose=0, encoder=False) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"dir/{number:04d}", **sample})
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


@pytest.fixture
def images(image_bytes: ImageBytes) -> list[bytes]:
    return [image_bytes(number, (20 + number, 15)) for number in range(7)]


def test_cls_labels_are_indexed_and_the_tars_untouched(tmp_path: Path, bamboo: Bamboo, images: list[bytes]) -> None:
    """Index rows against what webdataset.WebDataset reads from the same tars; tars byte-identical afterwards."""
    folder = tmp_path / "w"
    before = write_shards(folder, [{"jpg": data, "cls": str(number % 3).encode()} for number, data in enumerate(images)])
    code, text, errors = bamboo("index", folder, "--processes", 1)
    assert code == 0, errors
    assert "indexed 7 images of 3 classes in 3 shards" in text
    assert {path.name: path.read_bytes() for path in folder.glob("*.tar")} == before
    shards = Shards.open(folder)
    assert shards.shard_counts.tolist() == [3, 3, 1]
    urls = [str(folder / name) for name in sorted(before)]
    for number, sample in enumerate(webdataset.WebDataset(urls, shardshuffle=False)):
        assert shards.read(number) == sample["jpg"]
        assert shards.labels[number] == int(sample["cls"])
        assert (shards.index.width[number], shards.index.height[number]) == Image.open(io.BytesIO(sample["jpg"])).size
    assert bamboo("verify", folder, "--decode", "--processes", 1)[0] == 0


def test_json_labels_in_every_form(tmp_path: Path, bamboo: Bamboo, images: list[bytes]) -> None:
    """ "labels" with confidences, a field of another name, a class name, none at all: against hand-worked labels."""
    trees = [{"labels": [2, 0], "confidences": [0.5, 1]}, {"label": 1}, {"label": "dog"}, {"caption": "no label"}]
    folder = tmp_path / "w"
    write_shards(folder, [{"jpg": data, "json": json.dumps(tree).encode()} for data, tree in zip(images, trees, strict=False)])
    (tmp_path / "names").write_text("cat\ndog\nbird\n")
    assert bamboo("index", folder, "--classes", tmp_path / "names", "--processes", 1)[0] == 0
    index = read_index(folder / "index.arrow")
    assert [index.labels_of(i).tolist() for i in range(4)] == [[2, 0], [1], [1], []]
    assert index.confidences_of(0).tolist() == [0.5, 1.0]
    assert [entry.name for entry in read_manifest(folder).classes] == ["cat", "dog", "bird"]


@pytest.mark.parametrize(
    ("sample", "code", "message"),
    [
        ({"cls": b"3"}, 2, "foreign-0000.tar:dir/0000.cls: label 3 is outside the class list; allowed: 0 to 1"),
        ({"cls": b"fish"}, 2, "class 'fish' is not one of the 2 classes"),
        ({"json": b"{"}, 1, "dir/0000.json: not JSON"),
        ({"json": b'{"label": 1.5}'}, 1, "label 1.5 is neither an integer nor a class name; see --json-label"),
        ({"json": b'{"labels": [1], "confidences": [1, 1]}'}, 1, "allowed: 1 numbers from 0 to 1"),
        ({"jpg": b"<html>"}, 1, "not an image of a known format; use --unreadable skip"),
    ],
)
def test_wrong_samples_are_named(
    tmp_path: Path, bamboo: Bamboo, images: list[bytes], sample: dict[str, bytes], code: int, message: str
) -> None:
    """Wrong labels and images: shard, key and remedy in the message, and no index is written."""
    write_shards(tmp_path / "w", [{"jpg": images[0], **sample}])
    (tmp_path / "names").write_text("cat\ndog\n")
    found, _, errors = bamboo("index", tmp_path / "w", "--classes", tmp_path / "names", "--processes", 1)
    assert (found, message in errors) == (code, True), errors
    assert not (tmp_path / "w" / "index.arrow").exists()


def test_unreadable_samples_can_stay_out_of_the_index(tmp_path: Path, bamboo: Bamboo, images: list[bytes]) -> None:
    """--unreadable skip: counted, left out, and `verify` knows; two worker processes."""
    samples = [{"jpg": data, "cls": b"0"} for data in images]
    samples[1], samples[5] = {"jpg": b"<html>", "cls": b"0"}, {"txt": b"no image"}
    write_shards(tmp_path / "w", samples)
    code, text, _ = bamboo("index", tmp_path / "w", "--unreadable", "skip", "--processes", 2)
    assert code == 0
    assert "indexed 5 images, 2 left out" in text
    assert Shards.open(tmp_path / "w").shard_counts.tolist() == [2, 2, 1]
    assert bamboo("verify", tmp_path / "w", "--processes", 1)[0] == 0


def test_an_index_is_replaced_only_when_asked(packed: Path, bamboo: Bamboo) -> None:
    """`index` over a packed folder: exit 2; with --overwrite the same rows and classes as `pack` wrote."""
    before, classes = read_index(packed / "index.arrow"), read_manifest(packed).classes
    columns = [column.copy() for column in (before.offset, before.labels, before.width, before.key_hash)]
    code, _, errors = bamboo("index", packed)
    assert code == 2
    assert "--overwrite" in errors
    assert bamboo("index", packed, "--overwrite", "--processes", 1)[0] == 0
    after = read_index(packed / "index.arrow")
    assert all(np.array_equal(*pair) for pair in zip(columns, (after.offset, after.labels, after.width, after.key_hash), strict=True))
    assert read_manifest(packed).classes == classes


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_compressed_tars_are_refused_with_a_remedy(tmp_path: Path, bamboo: Bamboo, images: list[bytes], name: str) -> None:
    """A gzipped tar, whatever it is called: exit 2 and the command that decompresses it."""
    write_shards(tmp_path / "w", [{"jpg": images[0]}])
    tar = tmp_path / "w" / "foreign-0000.tar"
    (tmp_path / "w" / name).write_bytes(gzip.compress(tar.read_bytes()))
    code, _, errors = bamboo("index", tmp_path / "w")
    assert code == 2
    assert f"gzip -d < {name} >" in errors


def test_no_tars(tmp_path: Path, bamboo: Bamboo) -> None:
    """A folder without tars, and none at all: exit 2 and what to do."""
    assert bamboo("index", tmp_path)[::2] == (
        2,
        f"bamboo shards: FOLDER={tmp_path}: no *.tar in it; to make shards from images: bamboo shards pack SRC --out DIR\n",
    )
    assert bamboo("index", tmp_path / "nowhere")[0] == 2


def test_samples_are_grouped_as_webdataset_groups_them(tmp_path: Path, image_bytes: ImageBytes) -> None:
    """Keys with folders and dots, capital extensions, long names, meta members and directories, against webdataset's grouping."""
    path, data = tmp_path / "a.tar", image_bytes()
    long = "d" * 120 + "/" + "x" * 130
    names = ["a/b.JPG", "a/b.json", "a/b.seg.png", "c.d/e.jpg", "noextension", f"{long}.jpg", f"{long}.cls", "__meta__/x.jpg"]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with tarfile.open(path, "w", format=form) as tar:
            for name in ["folder", *names]:
                member = tarfile.TarInfo(name)
                if name == "folder":
                    member.type = tarfile.DIRTYPE
                    tar.addfile(member)
                    continue
                content = json.dumps({"of": name}).encode() if name.endswith("json") else data + name.encode()
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        read = webdataset.WebDataset(str(path), shardshuffle=False)
        expected = [{k: v for k, v in sample.items() if k not in ("__url__", "__local_path__")} for sample in read]
        raw = path.read_bytes()
        ours = [
            {"__key__": sample.key, **{extension: raw[at.offset : at.offset + at.size] for extension, at in sample.members.items()}}
            for sample in scan(path)
        ]
        assert ours == expected


@pytest.mark.parametrize("cut", [0.3, 0.6, 0.95])
def test_a_truncated_tar_is_an_error(tmp_path: Path, bamboo: Bamboo, images: list[bytes], cut: float) -> None:
    """A foreign shard cut anywhere: exit 1, the shard named, no index."""
    write_shards(tmp_path / "w", [{"jpg": data, "cls": b"0"} for data in images], per_shard=100)
    shard = tmp_path / "w" / "foreign-0000.tar"
    with tarfile.open(shard) as tar:
        end = max(member.offset_data + member.size for member in tar)
    shard.write_bytes(shard.read_bytes()[: int(end * cut)])
    code, _, errors = bamboo("index", tmp_path / "w", "--processes", 1)
    assert code == 1
    assert "foreign-0000.tar" in errors
    assert not (tmp_path / "w" / "index.arrow").exists()


def test_a_damaged_header_is_an_error_not_the_end(tmp_path: Path, images: list[bytes]) -> None:
    """A flipped byte in the third header: DataError, where Python's tarfile silently stops."""
    write_shards(tmp_path / "w", [{"jpg": data} for data in images], per_shard=100)
    shard = tmp_path / "w" / "foreign-0000.tar"
    raw = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        header = tar.getmembers()[2].offset
    raw[header + 5] ^= 1
    shard.write_bytes(raw)
    with tarfile.open(shard) as tar:
        assert len(tar.getmembers()) == 2
    with pytest.raises(DataError, match="damaged"):
        list(scan(shard))

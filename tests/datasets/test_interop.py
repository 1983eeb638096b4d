"""Shards of others in our stream, and ours in theirs: the webdataset library's own writer and reader, and img2dataset's layout."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from bamboo.cli.errors import DataError
from bamboo.datasets.augment.crops import EvalView, TrainView
from bamboo.datasets.manifest import read_manifest
from bamboo.datasets.members import caption, members, metadata
from bamboo.datasets.plan.order import Order
from bamboo.datasets.shards import Shards
from bamboo.datasets.stream.batches import EvalBatches, TrainBatches
from bamboo.datasets.stream.loader import load_batches

Bamboo = Callable[..., tuple[int, str, str]]
ImageBytes = Callable[..., bytes]

SIDE = 16
WHOLE = TrainView(SIDE, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, interpolation="bilinear")
"""The view that leaves a square image of `SIDE` pixels as it is."""


def read_tars(folder: Path) -> list[dict[str, Any]]:
    """Returns the samples as webdataset groups them, its own entries left out."""
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = webdataset.WebDataset(urls, shardshuffle=False)
    return [{name: value for name, value in sample.items() if name not in ("__url__", "__local_path__")} for sample in samples]


def write_img2dataset(folder: Path, images: list[bytes | None], per_shard: int = 4) -> None:
    """Writes tars, parquet and statistics under img2dataset's names; an image that could not be had leaves its text and JSON alone."""
    folder.mkdir()
    for shard, start in enumerate(range(0, len(images), per_shard)):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar"), encoder=False) as writer:
            for number, data in enumerate(images[start : start + per_shard]):
                key, text = f"{shard:05d}{number:04d}", f"caption {start + number}" if number != 1 else ""
                status = {"status": "success", "error_message": None, "width": SIDE, "height": SIDE, "original_width": 2 * SIDE}
                failed = {"status": "failed_to_download", "error_message": "HTTP Error 404: Not Found", "width": None, "height": None}
                tree = {
                    "caption": text,
                    "url": f"http://host/{start + number}.jpg",
                    "key": key,
                    **(status if data else failed),
                    "sha256": None,
                }
                image = {"jpg": data} if data else {}
                writer.write({"__key__": key, **image, "txt": text.encode(), "json": json.dumps(tree, indent=4).encode()})
        (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1PAR1")
        (folder / f"{shard:05d}_stats.json").write_text('{"count": 4, "successes": 3}')


def test_img2datasets_folders_stream_as_they_are(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """Captions, JSON and pixels against webdataset's reading; failed samples left out and listed; no file is changed but ours."""
    folder, images = tmp_path / "laion", [image_bytes(number, (SIDE, SIDE)) if number % 4 != 2 else None for number in range(11)]
    write_img2dataset(folder, images)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, _, errors = bamboo("index", folder, "--processes", 1)
    assert (code, "000000002: has no image among its members (json, txt)" in errors) == (1, True), errors
    code, text, errors = bamboo("index", folder, "--unreadable", "skip", "--processes", 1)
    assert code == 0, errors
    assert "indexed 8 images, 3 left out (listed in dataset.json) of 0 classes in 3 shards" in text
    lost = {"00000.tar": ["000000002"], "00001.tar": ["000010002"], "00002.tar": ["000020002"]}
    assert read_manifest(folder).made_by["skipped"] == lost
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert bamboo("verify", folder, "--decode", "--processes", 1)[0] == 0
    shards, samples = Shards.open(folder), [sample for sample in read_tars(folder) if "jpg" in sample]
    assert len(shards) == len(samples) == 8
    for number, sample in enumerate(samples):
        found = members(shards, number)
        assert found == {name: value for name, value in sample.items() if name != "__key__"}
        assert caption(shards, number) == (sample["txt"].decode() or None)
        assert metadata(shards, number) == json.loads(sample["json"])
    evaluation = EvalBatches(shards, EvalView(SIDE, crop_fraction=1.0, interpolation="bilinear"), 4)
    streamed = [
        (image.clone(), label) for batch in load_batches(evaluation, range(2), workers=0) for image, label in zip(*batch[:2], strict=True)
    ]
    for (image, label), sample in zip(streamed, samples, strict=True):
        assert label == -1
        assert torch.equal(image, torch.tensor(np.asarray(Image.open(io.BytesIO(sample["jpg"])))))


@pytest.mark.parametrize("workers", [0, 2])
def test_shard_writers_folders_stream_with_the_right_pixels(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes, workers: int) -> None:
    """An epoch of TrainBatches over ShardWriter's tars, images last in theirs, against webdataset's decoding: pixels and labels."""
    folder = tmp_path / "w"
    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/w-%04d.tar", maxcount=7, verbose=0) as writer:
        for number in range(30):
            image = image_bytes(number, (SIDE, SIDE), "PNG")
            writer.write({"__key__": f"a/{number:04d}", "png": image, "cls": number % 5, "json": {"n": number}, "txt": f"no. {number}"})
    assert bamboo("index", folder, "--processes", 1)[0] == 0
    shards = Shards.open(folder)
    urls = [str(folder / entry.name) for entry in shards.manifest.shards]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    source = TrainBatches(shards, Order(shards.shard_counts, seed=3, window=2), WHOLE, 6, 0, 1)
    seen = []
    for batch in load_batches(source, range(5), workers=workers):
        for image, label, sample in zip(batch.images, batch.labels.tolist(), batch.ids.tolist(), strict=True):
            assert torch.equal(image, torch.tensor(theirs[sample]["png"]))
            assert label == theirs[sample]["cls"]
            assert (caption(shards, sample), metadata(shards, sample)) == (theirs[sample]["txt"], theirs[sample]["json"])
            seen.append(sample)
    assert sorted(seen) == list(range(30))


def write_tar(path: Path, names: list[str], image: bytes, form: int) -> dict[str, bytes]:
    """Writes members of these names, images or texts by their extension, and returns what they hold."""
    held = {}
    with tarfile.open(path, "w", format=form) as tar:
        for number, name in enumerate(names):
            held[name] = image + bytes([number]) if name.lower().endswith(("jpg", "png")) else f"text {number}".encode() * 200
            member = tarfile.TarInfo(name)
            member.size = len(held[name])
            tar.addfile(member, io.BytesIO(held[name]))
    return held


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_members_wherever_they_lie(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes, form: int) -> None:
    """Members before and after the image, second images, long and non-ASCII names, samples without images: webdataset's groups."""
    folder, long = tmp_path / "w", "d" * 120 + "/" + "é" * 60
    folder.mkdir()
    names = [
        *("a.txt", "a.json.old", "a.jpg", "b.JPG", "b.txt", "c.cls.txt", "c.txt", "d.txt", "d.jpg", "d.mask.png", "d.zz"),
        *(f"{long}.a", f"{long}.jpg", f"{long}.txt", "none.txt", "e.aa", "e.png", "notes", "e.zz", "last.txt"),
    ]
    write_tar(folder / "0.tar", names, image_bytes(), form)
    write_tar(folder / "1.tar", ["x.txt", "x.jpg"], image_bytes(), form)
    assert bamboo("index", folder, "--unreadable", "skip", "--processes", 1)[0] == 0
    shards = Shards.open(folder)
    theirs = [sample for sample in read_tars(folder) if sample.keys() & {"jpg", "png"}]
    assert [members(shards, number) for number in range(len(shards))] == [
        {name: value for name, value in sample.items() if name != "__key__"} for sample in theirs
    ]
    assert [sample["__key__"] for sample in theirs] == ["a", "b", "d", long, "e", "x"]


def test_only_the_stretch_between_neighbours_is_read(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One read of a shard per sample, and no further than the neighbours' images."""
    shards, reads = Shards.open(packed), []
    read_at = shards.read_at

    def noted(shard: int, offset: int, size: int) -> bytes:
        reads.append((shard, offset, size))
        return read_at(shard, offset, size)

    monkeypatch.setattr(shards, "read_at", noted)
    for sample in range(len(shards)):
        reads.clear()
        assert members(shards, sample)["json"]
        ((shard, offset, size),) = reads
        inside = [int(at) for at in shards.index.offset[shards.index.shard == shard]]
        assert sum(offset <= at < offset + size for at in inside) == 1


def test_damage_near_a_sample_is_named(tmp_path: Path, packed: Path) -> None:
    """A header overwritten, or the shard cut, after the index was made: DataError with the shard's name."""
    shards = Shards.open(packed)
    victim = packed / shards.manifest.shards[1].name
    whole, sample = victim.read_bytes(), 9
    header = int(shards.index.offset[sample]) - 512
    for damaged in (whole[:header] + b"x" * 512 + whole[header + 512 :], whole[: header + 600]):
        victim.write_bytes(damaged)
        with pytest.raises(DataError, match=victim.name):
            members(Shards.open(packed) if len(damaged) == len(whole) else shards, sample)
    assert members(shards, 0)


def test_captions_of_every_kind(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """.txt before the JSON's "caption", a list of captions, none at all, a JSON member that is none: worked by hand."""
    trees = [{"caption": "json"}, {"caption": ["one", "two"]}, {"caption": None}, {}, [1, 2]]
    folder = tmp_path / "w"
    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/%04d.tar", maxcount=10, verbose=0, encoder=False) as writer:
        for number, tree in enumerate(trees):
            text = {"txt": b" a text\n"} if number == 0 else {}
            writer.write({"__key__": f"{number:03d}", "jpg": image_bytes(number), "json": json.dumps(tree).encode(), **text})
        writer.write({"__key__": "bare", "jpg": image_bytes(9)})
        writer.write({"__key__": "broken", "jpg": image_bytes(9), "cls": b"0", "json": b"{"})
    assert bamboo("index", folder, "--processes", 1)[0] == 0
    shards = Shards.open(folder)
    assert [caption(shards, number) for number in range(6)] == ["a text", "one\ntwo", None, None, None, None]
    assert [metadata(shards, number) for number in range(6)] == [*trees[:4], {}, {}]
    with pytest.raises(DataError, match=r"broken.* is not JSON"):
        metadata(shards, 6)


def test_ours_stream_in_webdataset(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """Shards packed from an LMDB with captions, in webdataset's own decoding: pixels, captions, labels and gains."""
    pool = tmp_path / "pool"
    for number in range(6):
        path = pool / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(number, (SIDE, SIDE), "PNG"))
    names = sorted(path.relative_to(pool).as_posix() for path in pool.rglob("*.png"))
    listed = [{"image": name, "caption": [f"a {name}", "again"], "gains": ["0.5", "0.25"]} for name in names]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    assert bamboo("pack", pool, "--to", "lmdb", "--out", tmp_path / "l", "--processes", 1)[0] == 0
    options = ("--annotations", tmp_path / "list.json", "--samples-per-shard", 4, "--processes", 1)
    assert bamboo("pack", tmp_path / "l", "--out", tmp_path / "s", *options)[0] == 0
    urls = [str(path) for path in sorted((tmp_path / "s").glob("*.tar"))]
    seen = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("png", "txt", "json"))
    assert sorted(tree["source"] for _, _, tree in seen) == names
    for pixels, text, tree in seen:
        assert (pixels == np.asarray(Image.open(pool / tree["source"]))).all()
        assert text == f"a {tree['source']}\nagain"
        assert tree["labels"] == [("cat", "dog").index(tree["source"].partition("/")[0])]
        assert (tree["image_gain"], tree["text_gain"]) == (0.5, 0.25)


def test_repacking_keeps_what_others_wrote(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """img2dataset's shards packed anew, and through an LMDB: captions and JSON as they were, in webdataset's reading."""
    folder = tmp_path / "laion"
    write_img2dataset(folder, [image_bytes(number, (SIDE, SIDE)) for number in range(6)])
    assert bamboo("index", folder, "--processes", 1)[0] == 0
    plain = ("--shuffle", "none", "--processes", 1)
    assert bamboo("pack", folder, "--out", tmp_path / "s", *plain)[0] == 0
    assert bamboo("pack", folder, "--to", "lmdb", "--out", tmp_path / "l", *plain)[0] == 0
    assert bamboo("pack", tmp_path / "l", "--out", tmp_path / "t", *plain)[0] == 0
    theirs = read_tars(folder)
    for name in ("s", "t"):
        ours = read_tars(tmp_path / name)
        assert [sample["jpg"] for sample in ours] == [sample["jpg"] for sample in theirs]
        assert [sample.get("txt", b"") for sample in ours] == [sample["txt"] for sample in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert json.loads(one["json"]) == {**json.loads(other["json"]), "labels": [], "source": f"{other['__key__']}.jpg"}
    captions = [entry.get("caption") for entry in json.loads((tmp_path / "l" / "annotations.json").read_text())]
    assert captions == [sample["txt"].decode() for sample in theirs]


def test_names_that_repeat_get_their_shard(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """Two tars with the same keys: the shard's name goes before them, so that an LMDB takes both."""
    folder = tmp_path / "w"
    folder.mkdir()
    for shard in ("x", "y"):
        with webdataset.TarWriter(str(folder / f"{shard}.tar"), encoder=False) as writer:
            writer.write({"__key__": "0", "jpg": image_bytes(ord(shard))})
    assert bamboo("index", folder, "--processes", 1)[0] == 0
    assert bamboo("pack", folder, "--to", "lmdb", "--out", tmp_path / "l", "--processes", 1)[0] == 0
    assert [entry["image"] for entry in json.loads((tmp_path / "l" / "annotations.json").read_text())] == ["x/0.jpg", "y/0.jpg"]

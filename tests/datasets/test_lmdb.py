"""Packing from LMDBs that others wrote, here with the lmdb library as InfoGrowth does, and from Bamboo's own."""

import json
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lmdb
import pytest
import webdataset

from bamboo.cli.errors import UserError
from bamboo.datasets.annotations import read_annotations
from bamboo.datasets.lmdb_files import LmdbFile
from bamboo.datasets.lmdb_source import lmdb_source
from bamboo.datasets.manifest import read_manifest
from bamboo.datasets.members import caption, metadata
from bamboo.datasets.shards import Shards

Bamboo = Callable[..., tuple[int, str, str]]
ImageBytes = Callable[..., bytes]


def write_lmdb(path: Path, values: Mapping[str, bytes], *, subdir: bool = True) -> Path:
    """Writes values as InfoGrowth's writer does: one transaction each, keys as they come."""
    with lmdb.open(str(path), map_size=1 << 24, subdir=subdir) as environment:
        for key, value in values.items():
            with environment.begin(write=True) as transaction:
                transaction.put(key.encode(), value)
    return path


def read_shards(folder: Path) -> list[dict[str, Any]]:
    urls = [str(folder / entry.name) for entry in read_manifest(folder).shards]
    return list(webdataset.WebDataset(urls, shardshuffle=False))


@pytest.fixture
def images(image_bytes: ImageBytes) -> dict[str, bytes]:
    """Five images by key, out of order: two classes, and one in no folder."""
    keys = ("dog/2.jpg", "cat/1.jpg", "cat/0.png", "loose.jpg", "dog/0.jpg")
    return {key: image_bytes(number, (20, 14), "PNG" if key.endswith("png") else "JPEG") for number, key in enumerate(keys)}


@pytest.mark.parametrize("subdir", [True, False])
def test_keys_are_names_and_folders_classes(tmp_path: Path, bamboo: Bamboo, images: dict[str, bytes], subdir: bool) -> None:
    """A folder or a lone file, told by itself: sorted keys, bytes kept, classes of the folder part, in webdataset's reading."""
    source = write_lmdb(tmp_path / "in.lmdb", images, subdir=subdir)
    code, _, errors = bamboo("pack", source, "--out", tmp_path / "o", "--shuffle", "none", "--processes", 1)
    assert code == 0, errors
    assert "1 images lie in no class folder" in errors
    samples = read_shards(tmp_path / "o")
    trees = [json.loads(sample["json"]) for sample in samples]
    assert [tree["source"] for tree in trees] == sorted(images)
    assert [tree["labels"] for tree in trees] == [[0], [0], [1], [1], []]
    assert [sample.get("jpg", sample.get("png")) for sample in samples] == [images[key] for key in sorted(images)]
    assert [entry.name for entry in read_manifest(tmp_path / "o").classes] == ["cat", "dog"]
    assert bamboo("verify", tmp_path / "o", "--decode", "--processes", 1)[0] == 0


def test_subdir_and_classes(tmp_path: Path, bamboo: Bamboo, images: dict[str, bytes]) -> None:
    """--subdir takes the keys below a folder and names relative to it; --classes gives the ids."""
    source = write_lmdb(tmp_path / "in", {**{f"train/{key}": data for key, data in images.items()}, "val/cat/9.jpg": images["dog/0.jpg"]})
    (tmp_path / "names").write_text("dog\nbird\ncat\n")
    options = ("--subdir", "train", "--classes", tmp_path / "names", "--shuffle", "none", "--processes", 1)
    assert bamboo("pack", source, "--out", tmp_path / "o", *options)[0] == 0
    trees = [json.loads(sample["json"]) for sample in read_shards(tmp_path / "o")]
    assert {tree["source"]: tree["labels"] for tree in trees} == {
        "cat/0.png": [2], "cat/1.jpg": [2], "dog/0.jpg": [0], "dog/2.jpg": [0], "loose.jpg": [],
    }  # fmt: skip
    assert "no images below --subdir=nowhere" in bamboo("pack", source, "--out", tmp_path / "p", "--subdir", "nowhere")[2]


@pytest.mark.parametrize("strip", [0, 4, -4])
def test_captions_and_gains_of_infogrowths_list(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes, strip: int) -> None:
    """Keys as written, keys without the last four characters (InfoGrowth's reader), names without extension: KEY.txt and KEY.json."""
    keys = {f"{number}.jpg": image_bytes(number) for number in range(4)}
    stored = {key[: -max(strip, 0) or None]: data for key, data in keys.items()}
    listed: list[dict[str, Any]] = [
        {"image": "2.jpg", "caption": ["a cat", "two\ncats "], "gains": ["0.25", "1e-1"], "raw_score": [0.5, "0.75"]},
        {"image": "0.jpg", "caption": "a dog – gespaßig", "gains": ["0.5", "0.125"]},
        {"image": "1.jpg"},
    ]
    for entry in listed:
        entry["image"] = str(entry["image"])[: min(strip, 0) or None]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    source = write_lmdb(tmp_path / "in", stored)
    options = ("--annotations", tmp_path / "list.json", "--shuffle", "none", "--processes", 1)
    code, _, errors = bamboo("pack", source, "--out", tmp_path / "o", *options)
    assert code == 0, errors
    assert "1 images that" in errors
    shards, samples = Shards.open(tmp_path / "o"), read_shards(tmp_path / "o")
    assert [sample["jpg"] for sample in samples] == [keys["0.jpg"], keys["1.jpg"], keys["2.jpg"]]
    assert [sample.get("txt") for sample in samples] == ["a dog – gespaßig".encode(), None, b"a cat\ntwo cats"]
    assert [caption(shards, number) for number in range(3)] == ["a dog – gespaßig", None, "a cat\ntwo cats"]
    names = [str(listed[place]["image"]) for place in (1, 2, 0)]
    gains = [{"image_gain": 0.5, "text_gain": 0.125}, {}, {"image_gain": 0.25, "text_gain": 0.1, "raw_score": [0.5, 0.75]}]
    for number, (name, gain) in enumerate(zip(names, gains, strict=True)):
        source_name = f"{number}.jpg"[: -max(strip, 0) or None]
        assert metadata(shards, number) == {"image": name, **gain, "labels": [], "source": source_name}


@pytest.mark.parametrize(
    ("key", "image"),
    [
        ("a.jpg", "a.jpg"),
        ("a", "a.jpg"),
        ("a.", "a.jpeg"),
        ("a", "a.jpeg"),
        ("a.webp", "a"),
        ("x/a.b.jpg", "x/a.b"),
        ("x/a.b", "x/a.b.png"),
    ],
)
def test_names_in_every_spelling(tmp_path: Path, image_bytes: ImageBytes, key: str, image: str) -> None:
    """A list's name against keys with, without and with another end: found; the image's own name first where both are there."""
    (tmp_path / "list.json").write_text(json.dumps([{"image": image, "caption": "x"}]))
    found = lmdb_source(write_lmdb(tmp_path / "in", {key: image_bytes(1)}), "", tmp_path / "list.json", None)
    assert [(record.name, record.captions) for record in found.records] == [(key, ("x",))]
    both = lmdb_source(write_lmdb(tmp_path / "both", {key: image_bytes(1), image: image_bytes(2)}), "", tmp_path / "list.json", None)
    assert [record.name for record in both.records] == [image]


def test_missing_and_bad_images_fail_or_are_listed(tmp_path: Path, bamboo: Bamboo, images: dict[str, bytes]) -> None:
    """A key that the list names in vain and a value that is no image: exit 1 with names; with skip counted and in skipped.tsv."""
    source = write_lmdb(tmp_path / "in", {**images, "dog/2.jpg": b"<html>"})
    (tmp_path / "list.json").write_text(json.dumps([{"image": name} for name in ("cat/1.jpg", "gone.jpg", "dog/2.jpg")]))
    command = ("pack", source, "--out", tmp_path / "o", "--annotations", tmp_path / "list.json", "--processes", 1)
    code, _, errors = bamboo(*command)
    assert (code, (tmp_path / "o").exists()) == (1, False)
    assert "1 of 3 images are missing: gone.jpg" in errors
    assert bamboo(*command, "--unreadable", "skip")[0] == 0
    lines = (tmp_path / "o" / "skipped.tsv").read_text().splitlines()[1:]
    assert sorted(lines) == ["dog/2.jpg\tnot an image of a known format", "gone.jpg\tcannot be read (no such key)"]
    assert (read_manifest(tmp_path / "o").num_samples, read_manifest(tmp_path / "o").made_by["num_skipped"]) == (1, 2)
    code, _, errors = bamboo("pack", source, "--out", tmp_path / "p", "--processes", 1)
    assert (code, "dog/2.jpg: not an image of a known format" in errors) == (1, True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "not a JSON list"),
        ("[", "cannot be read as JSON"),
        ("[]", "an empty list"),
        ('[{"caption": "x"}]', "entry 0: not an object with the name"),
        ('[{"image": "a", "caption": 3}]', "caption 3; allowed: a string or a list of strings"),
        ('[{"image": "a", "gains": ["1"]}]', "gains ['1']; allowed: two numbers"),
        ('[{"image": "a", "gains": ["1", "nan"]}]', "gains holds 'nan'"),
        ('[{"image": "a", "gains": ["1", "2"]}, {"image": "a", "gains": ["1", "3"]}]', "entry 1: 'a' stands there before"),
    ],
)
def test_wrong_lists_are_the_users_mistake(tmp_path: Path, content: str, message: str) -> None:
    """Each wrong list of annotations: UserError with file, entry and what is allowed."""
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(UserError) as caught:
        read_annotations(tmp_path / "list.json")
    assert message in str(caught.value)
    assert "list.json" in str(caught.value)


def test_captions_of_several_entries_are_put_together(tmp_path: Path) -> None:
    """COCO's form, an object per caption: one annotation with all captions in order."""
    (tmp_path / "list.json").write_text(json.dumps([{"image": "a", "caption": "x"}, {"image": "b"}, {"image": "a", "caption": ["y", "z"]}]))
    found = read_annotations(tmp_path / "list.json")
    assert {name: annotation.captions for name, annotation in found.items()} == {"a": ("x", "y", "z"), "b": ()}


def test_what_is_no_image_database(tmp_path: Path, bamboo: Bamboo, images: dict[str, bytes]) -> None:
    """An empty LMDB, one of other values, one whose list fits nothing, options that do not belong: exit 2 and a sentence."""
    (tmp_path / "list.json").write_text('[{"image": "x/9.jpg"}]')
    (tmp_path / "names.txt").write_text("x.jpg 0\n")
    good = write_lmdb(tmp_path / "good", images)
    for src, options, message in (
        (write_lmdb(tmp_path / "empty", {}), (), "no images; the LMDB is empty"),
        (write_lmdb(tmp_path / "text", {"__len__": b"\xff\xd8\xff", "a": b"0123456789"}), (), "no encoded images (the value of 'a'"),
        (good, ("--annotations", tmp_path / "list.json"), "none of its 1 images is in the LMDB: x/9.jpg; its keys are cat/0.png"),
        (tmp_path / "names.txt", ("--annotations", tmp_path / "list.json"), "only for an LMDB"),
        (tmp_path / "names.txt", ("--format", "lmdb"), "neither a folder with data.mdb nor an LMDB file"),
        (good, ("--root", tmp_path), "only for lists"),
    ):
        code, _, errors = bamboo("pack", src, "--out", tmp_path / "o", *options)
        assert (code, message in errors) == (2, True), errors
    assert not (tmp_path / "o").exists()


def test_without_the_package(tmp_path: Path, bamboo: Bamboo, images: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """From and to an LMDB without `lmdb`: exit 2 and the extra, before any work."""
    source = write_lmdb(tmp_path / "in", images)
    (tmp_path / "a.jpg").write_bytes(images["dog/0.jpg"])
    (tmp_path / "list").write_text("a.jpg 0\n")
    for module in [name for name in sys.modules if name.partition(".")[0] == "lmdb"]:
        monkeypatch.setitem(sys.modules, module, None)
    for options in ((source,), (tmp_path / "list", "--to", "lmdb")):
        code, _, errors = bamboo("pack", *options, "--out", tmp_path / "o")
        assert (code, "pip install 'bamboo-vision[lmdb]'" in errors, (tmp_path / "o").exists()) == (2, True, False)


@pytest.mark.parametrize("damage", ["no byte", "half a page", "two pages", "half", "a page", "leaf"])
def test_damaged_files_are_errors(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes, damage: str) -> None:
    """Cut anywhere, or a page overwritten: exit 1 and the file's name, where the LMDB library alone would end the process."""
    source = write_lmdb(tmp_path / "in", {f"{number:03d}.png": image_bytes(number, (60, 60), "PNG") for number in range(40)})
    data = source / "data.mdb"
    raw = data.read_bytes()
    pages = [raw[at : at + 4096] for at in range(0, len(raw), 4096)]
    leaf = next(number for number, page in enumerate(pages) if number > 1 and page[10] & 2)
    damaged = {
        "no byte": b"",
        "half a page": raw[:2048],
        "two pages": raw[:8192],
        "half": raw[: len(raw) // 2],
        "a page": raw[:-4096],
        "leaf": raw[: leaf * 4096] + bytes(64) + raw[leaf * 4096 + 64 :],
    }
    data.write_bytes(damaged[damage])
    code, _, errors = bamboo("pack", source, "--out", tmp_path / "o", "--processes", 1)
    assert (code, "data.mdb: " in errors) == (1, True), errors
    assert not (tmp_path / "o").exists()


def test_worker_processes_and_copies_read_alike(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """Two worker processes against one: the same bytes; a pickled copy in the same process shares the environment."""
    values = {f"c{number % 3}/{number}.jpg": image_bytes(number) for number in range(12)}
    source = write_lmdb(tmp_path / "in", values)
    for processes in (1, 2):
        options = ("--samples-per-shard", 3, "--processes", processes)
        assert bamboo("pack", source, "--out", tmp_path / f"o{processes}", *options)[0] == 0
    assert all(path.read_bytes() == (tmp_path / "o2" / path.name).read_bytes() for path in (tmp_path / "o1").iterdir())
    file = LmdbFile(source)
    assert file.read(b"c0/0.jpg") == values["c0/0.jpg"]
    assert pickle.loads(pickle.dumps(file)).read(b"c1/1.jpg") == values["c1/1.jpg"]
    assert file.read(b"nothing") is None


def test_a_forked_process_opens_its_own(tmp_path: Path, images: dict[str, bytes]) -> None:
    """After a fork the environment that came along is closed in the child, which opens another; the parent's goes on."""
    file = LmdbFile(write_lmdb(tmp_path / "in", images))
    assert file.read(b"loose.jpg") == images["loose.jpg"]
    inherited = file._environment
    assert inherited is not None
    child = os.fork()
    if child == 0:
        same = file.read(b"loose.jpg") == images["loose.jpg"]
        try:
            inherited.begin()
        except lmdb.Error:
            os._exit(0 if same else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert file._environment is inherited
    assert file.read(b"dog/0.jpg") == images["dog/0.jpg"]

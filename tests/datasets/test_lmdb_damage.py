"""What strangers' annotations, LMDBs and shards may hold in place of what they should: errors with file, key and remedy."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import pyarrow as pa
import pytest

from bamboo.cli.errors import DataError, UserError
from bamboo.datasets import shard_source as shard_source_module
from bamboo.datasets.annotations import read_annotations
from bamboo.datasets.lmdb_files import open_lmdb
from bamboo.datasets.lmdb_layout import read_lmdb_manifest, read_rows
from bamboo.datasets.lmdb_source import lmdb_source
from bamboo.datasets.shard_source import shard_source
from bamboo.datasets.sources import Record

Bamboo = Callable[..., tuple[int, str, str]]
ImageBytes = Callable[..., bytes]

DEEP = "[" * 200_000
MANIFEST, ROWS = "__bamboo__/manifest", "__bamboo__/rows/00000000"
COLUMNS: dict[str, pa.DataType] = {
    "key": pa.binary(),
    "labels": pa.list_(pa.int32()),
    "confidences": pa.list_(pa.float64()),
    "captions": pa.list_(pa.string()),
    "fields": pa.string(),
}


def named(value: str | bytes) -> str | None:
    """Returns the part of a test's name that stands for a long value."""
    return f"{len(value)} long" if len(value) > 60 else None


def rows(*changes: dict[str, Any], columns: dict[str, pa.DataType] = COLUMNS) -> bytes:
    """Returns a chunk of one row a change, of the image a/x.png unless it says otherwise."""
    row = {"key": b"a/x.png", "labels": [0], "confidences": None, "captions": [], "fields": "{}"}
    schema, sink = pa.schema(list(columns.items())), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.Table.from_pylist([{**row, **change} for change in changes], schema=schema))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def manifest(**changes: Any) -> bytes:
    """Returns the manifest of one image and one class, with values changed."""
    tree = {"format": "bamboo-lmdb", "version": 1, "num_samples": 1, "data_hash": "0", "num_chunks": 1, "made_by": {}}
    return json.dumps({**tree, "classes": [{"name": "a", "parent": None}], **changes}).encode()


@pytest.fixture
def records(tmp_path: Path, image_bytes: ImageBytes) -> Callable[[bytes, bytes], list[Record]]:
    """Writes an LMDB with one image, a manifest and a chunk, by the lmdb library, and returns its records."""

    def read(about: bytes, chunk: bytes) -> list[Record]:
        with lmdb.open(str(tmp_path / "l"), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"a/x.png", image_bytes(1, (8, 8), "PNG"))
            transaction.put(MANIFEST.encode(), about)
            transaction.put(ROWS.encode(), chunk)
        return list(lmdb_source(tmp_path / "l", "", None, None).records)

    return read


def test_a_sound_lmdb_written_here_is_read(records: Callable[[bytes, bytes], list[Record]]) -> None:
    """The writer of this file, unchanged and with everything set, against the record: what follows fails by its change alone."""
    (plain,) = records(manifest(), rows({}))
    assert (plain.name, plain.labels, plain.captions, plain.fields) == ("a/x.png", (0,), (), {})
    (full,) = records(manifest(), rows({"confidences": [0.5], "captions": ["é"], "fields": '{"a": [1]}'}))
    assert (full.confidences, full.captions, full.fields) == ((0.5,), ("é",), {"a": [1]})


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (rows({"labels": [7]}), "'a/x.png' has class 7; its manifest has 1 classes"),
        (rows({"labels": [-1]}), "'a/x.png' has class -1"),
        (rows({"labels": None}), "'a/x.png' has no labels"),
        (rows({"labels": [None]}), "a list of it has holes"),
        (rows({"key": None}), "a row has no key"),
        (rows({"captions": None}), "'a/x.png' has no captions"),
        (rows({"captions": [None]}), "a list of it has holes"),
        (rows({"confidences": [0.5, 0.5]}), "confidences (0.5, 0.5) for 1 classes"),
        (rows({"confidences": [float("nan")]}), "confidences (nan,) for 1 classes; allowed: 0 to 1"),
        (rows({"fields": "{"}), "'a/x.png' has fields that are not JSON"),
        (rows({"fields": "[1]"}), "'a/x.png' has fields that are no JSON object: [1]"),
        (rows({"fields": DEEP}), "'a/x.png' has fields that are not JSON"),
        (rows({"fields": '{"a":' + "[" * 150 + "]" * 150 + "}"}), "'a/x.png': metadata nested more than 100 deep"),
        (rows({}, columns={"k": pa.binary()}), "its columns are 'k binary', not key binary"),
        (rows({}, columns={**COLUMNS, "labels": pa.list_(pa.int64())}), "labels list<item: int32>"),
        (rows({})[:-200], "damaged rows in chunk 0"),
        (rows({"captions": ["é"]}).replace("é".encode(), b"\xff\xff"), "damaged rows in chunk 0"),
        (rows({}, {}), "'a/x.png' does not come after 'a/x.png'"),
        (rows({}, {"key": b"a"}), "'a' does not come after 'a/x.png'"),
    ],
    ids=named,
)
def test_damaged_rows_are_errors(records: Callable[[bytes, bytes], list[Record]], chunk: bytes, message: str) -> None:
    """Each damage to the one row: DataError with the LMDB, the key of the chunk, what is wrong and what to do."""
    with pytest.raises(DataError) as caught:
        records(manifest(num_samples=2), chunk)
    told = str(caught.value)
    assert message in told
    assert f"/l: {ROWS}: " in told
    assert told.endswith(("copy it again from where it was made, or pack it anew", "make it flat, or take it out"))


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (manifest(num_chunks="x"), "num_chunks is 'x'"),
        (manifest(num_samples=-1), "num_samples is -1"),
        (manifest(num_samples=True), "num_samples is True"),
        (manifest(data_hash=5), "5 stands where text is expected"),
        (manifest(made_by=[]), "made_by is []; allowed: an object"),
        (manifest(classes={"a": None}), "classes is {'a': None}; allowed: a list"),
        (manifest(classes=["a"]), "TypeError"),
        (manifest(classes=[{"name": 5, "parent": None}]), "5 stands where text is expected"),
        (manifest(classes=[{"name": "\ud800", "parent": None}]), "stands where text is expected"),
        (manifest(classes=[{"name": "a", "parent": 1}]), "class 0 has parent 1; allowed: null, or 0 to 0"),
        (b"[]", "TypeError"),
        (DEEP.encode(), "RecursionError"),
        (b"\xff\xfe[", "UnicodeDecodeError"),
    ],
    ids=named,
)
def test_damaged_manifests_are_errors(records: Callable[[bytes, bytes], list[Record]], about: bytes, message: str) -> None:
    """Each damage to the manifest: DataError with the LMDB, the manifest's key, what is wrong and what to do."""
    with pytest.raises(DataError) as caught:
        records(about, rows({}))
    told = str(caught.value)
    assert message in told
    assert f"/l: {MANIFEST}: damaged manifest" in told
    assert told.endswith("copy it again from where it was made, or pack it anew")


def test_an_lmdb_with_damaged_made_by_is_not_taken_for_finished(
    records: Callable[[bytes, bytes], list[Record]], tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes
) -> None:
    """Packing into a folder whose LMDB has a list for `made_by`: exit 1 and a sentence; with --overwrite a sound LMDB."""
    with pytest.raises(DataError):
        records(manifest(made_by=[]), rows({}))
    (tmp_path / "pool" / "a").mkdir(parents=True)
    (tmp_path / "pool" / "a" / "1.jpg").write_bytes(image_bytes(1))
    command = ("pack", tmp_path / "pool", "--to", "lmdb", "--out", tmp_path / "l", "--processes", 1)
    code, _, errors = bamboo(*command)
    assert (code, "made_by is []" in errors) == (1, True), errors
    assert bamboo(*command, "--overwrite")[0] == 0
    file = open_lmdb(tmp_path / "l")
    written = read_lmdb_manifest(file)
    assert written is not None
    assert [record.name for record in read_rows(file, written)] == ["a/1.jpg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f'[{{"image": "a", "gains": [1{"0" * 400}, 2]}}]', "entry 0: gains holds 1000"),
        (f'[{{"image": "a", "gains": ["1{"0" * 400}", "2"]}}]', "entry 0: gains holds '1000"),
        ('[{"image": "a", "gains": ["1_0", "2"]}]', "entry 0: gains holds '1_0'; allowed: finite numbers"),
        ('[{"image": "a", "raw_score": ["1_0"]}]', "entry 0: raw_score holds '1_0'"),
        (f'[{{"image": "a", "gains": ["{"7" * 5000}_", "2"]}}]', "entry 0: gains holds '7"),
        (DEEP, "cannot be read as JSON"),
        ('[{"image": "a", "caption": ' + "[" * 800 + "]" * 800 + "}]", "entry 0: caption [[["),
        ('[{"image": "a"}, {"image": "b", "caption": "x\\ud800"}]', "entry 1: caption 'x\\\\ud800' has half a surrogate pair"),
        ('[{"image": "a", "caption": ["x", "\\udcff"]}]', "entry 0: caption '\\\\udcff' has half a surrogate pair"),
        ('[{"image": "a\\ud800"}]', "entry 0: image 'a\\\\ud800' has half a surrogate pair"),
    ],
    ids=named,
)
def test_hostile_annotations_are_errors(tmp_path: Path, content: str, message: str) -> None:
    """Numbers too large or in another spelling, nesting, halves of characters: UserError of bounded length with file and entry."""
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(UserError) as caught:
        read_annotations(tmp_path / "list.json")
    told = str(caught.value)
    assert told.startswith(f"--annotations={tmp_path}/list.json: ")
    assert message in told
    assert len(told) < len(str(tmp_path)) + 300


def test_whole_pairs_and_bytes_of_no_text_are_taken(tmp_path: Path) -> None:
    """A pair that makes one character in a caption; a name with a byte that is no UTF-8, as Bamboo's own lists spell it."""
    (tmp_path / "list.json").write_text('[{"image": "\\udcff.jpg", "caption": "\\ud83d\\ude00", "gains": ["1e1", 2]}]')
    found = read_annotations(tmp_path / "list.json")["\udcff.jpg"]
    assert found.captions == ("\U0001f600",)
    assert (found.fields["image_gain"], found.fields["text_gain"]) == (10.0, 2.0)


def shards_of_others(folder: Path, image: bytes, members: dict[str, bytes]) -> Path:
    """Writes a tar with one sample of the key `k`: the image and other members."""
    folder.mkdir()
    with tarfile.open(folder / "s.tar", "w") as tar:
        for name, data in {"jpg": image, **members}.items():
            about = tarfile.TarInfo(f"k.{name}")
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return folder


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (b'{"a":' + b"[" * 200_000, "its .json member is nested too deep to be read"),
        (b'{"a":' + b"[" * 150 + b"]" * 150 + b"}", "metadata nested more than 100 deep"),
        (b'{"a":', "its .json member is not JSON"),
    ],
    ids=named,
)
def test_hostile_members_of_shards_are_errors(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes, tree: bytes, message: str) -> None:
    """A stranger's shards with metadata that cannot be read, or written again: exit 1 with tar and key, and no output."""
    folder = shards_of_others(tmp_path / "s", image_bytes(1), {"json": b"{}"})
    assert bamboo("index", folder, "--processes", 1)[0] == 0
    hostile = shards_of_others(tmp_path / "h", image_bytes(1), {"json": tree})
    manifest_of = json.loads((folder / "dataset.json").read_text())
    manifest_of["shards"][0]["size_bytes"] = (hostile / "s.tar").stat().st_size
    (hostile / "dataset.json").write_text(json.dumps(manifest_of))
    (hostile / "index.arrow").write_bytes((folder / "index.arrow").read_bytes())
    code, _, errors = bamboo("pack", hostile, "--to", "lmdb", "--out", tmp_path / "o", "--processes", 1)
    assert code == 1, errors
    assert f"{hostile}/s.tar: k: " in errors
    assert message in errors
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["json", "txt"])
def test_huge_members_of_shards_are_not_read(
    tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text beyond the bound (here 1 kB): DataError with member, size and bound; up to it, packed."""
    monkeypatch.setattr(shard_source_module, "_TEXT_BYTES", 1000)
    for size, fits in ((1000, True), (1001, False)):
        text = b'"' + b"x" * (size - 2) + b'"'
        folder = shards_of_others(tmp_path / f"s{size}", image_bytes(1), {name: text})
        assert bamboo("index", folder, "--processes", 1)[0] == 0
        if fits:
            assert len(shard_source(folder, None).records) == 1
        else:
            with pytest.raises(DataError, match=rf"s\.tar: k\.{name}: 1,001 bytes of text; allowed: up to 1,000"):
                shard_source(folder, None)


@pytest.mark.parametrize("claimed", [["0.5"], [10**400], [None], [[0.5]], [{}], "0.5", [True]])
def test_confidences_of_anything_fall_back_to_the_index(
    tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes, monkeypatch: pytest.MonkeyPatch, claimed: object
) -> None:
    """Metadata whose confidences are no numbers in [0, 1]: those of the index, 0.5, as a float."""
    (tmp_path / "1.jpg").write_bytes(image_bytes(1))
    (tmp_path / "list").write_text("1.jpg\t0:0.5\n")
    assert bamboo("pack", tmp_path / "list", "--out", tmp_path / "s", "--processes", 1)[0] == 0
    monkeypatch.setattr(shard_source_module, "metadata_of", lambda *_: {"confidences": claimed})
    (record,) = shard_source(tmp_path / "s", None).records
    assert record.confidences == (0.5,)
    assert type(record.confidences[0]) is float

"""Packing into an LMDB: what InfoGrowth's reader and Bamboo's find in it, and what a kill or a full disk leaves."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from bamboo.cli.errors import DataError
from bamboo.datasets import lmdb_layout, lmdb_writer, pack
from bamboo.datasets.index import read_index
from bamboo.datasets.lmdb_files import open_lmdb
from bamboo.datasets.lmdb_layout import read_lmdb_manifest, read_rows
from bamboo.datasets.manifest import read_manifest
from bamboo.datasets.shard_source import shard_source

Bamboo = Callable[..., tuple[int, str, str]]
ImageBytes = Callable[..., bytes]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def values(folder: Path) -> dict[str, bytes]:
    """Keys and values as the lmdb library reads them, reserved keys left out."""
    with lmdb.open(str(folder), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {key.decode(): value for key, value in transaction.cursor() if not key.startswith(b"__bamboo__/")}


@pytest.fixture
def written(photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> Path:
    """`photo_folder` as an LMDB."""
    code, text, errors = bamboo("pack", photo_folder, "--to", "lmdb", "--out", tmp_path / "o.lmdb", "--processes", 1)
    assert code == 0, errors
    assert "packed 21 images of 3 classes into one LMDB" in text
    return tmp_path / "o.lmdb"


def test_others_read_names_and_files(written: Path, photo_folder: Path) -> None:
    """Keys and values against the files, with the lmdb library; InfoGrowth's list beside it; nothing else in the folder."""
    files = {path.relative_to(photo_folder).as_posix(): path.read_bytes() for path in photo_folder.rglob("*.*")}
    found = values(written)
    assert list(found) == sorted(files)
    assert {key for key in files if found[key] != files[key]} == {"plant/photo 3.bmp"}  # a BMP becomes a PNG
    assert json.loads((written / "annotations.json").read_text()) == [{"image": key} for key in sorted(files)]
    assert sorted(path.name for path in written.iterdir()) == ["annotations.json", "data.mdb"]


def test_bamboo_reads_labels_without_images(written: Path) -> None:
    """Rows, classes and counts of the reserved keys against the folders' names."""
    file = open_lmdb(written)
    manifest = read_lmdb_manifest(file)
    assert manifest is not None
    names = [entry.name for entry in manifest.classes]
    assert names == ["animal/cat", "animal/dog", "plant"]
    rows = list(read_rows(file, manifest))
    assert [names[row.labels[0]] for row in rows] == [row.name.rpartition("/")[0] for row in rows]
    assert (manifest.num_samples, manifest.made_by["num_kept"], manifest.made_by["num_converted"]) == (21, 20, 1)


def test_rows_of_many_images_come_in_chunks(
    written: Path, photo_folder: Path, tmp_path: Path, bamboo: Bamboo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """21 images in chunks of 8 against one chunk of all: three chunks, the same rows; a chunk that is gone is damage."""
    monkeypatch.setattr(lmdb_layout, "_ROWS_PER_CHUNK", 8)
    assert bamboo("pack", photo_folder, "--to", "lmdb", "--out", tmp_path / "o", "--processes", 1)[0] == 0
    files = [open_lmdb(folder) for folder in (written, tmp_path / "o")]
    manifests = [read_lmdb_manifest(file) for file in files]
    assert manifests[0] is not None
    assert manifests[1] is not None
    assert [manifests[0].num_chunks, manifests[1].num_chunks] == [1, 3]
    assert list(read_rows(files[1], manifests[1])) == list(read_rows(files[0], manifests[0]))
    with pytest.raises(DataError, match="damaged: 8 rows, its manifest says 21"):
        list(read_rows(files[1], dataclasses.replace(manifests[1], num_chunks=1)))
    with pytest.raises(DataError, match="damaged rows in chunk 3"):
        list(read_rows(files[1], dataclasses.replace(manifests[1], num_chunks=4)))


def test_the_file_is_no_larger_than_its_pages(written: Path) -> None:
    """Disk blocks and size against the sum of whole pages of each image: no sparse map, and little beside the images."""
    status = (written / "data.mdb").stat()
    pages = sum(-(-(len(data) + 16) // 4096) * 4096 for data in values(written).values())
    assert status.st_size <= pages + 64 * 1024
    assert status.st_blocks * 512 >= status.st_size


def test_any_number_of_processes_makes_the_same_bytes(
    photo_folder: Path, tmp_path: Path, bamboo: Bamboo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two worker processes against one, in parts of five images: data.mdb and annotations.json equal, byte by byte."""
    monkeypatch.setattr(pack, "_SAMPLES_PER_PART", 5)
    for processes in (1, 2):
        assert bamboo("pack", photo_folder, "--to", "lmdb", "--out", tmp_path / f"o{processes}", "--processes", processes)[0] == 0
    assert contents(tmp_path / "o1") == contents(tmp_path / "o2")


def test_a_map_that_is_too_small_grows(
    photo_folder: Path, written: Path, tmp_path: Path, bamboo: Bamboo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An estimate of nothing to spare, and small transactions: the same images and the same identity."""
    monkeypatch.setattr(lmdb_writer, "_SPARE_BYTES", 4096)
    monkeypatch.setattr(lmdb_writer, "_PAGE_BYTES", 1)
    monkeypatch.setattr(lmdb_writer, "_ROW_BYTES", 0)
    monkeypatch.setattr(lmdb_writer, "_TRANSACTION_BYTES", 2000)
    assert bamboo("pack", photo_folder, "--to", "lmdb", "--out", tmp_path / "small", "--processes", 1)[0] == 0
    assert values(tmp_path / "small") == values(written)
    manifests = [read_lmdb_manifest(open_lmdb(folder)) for folder in (written, tmp_path / "small")]
    assert manifests[0] == manifests[1]


def test_lmdb_and_shards_turn_into_each_other(packed: Path, written: Path, photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """Folder → shards → LMDB → shards → LMDB: images, labels and identity stay; a class list gives new ids."""
    assert bamboo("pack", packed, "--to", "lmdb", "--out", tmp_path / "l", "--processes", 1)[0] == 0
    assert values(tmp_path / "l") == values(written)
    one, other = (read_lmdb_manifest(open_lmdb(folder)) for folder in (written, tmp_path / "l"))
    assert one is not None
    assert other is not None
    assert one.data_hash == other.data_hash
    options = ("--samples-per-shard", 7, "--processes", 1)
    assert bamboo("pack", photo_folder, "--out", tmp_path / "s1", "--shuffle", "none", *options)[0] == 0
    assert bamboo("pack", tmp_path / "l", "--out", tmp_path / "s2", "--shuffle", "none", *options)[0] == 0
    classes = [[entry.name for entry in read_manifest(tmp_path / name).classes] for name in ("s1", "s2")]
    assert classes[0] == classes[1]
    rows = [read_index(tmp_path / name / "index.arrow") for name in ("s1", "s2")]
    assert rows[0].key_hash.tolist() == rows[1].key_hash.tolist()
    assert rows[0].labels.tolist() == rows[1].labels.tolist()
    assert rows[0].size.tolist() == rows[1].size.tolist()
    (tmp_path / "names").write_text("plant\nanimal/dog\nanimal/cat\n")
    for src in (packed, tmp_path / "l"):
        out = tmp_path / f"named {src.name}"
        assert bamboo("pack", src, "--out", out, "--classes", tmp_path / "names", *options)[0] == 0
        names = [entry.name for entry in read_manifest(out).classes]
        assert names == ["plant", "animal/dog", "animal/cat"]
        for record in shard_source(out, None).records:
            assert [names[label] for label in record.labels] == [record.name.rpartition("/")[0]]


def test_captions_and_gains_come_back(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """InfoGrowth's list → LMDB → its list again: names, captions, gains as strings, scores; confidences of a sparse list too."""
    (tmp_path / "pool").mkdir()
    for number in range(3):
        (tmp_path / "pool" / f"{number}.jpg").write_bytes(image_bytes(number))
    listed = [
        {"image": "0.jpg", "caption": "one", "gains": ["0.5", "0.25"]},
        {"image": "1.jpg", "caption": ["two", "three"], "gains": ["0.125", "1.0"], "raw_score": [0.5, 0.75]},
        {"image": "2.jpg"},
    ]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    assert bamboo("pack", tmp_path / "pool", "--to", "lmdb", "--out", tmp_path / "a", "--processes", 1)[0] == 0
    command = ("pack", tmp_path / "a", "--annotations", tmp_path / "list.json", "--processes", 1)
    assert bamboo(*command, "--to", "lmdb", "--out", tmp_path / "b")[0] == 0
    assert json.loads((tmp_path / "b" / "annotations.json").read_text()) == listed
    before = read_lmdb_manifest(open_lmdb(tmp_path / "b"))
    (tmp_path / "list.json").write_text(json.dumps([{**listed[0], "caption": "two"}, *listed[1:]]))
    code, _, errors = bamboo(*command, "--to", "lmdb", "--out", tmp_path / "b")
    assert (code, "holds an LMDB of other sources or options" in errors) == (2, True)
    assert bamboo(*command, "--to", "lmdb", "--out", tmp_path / "b", "--overwrite")[0] == 0
    after = read_lmdb_manifest(open_lmdb(tmp_path / "b"))
    assert before is not None
    assert after is not None
    assert before.data_hash != after.data_hash, "one caption was changed"
    (tmp_path / "sparse").write_text("0.jpg\t4:0.9\t1:1\n")
    assert bamboo("pack", tmp_path / "sparse", "--root", tmp_path / "pool", "--out", tmp_path / "s", "--processes", 1)[0] == 0
    assert bamboo("pack", tmp_path / "s", "--to", "lmdb", "--out", tmp_path / "c", "--processes", 1)[0] == 0
    file = open_lmdb(tmp_path / "c")
    manifest = read_lmdb_manifest(file)
    assert manifest is not None
    assert [(row.labels, row.confidences) for row in read_rows(file, manifest)] == [((4, 1), (0.9, 1.0))]


def test_resize_and_unreadable_mean_the_same(photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """--resize and --unreadable skip into shards and into an LMDB: the same images, the same skipped.tsv."""
    (photo_folder / "plant" / "photo 0.jpg").write_bytes(b"<html>")
    options = ("--resize", 12, "--unreadable", "skip", "--processes", 1)
    assert bamboo("pack", photo_folder, "--out", tmp_path / "s", *options)[0] == 0
    assert bamboo("pack", photo_folder, "--to", "lmdb", "--out", tmp_path / "l", *options)[0] == 0
    assert bamboo("pack", tmp_path / "s", "--to", "lmdb", "--out", tmp_path / "m", "--processes", 1)[0] == 0
    assert values(tmp_path / "l") == values(tmp_path / "m")
    assert (tmp_path / "l" / "skipped.tsv").read_bytes() == (tmp_path / "s" / "skipped.tsv").read_bytes()
    code, _, errors = bamboo("pack", photo_folder, "--to", "lmdb", "--out", tmp_path / "n", "--processes", 1)
    assert (code, "plant/photo 0.jpg" in errors, (tmp_path / "n" / "data.mdb").exists()) == (1, True, False)


def test_a_finished_lmdb_is_left_alone(written: Path, photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """The same command does nothing; another is refused; --overwrite replaces; a dry run writes nothing."""
    before = contents(written)
    again = ("pack", photo_folder, "--to", "lmdb", "--out", written, "--processes", 1)
    assert bamboo(*again)[:2] == (0, f"{written} is already packed from this source with these options: nothing to do\n")
    code, _, errors = bamboo(*again, "--resize", 12)
    assert (code, "--overwrite" in errors) == (2, True)
    assert contents(written) == before
    assert bamboo(*again, "--resize", 12, "--overwrite")[0] == 0
    assert contents(written) != before
    code, text, _ = bamboo("pack", photo_folder, "--to", "lmdb", "--out", tmp_path / "p", "--dry-run")
    assert (code, "one LMDB" in text, (tmp_path / "p").exists()) == (0, True, False)


def test_what_cannot_go_into_an_lmdb(packed: Path, photo_folder: Path, tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """A shard folder as OUT, options of shards, one name twice, a name over 511 bytes: exit 2 before any work."""
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    (tmp_path / "twice").write_text("a.jpg 0\na.jpg 1\n")
    deep = tmp_path / "deep" / ("d" * 250) / ("e" * 250)
    deep.mkdir(parents=True)
    (deep / "an image.jpg").write_bytes(image_bytes())
    for src, options, message in (
        (photo_folder, ("--out", packed), "is a shard folder"),
        (photo_folder, ("--shuffle", 3), "shuffle=3: an LMDB has no shards"),
        (photo_folder, ("--samples-per-shard", 3), "samples_per_shard=3"),
        (tmp_path / "twice", (), "1 names stand more than once: a.jpg"),
        (tmp_path / "deep", (), "1 names cannot be keys"),
    ):
        out = () if "--out" in options else ("--out", tmp_path / "o")
        code, _, errors = bamboo("pack", src, "--to", "lmdb", *out, *options)
        assert (code, message in errors) == (2, True), errors
    assert not (tmp_path / "o").exists()


def test_a_file_that_may_not_grow_leaves_nothing(written: Path, photo_folder: Path, tmp_path: Path) -> None:
    """The process may write files of 16 kB only, so that shards of one image fit and data.mdb does not: exit 1, nothing in its place."""
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from bamboo.cli.main import main; from bamboo.datasets import pack; pack._SAMPLES_PER_PART = 1\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000)); sys.exit(main())"
    )
    command = [
        sys.executable,
        "-c",
        script,
        "shards",
        "pack",
        str(photo_folder),
        "--to",
        "lmdb",
        "--out",
        str(tmp_path / "o"),
        "--processes",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, "data.mdb: cannot be written" in done.stderr) == (1, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "o" / "data.mdb").exists()
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 40_000


@pytest.mark.parametrize("moment", ["packing", "writing"])
def test_kill_and_go_on_to_identical_bytes(photo_folder: Path, written: Path, tmp_path: Path, bamboo: Bamboo, moment: str) -> None:
    """kill -9 while images are packed, or while data.mdb is written: no LMDB yet; the same command ends in the same bytes."""
    out = tmp_path / "killed"
    slow = {
        "packing": "from bamboo.datasets import pack, shard_writer as w; e = w.encode; w.encode = lambda *a: (time.sleep(0.2), e(*a))[1]",
        "writing": "from bamboo.datasets import lmdb_writer as w; p = w._put; w._put = lambda *a, **k: (p(*a, **k), time.sleep(30))",
    }[moment]
    script = f"import sys, time\nfrom bamboo.cli.main import main\n{slow}\nsys.exit(main())"
    command = ["shards", "pack", str(photo_folder), "--to", "lmdb", "--out", str(out), "--processes", "1"]
    with subprocess.Popen([sys.executable, "-c", script, *command], stderr=subprocess.DEVNULL) as process:
        awaited = out / ".packing" / {"packing": ".parts/plan.json", "writing": "data.mdb"}[moment]
        deadline = time.monotonic() + 60
        while not awaited.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (out / "data.mdb").exists()
    assert bamboo(*command[1:])[0] == 0
    assert contents(out) == contents(written)

"""Bucketed shards: which samples lie together, that they are still themselves, and that kills and processes change nothing."""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bamboo.cli.errors import DataError, UserError
from bamboo.datasets import shard_writer
from bamboo.datasets.growth.bucket import Bucketed, bucket, bucket_numbers
from bamboo.datasets.growth.snapshot import Snapshot, content_of, open_snapshot
from bamboo.datasets.manifest import ClassEntry
from bamboo.datasets.members import caption, members, metadata
from bamboo.datasets.pack_plan import make_plan
from bamboo.datasets.shards import Shards
from bamboo.datasets.sources import FolderReader, Record, Source
from tests.datasets.growth.states import write_state

Bamboo = Callable[..., tuple[int, str, str]]
ImageBytes = Callable[..., bytes]

PROBABILITIES = np.array([0.9, 0.1, 0.5, 0, 0.5, 0.3, 1, 0.5, 0.2, 0.2, 0.7, 0, 0.4, 0.6, 0.15, 0.8, 0.25, 0.35, 0, 0.95, 0.05], np.float32)
"""Of the 21 samples of `packed`: 18 above 0."""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def grown(packed: Path, tmp_path: Path) -> Snapshot:
    """A snapshot over `packed`."""
    return write_state(tmp_path / "state", [packed], [PROBABILITIES])


def made(snapshot: Snapshot, out: Path, **options: object) -> Bucketed:
    """Four buckets in shards of three, unless it is said otherwise."""
    return bucket(snapshot, out, **{"num_buckets": 4, "samples_per_shard": 3, "processes": 1} | options)


def assert_same_samples(found: Bucketed, sources: list[Shards]) -> None:
    """Through `origins`: images byte by byte, labels, confidences, captions and metadata against the sources', read by `members`."""
    new = Shards.open(found.folder)
    assert len(new) == len(found.origins) == found.manifest.num_samples
    for sample, (source, row) in enumerate(found.origins.tolist()):
        old = sources[source]
        assert new.read(sample) == old.read(row)
        assert new.index.labels_of(sample).tolist() == old.index.labels_of(row).tolist()
        assert new.index.confidences_of(sample).tolist() == old.index.confidences_of(row).tolist()
        assert caption(new, sample) == caption(old, row)
        one, other = metadata(new, sample), metadata(old, row)
        assert one.pop("source").endswith(other.pop("source"))
        assert one == other


def test_every_shard_has_one_bucket_and_every_sample_its_own_image(grown: Snapshot, packed: Path, tmp_path: Path) -> None:
    """Samples above 0, once each; shards of one bucket; probabilities against the snapshot's; images and labels through the mapping."""
    found = made(grown, tmp_path / "out")
    assert sorted(found.origins[:, 1].tolist()) == np.flatnonzero(PROBABILITIES > 0).tolist()
    assert (np.load(found.probabilities) == PROBABILITIES[found.origins[:, 1]]).all()
    assert found.second is None
    assert_same_samples(found, [Shards.open(packed)])
    assert [entry.num_samples for entry in found.manifest.shards] == [3, 2, 3, 1, 3, 1, 3, 2], "buckets of 5, 4, 4 and 5"
    shard = Shards.open(found.folder).index.shard
    assert all(len(set(found.buckets[shard == number])) == 1 for number in range(8))
    borders = [np.load(found.probabilities)[found.buckets == number] for number in range(4)]
    assert all(high.min() > low.max() for high, low in itertools.pairwise(borders))
    assert [entry.name for entry in found.manifest.classes] == Shards.open(packed).class_names
    assert found.manifest.made_by["options"]["snapshot"] == content_of(grown.card)


def test_verify_and_pack_take_the_folder_for_one_of_ours(grown: Snapshot, tmp_path: Path, bamboo: Bamboo) -> None:
    """`bamboo shards verify --decode` finds nothing; packed anew, the samples keep their names."""
    found = made(grown, tmp_path / "out")
    code, text, errors = bamboo("verify", found.folder, "--decode", "--processes", 1)
    assert code == 0, text + errors
    assert bamboo("pack", found.folder, "--out", tmp_path / "again", "--shuffle", "none", "--processes", 1)[0] == 0
    one, other = Shards.open(found.folder), Shards.open(tmp_path / "again")
    assert [metadata(one, sample)["source"] for sample in range(18)] == [metadata(other, sample)["source"] for sample in range(18)]


def test_the_order_inside_a_bucket_is_random_and_keyed(grown: Snapshot, tmp_path: Path) -> None:
    """One bucket of 18: neither the source's order nor that of the probabilities; another seed another order, one seed one."""
    orders = [made(grown, tmp_path / f"o{i}", num_buckets=1, seed=seed).origins[:, 1].tolist() for i, seed in enumerate((0, 0, 1))]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    assert orders[0] != sorted(orders[0])
    assert orders[0] != sorted(orders[0], key=lambda row: -PROBABILITIES[row])


@pytest.mark.parametrize("num_buckets", [1, 2, 3, 8, 50])
def test_bucket_numbers_against_a_search_by_hand(num_buckets: int) -> None:
    """Random columns with many equal values: every border is the change of value nearest to n · b / B, found by trying them all."""
    generator = np.random.default_rng(num_buckets)
    for trial in range(20):
        column = (generator.integers(0, 4 * trial + 1, 60) / 100).astype(np.float32)
        taken = column > 0
        found = bucket_numbers(column, taken, num_buckets, keep_all=trial % 2 == 1)
        ordered = np.sort(column[taken])[::-1]
        changes = [i for i in range(1, len(ordered)) if ordered[i] != ordered[i - 1]]
        wanted = [len(ordered) * number / num_buckets for number in range(1, num_buckets)]
        ends = [0, *changes, len(ordered)]
        borders = sorted({min(ends, key=lambda change, at=at: (abs(change - at), -change)) for at in wanted} - {0, len(ordered)})
        expected = {float(value): sum(border <= place for border in borders) for place, value in enumerate(ordered)}
        last = max(expected.values(), default=-1) + 1 if trial % 2 else -1
        assert found.tolist() == [expected[float(value)] if value > 0 else last for value in column]


def test_what_is_read_for_what_is_used() -> None:
    """Σ p_max : Σ p of 80,000 even probabilities, shards of 100: (B + 1) : B within 1 % at 2, 4 and 8 buckets, about 2 in random shards."""
    column = ((np.arange(80_000) + 0.5) / 80_000).astype(np.float32)
    column = np.random.default_rng(0).permutation(column)
    assert column.reshape(-1, 100).max(1).sum() * 100 / column.sum() == pytest.approx(2, rel=0.02)
    for num_buckets in (2, 4, 8):
        numbers = bucket_numbers(column, column > 0, num_buckets, keep_all=False)
        read = sum(column[numbers == number].max() * (numbers == number).sum() for number in range(num_buckets))
        assert read / column.sum(dtype=np.float64) == pytest.approx((num_buckets + 1) / num_buckets, rel=0.01)


def test_pairs_of_epochs_keep_their_members(packed: Path, tmp_path: Path) -> None:
    """Coupled: members of probability 0 are kept, others left out, the membership goes along; without one all are kept."""
    members = (np.arange(21) != 11).astype(np.float32)
    for second, left_out in ((members, [11]), (None, [])):
        name = "all" if second is None else "some"
        snapshot = write_state(tmp_path / name, [packed], [PROBABILITIES], second=[second])
        found = made(dataclasses.replace(snapshot, coupled=True), tmp_path / f"{name} out")
        assert sorted(set(range(21)) - set(found.origins[:, 1].tolist())) == left_out
        assert (found.second is None) == (second is None)
        assert found.second is None or (np.load(found.second) == 1).all()


def test_samples_that_no_epoch_takes(packed: Path, tmp_path: Path) -> None:
    """0 in both phases: left out, or last with `keep_all`; 0 in one phase alone: kept. The second column goes along."""
    second = np.where(np.arange(21) == 3, 0.5, np.where(PROBABILITIES > 0, 1 - PROBABILITIES, 0)).astype(np.float32)
    snapshot = write_state(tmp_path / "state", [packed], [PROBABILITIES], second=[second])
    found = made(snapshot, tmp_path / "out")
    rows = found.origins[:, 1]
    assert sorted(set(range(21)) - set(rows.tolist())) == [11, 18]
    assert found.second is not None
    assert (np.load(found.second) == second[rows]).all()
    everything = made(snapshot, tmp_path / "all", keep_all=True)
    assert sorted(everything.origins[:, 1].tolist()) == list(range(21))
    assert sorted(everything.origins[everything.buckets == 4, 1].tolist()) == [11, 18]
    assert_same_samples(everything, [Shards.open(packed)])


def test_several_folders_become_one(packed: Path, photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """Two folders of the same classes and of names of which some are shared: every sample from its folder, every name once."""
    (photo_folder / "plant" / "photo 0.jpg").unlink()
    options = ("--shuffle", 5, "--samples-per-shard", 9, "--processes", 1)
    assert bamboo("pack", photo_folder, "--out", tmp_path / "other", *options)[0] == 0
    folders = [packed, tmp_path / "other"]
    columns = [PROBABILITIES, np.linspace(0.01, 1, 20, dtype=np.float32)]
    found = made(write_state(tmp_path / "state", folders, columns), tmp_path / "out")
    assert np.bincount(found.origins[:, 0]).tolist() == [18, 20]
    assert_same_samples(found, [Shards.open(folder) for folder in folders])
    expected = [columns[source][row] for source, row in found.origins.tolist()]
    assert np.load(found.probabilities).tolist() == expected
    new = Shards.open(found.folder)
    names = [metadata(new, sample)["source"] for sample in range(len(new))]
    assert len(set(names)) == 38
    assert {name.split("/")[0] for name in names} == {"0", "1"}


def test_captions_confidences_and_fields_come_along(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """A sparse list with captions in an LMDB's annotations: texts, gains and confidences against the source's members."""
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(image_bytes(number, form="PNG"))
    (tmp_path / "sparse").write_text("".join(f"{number}.png\t4:0.9\t1:1\n" for number in range(6)))
    listed = [{"image": f"{n}.png", "caption": [f"number {n}", "a picture"], "gains": ["0.5", f"0.{n}"]} for n in range(6)]
    (tmp_path / "list.json").write_text(json.dumps(listed))
    assert bamboo("pack", tmp_path / "sparse", "--to", "lmdb", "--out", tmp_path / "l", "--processes", 1)[0] == 0
    assert bamboo("pack", tmp_path / "l", "--annotations", tmp_path / "list.json", "--out", tmp_path / "s", "--processes", 1)[0] == 0
    found = made(write_state(tmp_path / "state", [tmp_path / "s"], [np.linspace(0.1, 1, 6)]), tmp_path / "out")
    assert_same_samples(found, [Shards.open(tmp_path / "s")])
    member = members(Shards.open(found.folder), 0)
    assert sorted(member) == ["json", "png", "txt"]
    assert json.loads(member["json"])["confidences"] == [0.9, 1.0]
    assert json.loads(member["json"])["image_gain"] == 0.5


def test_any_number_of_processes_makes_the_same_bytes(grown: Snapshot, tmp_path: Path) -> None:
    """Two worker processes against one: every file equal; made again, nothing is written and the mapping is the same."""
    one, two = made(grown, tmp_path / "one"), made(grown, tmp_path / "two", processes=2)
    assert contents(one.folder) == contents(two.folder)
    times = {path: path.stat().st_mtime_ns for path in one.folder.glob("*.tar")}
    again = made(grown, tmp_path / "one")
    assert {path: path.stat().st_mtime_ns for path in one.folder.glob("*.tar")} == times
    assert again.origins.tolist() == one.origins.tolist() == two.origins.tolist()


def test_a_full_disk_and_going_on(grown: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space left at the eighth sample: the finished shards stay, and the same call ends in the bytes of one left alone."""
    reference, out = made(grown, tmp_path / "reference"), tmp_path / "out"
    real, written = shard_writer.webdataset.TarWriter.write, []

    def write(self, sample):
        written.append(sample)
        if len(written) == 8:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, sample)

    monkeypatch.setattr(shard_writer.webdataset.TarWriter, "write", write)
    with pytest.raises(OSError, match="No space left"):
        made(grown, out)
    assert sorted(path.name for path in out.glob("*.*")) == [".parts", "shard-000000.tar", "shard-000001.tar"]
    assert made(grown, out).origins.tolist() == reference.origins.tolist()
    assert len(written) == 8 + 18 - 5, "two shards, of three and two, were done"
    assert contents(out) == contents(reference.folder)


@pytest.mark.slow
def test_kill_and_go_on_to_identical_bytes(grown: Snapshot, tmp_path: Path) -> None:
    """kill -9 once two shards are there: the same call ends in the bytes of one left alone."""
    out = tmp_path / "killed"
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom bamboo.datasets import shard_writer as w\n"
        "from bamboo.datasets.growth.bucket import bucket\nfrom bamboo.datasets.growth.snapshot import open_snapshot\n"
        "e = w.encode; w.encode = lambda *a: (time.sleep(0.1), e(*a))[1]\n"
        "bucket(open_snapshot(Path(sys.argv[1])), Path(sys.argv[2]), num_buckets=4, samples_per_shard=3, processes=1)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(grown.state), str(out)], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while len(list(out.glob("*.tar"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert not (out / "dataset.json").exists()
    made(grown, out)
    assert contents(out) == contents(made(grown, tmp_path / "reference").folder)


def test_another_snapshot_is_not_mixed_in(grown: Snapshot, packed: Path, tmp_path: Path) -> None:
    """A folder of another snapshot: refused as it stands, replaced with `overwrite`, its second column included."""
    other = write_state(tmp_path / "other", [packed], [PROBABILITIES[::-1]], second=[PROBABILITIES])
    out = tmp_path / "out"
    assert made(other, out).second is not None
    remedy = "name another folder, or remove what it holds"
    with pytest.raises(UserError, match=rf"^--bucket\.out={out}: holds .*other sources or with other options; {remedy}$"):
        made(grown, out)
    made(grown, out, overwrite=True)
    assert contents(out) == contents(made(grown, tmp_path / "reference").folder)


def test_what_stands_in_the_way_is_named_by_the_option_of_grow(grown: Snapshot, packed: Path, tmp_path: Path) -> None:
    """A file, an unfinished pack of another snapshot, a shard of somebody else's, a pack under way: `--bucket.out`, and a remedy of it."""
    (tmp_path / "file").write_text("")
    (tmp_path / "foreign").mkdir()
    shutil.copy(packed / "shard-000000.tar", tmp_path / "foreign")
    unfinished = tmp_path / "unfinished" / ".parts" / "plan.json"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_text(json.dumps({"identity": "", "options": {}, "source": ""}))
    for name, message in (
        ("file", "is a file; name a folder"),
        ("foreign", "holds shard-000000.tar, which this pack did not write; name another folder, or remove what it holds"),
        ("unfinished", "holds an unfinished pack of another plan .*; name another folder, or remove what it holds"),
        ("busy", "another process is packing into it; wait for it, or name another folder"),
    ):
        with contextlib.ExitStack() as held:
            if name == "busy":
                (tmp_path / name / ".parts").mkdir(parents=True)
                lock = held.enter_context((tmp_path / name / ".parts" / "lock").open("wb"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            with pytest.raises(UserError, match=rf"^--bucket\.out={tmp_path / name}: {message}$"):
                made(grown, tmp_path / name)


def test_an_unreadable_image_ends_the_call_or_stays_out(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """A PNG overwritten inside its shard: named; with `unreadable="skip"` the other samples are mapped to their own rows."""
    folder = tmp_path / "wds"
    folder.mkdir()
    with shard_writer.webdataset.TarWriter(str(folder / "a.tar"), encoder=False) as tar:
        for number in range(6):
            tar.write({"__key__": f"{number}", "png": image_bytes(number, form="PNG"), "cls": b"0"})
    assert bamboo("index", folder, "--processes", 1)[0] == 0
    with (folder / "a.tar").open("r+b") as file:
        file.seek(int(Shards.open(folder).index.offset[2]))
        file.write(b"no PNG")
    snapshot = write_state(tmp_path / "state", [folder], [np.linspace(0.1, 1, 6)])
    with pytest.raises(DataError, match=r"2\.png"):
        made(snapshot, tmp_path / "out")
    found = made(snapshot, tmp_path / "out", unreadable="skip")
    assert sorted(found.origins[:, 1].tolist()) == [0, 1, 3, 4, 5]
    old, new = Shards.open(folder), Shards.open(found.folder)
    assert all(new.read(sample) == old.read(row) for sample, (_, row) in enumerate(found.origins.tolist()))
    assert np.load(found.probabilities).tolist() == np.linspace(0.1, 1, 6).astype(np.float32)[found.origins[:, 1]].tolist()


def test_what_is_refused(grown: Snapshot, packed: Path, photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """Each by its own message, and nothing is written: remote or changed folders, other classes, `out` inside, no sample, bad numbers."""
    before = contents(packed)
    for out in (packed, packed / "inside"):
        with pytest.raises(UserError, match=rf"--bucket\.out={out}: lies in .*, which is to be packed anew"):
            made(grown, out, overwrite=True)
    with pytest.raises(UserError, match="num_buckets=0"):
        made(grown, tmp_path / "out", num_buckets=0)
    with pytest.raises(UserError, match="every probability is 0"):
        made(write_state(tmp_path / "none", [packed], [np.zeros(21)]), tmp_path / "out")
    shutil.rmtree(photo_folder / "plant")
    assert bamboo("pack", photo_folder, "--out", tmp_path / "fewer", "--processes", 1)[0] == 0
    two = write_state(tmp_path / "two", [packed, tmp_path / "fewer"], [PROBABILITIES, np.ones(15)])
    with pytest.raises(UserError, match="its classes are not those of"):
        made(two, tmp_path / "out")
    assert bamboo("pack", photo_folder, "--out", tmp_path / "fewer", "--shuffle", 3, "--processes", 1, "--overwrite")[0] == 0
    with pytest.raises(UserError, match="holds other data than when the snapshot was made"):
        made(two, tmp_path / "out")
    card = grown.folder / "snapshot.json"
    card.write_text(card.read_text().replace(str(packed), "s3://bucket/shards"))
    with pytest.raises(UserError, match="s3://bucket/shards is remote"):
        made(open_snapshot(grown.folder), tmp_path / "out")
    assert contents(packed) == before
    assert not (tmp_path / "out").exists()


def test_a_damaged_column_is_found(grown: Snapshot, tmp_path: Path) -> None:
    """A probability altered on disk: DataError, by the hash in snapshot.json."""
    np.save(grown.training[0].probabilities, PROBABILITIES[::-1].copy())
    with pytest.raises(DataError, match="missing or altered"):
        made(grown, tmp_path / "out")


def test_groups_of_a_plan_also_end_shards_of_bytes() -> None:
    """`make_plan` with groups and bytes: groups ascending, no shard of two, none too large; without groups, the plan as ever."""
    sizes = np.random.default_rng(0).integers(1, 100, 200).tolist()
    records = [Record(f"{number}.jpg", (0,), None, size) for number, size in enumerate(sizes)]
    source = Source(records, (ClassEntry("one"),), FolderReader(Path()))
    groups = np.random.default_rng(1).integers(0, 5, 200)
    plan = make_plan(source, {}, 3, None, 300, groups)
    assert np.diff(groups[plan.order]).min() == 0
    assert sorted(plan.order.tolist()) == list(range(200))
    assert [stop for _, stop in plan.bounds[:-1]] == [start for start, _ in plan.bounds[1:]]
    for start, stop in plan.bounds:
        rows = plan.order[start:stop]
        assert len(set(groups[rows])) == 1
        assert sum(sizes[row] for row in rows) <= 300
    without, alike = make_plan(source, {}, 3, None, 300), make_plan(source, {}, 3, None, 300, np.zeros(200, np.int64))
    assert without.order.tolist() == alike.order.tolist()
    assert without.bounds == alike.bounds

"""InfoGrowth's list out of a snapshot and into columns, against the list itself and the keys of an LMDB."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from bamboo.cli.errors import DataError, UserError
from bamboo.cli.main import main
from bamboo.datasets.annotations import read_annotations
from bamboo.datasets.growth.bucket import bucket
from bamboo.datasets.growth.columns import Decision
from bamboo.datasets.growth.seed_lists import export_json, import_gains
from bamboo.datasets.growth.snapshot import open_snapshot
from bamboo.datasets.members import metadata
from bamboo.datasets.shards import Shards
from tests.datasets.growth.states import write_state

Bamboo = Callable[..., tuple[int, str, str]]
ImageBytes = Callable[..., bytes]

N = 9


def keys(folder: Path) -> list[str]:
    """Keys of an LMDB as the lmdb library reads them, reserved ones left out."""
    with lmdb.open(str(folder), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return [key.decode() for key, _ in transaction.cursor() if not key.startswith(b"__bamboo__/")]


@pytest.fixture
def listed() -> list[dict[str, Any]]:
    """InfoGrowth's list of nine images; gains as Python writes a double's digits."""
    gains = np.random.default_rng(0).uniform(0, 1, (N, 2))
    captions: list[Any] = [f"picture number {number}" for number in range(N)]
    captions[4] = ["one caption", "and another, with ünïcode"]
    return [{"image": f"{n}.jpg", "caption": captions[n], "gains": [str(gain) for gain in gains[n].tolist()]} for n in range(N)]


@pytest.fixture
def with_gains(tmp_path: Path, listed: list[dict[str, Any]], bamboo: Bamboo, image_bytes: ImageBytes) -> Path:
    """Image store and list, as InfoGrowth has them, packed into shards of four in random order."""
    with lmdb.open(str(tmp_path / "store"), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for number in range(N):
            transaction.put(f"{number}.jpg".encode(), image_bytes(number))
    (tmp_path / "seed.json").write_text(json.dumps(listed))
    options = ("--annotations", tmp_path / "seed.json", "--samples-per-shard", 4, "--processes", 1)
    code, _, errors = bamboo("pack", tmp_path / "store", "--format", "lmdb", "--out", tmp_path / "seeded", *options)
    assert code == 0, errors
    return tmp_path / "seeded"


def names_of(folder: Path) -> list[str]:
    """Names by row, read by `members`."""
    shards = Shards.open(folder)
    return [metadata(shards, sample)["source"] for sample in range(len(shards))]


def test_store_and_list_come_in_as_columns(with_gains: Path, listed: list[dict[str, Any]]) -> None:
    """LMDB + JSON → shards → columns: float32 of the list's own numbers, in the order of the index."""
    image, text = import_gains(Shards.open(with_gains))
    by_name = {entry["image"]: entry["gains"] for entry in listed}
    expected = np.array([by_name[name] for name in names_of(with_gains)]).astype(np.float64).astype(np.float32)
    assert (image.dtype, text.dtype) == (np.float32, np.float32)
    assert image.tolist() == expected[:, 0].tolist()
    assert text.tolist() == expected[:, 1].tolist()
    assert names_of(with_gains) != sorted(by_name), "else the order is not tested"


def test_a_list_of_infogrowths_makes_a_snapshot_of_its_policy(with_gains: Path, tmp_path: Path) -> None:
    """`bamboo grow --gains --policy.kind seed` over image store and list: probabilities are min(1, mean gain / its 99 % quantile) in both
    phases, as the notebook has them, and no features are needed.
    """
    arguments = ["grow", str(tmp_path / "state"), "--data", str(with_gains), "--gains", "--policy.kind", "seed"]
    assert main(arguments) == 0
    folder = open_snapshot(tmp_path / "state").training[0]
    assert folder.second is not None
    mean = np.mean(import_gains(Shards.open(with_gains)), axis=0)
    kept = np.minimum(mean / np.quantile(mean, 0.99), 1)
    np.testing.assert_allclose(np.load(folder.probabilities), kept, atol=1e-6)
    np.testing.assert_allclose(np.load(folder.second), np.maximum(0.1, 1 - kept), atol=1e-6)


def test_there_and_back(with_gains: Path, listed: list[dict[str, Any]], tmp_path: Path, bamboo: Bamboo) -> None:
    """Columns → list → `read_annotations`: equal gains and captions; its names are the keys of `pack --to lmdb`; and in again."""
    image, text = import_gains(Shards.open(with_gains))
    snapshot = write_state(tmp_path / "state", [with_gains], [np.ones(N)], columns=[{"image_gain": image, "text_gain": text}])
    assert export_json(snapshot, tmp_path / "out.json") == N
    written = json.loads((tmp_path / "out.json").read_text())
    assert [entry["image"] for entry in written] == names_of(with_gains), "arrival order"
    assert all(list(entry) == ["image", "caption", "gains"] and list(map(type, entry["gains"])) == [str, str] for entry in written)
    found, before = read_annotations(tmp_path / "out.json"), read_annotations(tmp_path / "seed.json")
    assert {name: entry.captions for name, entry in found.items()} == {name: entry.captions for name, entry in before.items()}
    for row, name in enumerate(found):
        assert np.float32(found[name].fields["image_gain"]) == image[row]
        assert np.float32(found[name].fields["text_gain"]) == text[row]
    assert bamboo("pack", with_gains, "--to", "lmdb", "--out", tmp_path / "l", "--processes", 1)[0] == 0
    assert keys(tmp_path / "l") == sorted(entry["image"] for entry in written)
    options = ("--annotations", tmp_path / "out.json", "--shuffle", 0, "--samples-per-shard", 4, "--processes", 1)
    assert bamboo("pack", tmp_path / "l", "--out", tmp_path / "again", *options)[0] == 0
    again = dict(zip(names_of(tmp_path / "again"), zip(*import_gains(Shards.open(tmp_path / "again")), strict=True), strict=True))
    assert again == dict(zip(names_of(with_gains), zip(image, text, strict=True), strict=True))


def test_decisions_and_arrivals(with_gains: Path, tmp_path: Path) -> None:
    """Dropped ones are left out, duplicates if so asked, cleaned ones have the re-caption; the order is that of arrivals."""
    decisions = np.zeros(N, np.uint8)
    decisions[[1, 5]], decisions[2], decisions[7] = Decision.DROP, Decision.CLEAN, Decision.DUPLICATE
    columns = {"decision": decisions, "arrival": np.arange(N)[::-1]}
    snapshot = write_state(tmp_path / "state", [with_gains], [np.ones(N)], columns=[columns])
    names, path = names_of(with_gains), tmp_path / "out.json"
    with pytest.raises(UserError, match=rf"1 samples were taken with re-captions that are not given: {names[2]}"):
        export_json(snapshot, path, {names[1]: "of another"})
    assert not path.exists()
    recaptions = {names[2]: "what it shows", names[3]: "not taken"}
    assert export_json(snapshot, path, recaptions) == 7
    found, before = read_annotations(path), read_annotations(tmp_path / "seed.json")
    assert list(found) == [names[row] for row in (8, 7, 6, 4, 3, 2, 0)]
    assert found[names[2]].captions == ("what it shows",)
    assert all(found[name].captions == before[name].captions for name in found if name != names[2])
    assert export_json(snapshot, path, recaptions, duplicates=False) == 6
    assert list(read_annotations(path)) == [names[row] for row in (8, 6, 4, 3, 2, 0)]


def test_duplicates_taken_with_their_re_captions(with_gains: Path, tmp_path: Path) -> None:
    """Near-duplicates of alignments about the least one, 0.3: those below it whose re-captions are not have these, as the cleaned one."""
    decisions = np.full(N, Decision.DUPLICATE, np.uint8)
    decisions[[0, 1, 2]] = Decision.ACCEPT, Decision.CLEAN, Decision.DROP
    alignment = np.array([0.5, 0.1, 0.1, 0.1, 0.1, 0.4, 0.29, np.nan, 0.1], np.float32)
    realigned = np.array([0.9, 0.3, 0.2, 0.5, 0.2, 0.9, 0.31, 0.90, np.nan], np.float32)
    columns = {"decision": decisions, "alignment": alignment, "realigned": realigned}
    card = {"growth": {"alignment": 0.3}}
    snapshot = write_state(tmp_path / "state", [with_gains], [np.ones(N)], columns=[columns], card=card)
    names, path = names_of(with_gains), tmp_path / "out.json"
    with pytest.raises(UserError, match=rf"2 samples were taken with re-captions that are not given: {names[3]}, {names[6]}"):
        export_json(snapshot, path, {names[1]: "better"})
    assert export_json(snapshot, path, dict.fromkeys(names, "better")) == N - 1
    found, before = read_annotations(path), read_annotations(tmp_path / "seed.json")
    assert [name for name in names if name in found and found[name].captions == ("better",)] == [names[row] for row in (1, 3, 6)]
    assert all(found[names[row]].captions == before[names[row]].captions for row in (0, 4, 5, 7, 8))
    assert export_json(snapshot, path, {names[1]: "better"}, duplicates=False) == 2, "those of duplicates are not asked for"


def test_one_modality_stands_for_both(with_gains: Path, tmp_path: Path) -> None:
    """Without text gains, or without image gains for one sample, the mean of the two, which InfoGrowth takes, is the one there is."""
    image = np.linspace(0.1, 0.9, N, dtype=np.float32)
    text = np.full(N, np.nan, np.float32)
    text[4], image[4] = 0.7, np.nan
    snapshot = write_state(tmp_path / "state", [with_gains], [np.ones(N)], columns=[{"image_gain": image, "text_gain": text}])
    export_json(snapshot, tmp_path / "out.json")
    gains = [entry["gains"] for entry in json.loads((tmp_path / "out.json").read_text())]
    assert all(first == second for first, second in gains)
    assert [np.float32(first) for first, _ in gains] == np.where(np.arange(N) == 4, text, image).tolist()


def test_scores_stay_with_their_captions(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """`raw_score`, and a caption that stands in the JSON member alone: both in the list, but no score of a caption that was replaced."""
    (tmp_path / "pool").mkdir()
    for number in range(3):
        (tmp_path / "pool" / f"{number}.jpg").write_bytes(image_bytes(number))
    entries = [{"image": f"{n}.jpg", "caption": f"number {n}", "raw_score": [0.25 * n]} for n in range(3)]
    (tmp_path / "list.json").write_text(json.dumps(entries))
    assert bamboo("pack", tmp_path / "pool", "--to", "lmdb", "--out", tmp_path / "l", "--processes", 1)[0] == 0
    options = ("--annotations", tmp_path / "list.json", "--shuffle", "none", "--processes", 1)
    assert bamboo("pack", tmp_path / "l", "--out", tmp_path / "s", *options)[0] == 0
    columns = {"decision": np.array([Decision.ACCEPT, Decision.CLEAN, Decision.ACCEPT], np.uint8)}
    snapshot = write_state(tmp_path / "state", [tmp_path / "s"], [np.ones(3)], columns=[columns])
    export_json(snapshot, tmp_path / "out.json", {"1.jpg": "a better one"})
    written = json.loads((tmp_path / "out.json").read_text())
    gains = ["0.5", "0.5"]
    assert written[0] == {**entries[0], "gains": gains}
    assert written[1] == {"image": "1.jpg", "caption": "a better one", "gains": gains}
    assert written[2] == {**entries[2], "gains": gains}


def test_names_of_several_sources_are_those_of_the_bucketed_folder(with_gains: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """Two copies as two sources: names stand apart in the list, and are the keys of an LMDB of the shards that `bucket` makes of both."""
    assert bamboo("pack", with_gains, "--out", tmp_path / "copy", "--shuffle", "none", "--processes", 1)[0] == 0
    snapshot = write_state(tmp_path / "state", [with_gains, tmp_path / "copy"], [np.ones(N), np.full(N, 0.5)])
    assert export_json(snapshot, tmp_path / "out.json") == 2 * N
    bucket(snapshot, tmp_path / "bucketed", num_buckets=2, samples_per_shard=5, processes=1)
    assert bamboo("pack", tmp_path / "bucketed", "--to", "lmdb", "--out", tmp_path / "l", "--processes", 1)[0] == 0
    assert keys(tmp_path / "l") == sorted(read_annotations(tmp_path / "out.json"))
    image, text = import_gains(Shards.open(tmp_path / "bucketed"))
    assert sorted(image.tolist()) == sorted(import_gains(Shards.open(with_gains))[0].tolist() * 2)
    assert len(text) == 2 * N


def test_the_first_sample_without_gains_is_named(with_gains: Path, packed: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """A folder without gains, one with a gain that is no number, one of which a list rates some images alone: DataError, sample named."""
    with pytest.raises(DataError, match=r"shard-000000\.tar:000000000\.\w+ has no image_gain; bring the gains in with: bamboo shards pack"):
        import_gains(Shards.open(packed))
    listed = json.loads((tmp_path / "seed.json").read_text())
    del listed[6]["gains"]
    (tmp_path / "some.json").write_text(json.dumps(listed))
    options = ("--annotations", tmp_path / "some.json", "--shuffle", "none", "--processes", 1)
    assert bamboo("pack", tmp_path / "store", "--out", tmp_path / "some", *options)[0] == 0
    with pytest.raises(DataError, match=r"shard-000000\.tar:000000006\.jpg has no image_gain"):
        import_gains(Shards.open(tmp_path / "some"))
    tar = with_gains / "shard-000001.tar"
    tar.write_bytes(re.sub(rb'(?<="text_gain": )[0-9.]+', lambda found: b"NaN".ljust(len(found[0])), tar.read_bytes(), count=1))
    with pytest.raises(DataError, match=r"shard-000001\.tar:000000004\.jpg has text_gain=nan, which is no finite number"):
        import_gains(Shards.open(with_gains))


def test_what_is_refused(with_gains: Path, tmp_path: Path) -> None:
    """No accepted sample, an accepted one without any gain, a remote source: nothing is written, and the error says which."""
    dropped = {"decision": np.full(N, Decision.DROP, np.uint8)}
    without = {name: np.full(N, np.nan, np.float32) for name in ("image_gain", "text_gain")}
    path = tmp_path / "out.json"
    with pytest.raises(UserError, match="no sample is accepted"):
        export_json(write_state(tmp_path / "a", [with_gains], [np.ones(N)], columns=[dropped]), path)
    snapshot = write_state(tmp_path / "b", [with_gains], [np.ones(N)], columns=[without])
    with pytest.raises(DataError, match=f"{names_of(with_gains)[0]}: has the decision ACCEPT and no gain"):
        export_json(snapshot, path)
    card = snapshot.folder / "snapshot.json"
    card.write_text(card.read_text().replace(str(with_gains), "https://somewhere/shards"))
    with pytest.raises(UserError, match="https://somewhere/shards is remote"):
        export_json(open_snapshot(snapshot.folder), path)
    assert not list(tmp_path.glob("*out.json*"))

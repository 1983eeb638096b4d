"""`bamboo grow`: features in, state and snapshots in and out."""

from pathlib import Path

import numpy as np
import pytest

from bamboo.datasets.growth.snapshot import open_snapshot, verify_files
from bamboo.datasets.shards import Shards
from tests.datasets.growth.grown import exact_gains
from tests.datasets.growth.steps import Grow, content, cosines_of_all, step


def test_two_folders_grow_one_after_another(arrivals: Path, tmp_path: Path, grow: Grow) -> None:
    """Gains of the second folder are by all samples of both, as brute force over the two together; each step leaves a snapshot that
    verifies, and the first is untouched by the second.
    """
    state = tmp_path / "state"
    code, output, errors = grow(state, *step(arrivals, "first"))
    assert code == 0, errors
    assert "snapshot 1" in output
    assert "5 duplicate" in output
    first = content(state)
    assert grow(state, *step(arrivals, "second"))[0] == 0
    assert {name: data for name, data in content(state).items() if name in first and name != "latest"} == {
        name: data for name, data in first.items() if name != "latest"
    }
    snapshot = open_snapshot(state)
    verify_files(snapshot)
    assert snapshot.number == 2
    assert snapshot.card["parent"] == open_snapshot(state / "snapshots" / "000001").content_hash
    features = [np.load(arrivals / f"{name}-image" / "features.npy") for name in ("first", "second")]
    exact = exact_gains(np.concatenate(features))
    columns = [snapshot.columns(number) for number in (0, 1)]
    np.testing.assert_allclose(np.concatenate([part["image_gain"] for part in columns]), exact, atol=5e-4)
    np.testing.assert_array_equal(columns[1]["arrival"], np.arange(60, 105))
    shards = Shards.open(arrivals / "second")
    np.testing.assert_array_equal(columns[1]["key_hash"], shards.index.key_hash)
    settled = 1 - np.sort(cosines_of_all(np.concatenate(features)), axis=1)[:, -4:].mean(1)
    np.testing.assert_allclose(np.concatenate([part["image_settled"] for part in columns]), settled, atol=5e-4)
    for folder in snapshot.training:
        visits = np.load(folder.probabilities)
        assert len(visits) == folder.num_samples
    assert sum(float(np.load(folder.probabilities).sum()) for folder in snapshot.training) == pytest.approx(
        snapshot.card["policy_summary"]["epoch_samples"], rel=1e-5
    )


def test_the_same_step_again_changes_nothing(arrivals: Path, tmp_path: Path, grow: Grow) -> None:
    """A step that is in the state already, and a policy that is that of the newest snapshot: nothing is written; another policy makes a
    snapshot of the same columns.
    """
    state = tmp_path / "state"
    grow(state, *step(arrivals, "first"))
    before = content(state)
    code, output, _ = grow(state, *step(arrivals, "first"))
    assert code == 0
    assert "nothing to grow" in output
    assert "nothing has changed" in output
    assert content(state) == before
    code, output, errors = grow(state, "--policy.kind", "static", "--policy.budget", 20)
    assert code == 0, errors
    snapshot = open_snapshot(state)
    assert snapshot.number == 2
    visits = np.load(snapshot.training[0].probabilities)
    assert (np.unique(visits).tolist(), int(visits.sum())) == ([0, 1], 20)
    first = open_snapshot(state / "snapshots" / "000001")
    np.testing.assert_array_equal(snapshot.columns(0)["image_settled"], first.columns(0)["image_settled"])


def test_image_and_text(arrivals: Path, tmp_path: Path, grow: Grow) -> None:
    """Both modalities: gain is their mean, for the samples whose captions fit."""
    state = tmp_path / "state"
    code, output, errors = grow(state, *step(arrivals, "first", "image", "text"), "--cleaning.alignment", 0.3)
    assert code == 0, errors
    columns = open_snapshot(state).columns(0)
    kept = columns["alignment"] >= 0.3
    assert 0 < kept.sum() <= 60
    np.testing.assert_allclose(columns["gain"][kept], (columns["image_gain"] + columns["text_gain"])[kept] / 2, atol=1e-6)
    assert "audit of source 0, text" in output


def test_a_dry_run_writes_nothing(arrivals: Path, tmp_path: Path, grow: Grow) -> None:
    """`--dry-run` says how many samples, how much disk and memory; no folder appears."""
    code, output, _ = grow(tmp_path / "state", *step(arrivals, "first"), "--dry-run")
    assert code == 0
    assert "60 samples" in output
    assert "2.4 kB on the disk" in output  # 60 · (2 · 16 + 8) bytes
    assert not (tmp_path / "state").exists()


def test_a_dry_run_tells_what_a_policy_comes_to(arrivals: Path, tmp_path: Path, grow: Grow) -> None:
    """On a state, without new data: the summary of the policy as the snapshot then has it; nothing is written."""
    state = tmp_path / "state"
    grow(state, *step(arrivals, "first"))
    before = content(state)
    policy = ["--policy.kind", "proportional", "--policy.budget", "40 %"]
    code, output, errors = grow(state, *policy, "--dry-run")
    assert code == 0, errors
    assert "an epoch of 22 of 55 samples" in output
    assert content(state) == before
    assert "an epoch of 22 of 55 samples" in grow(state, *policy)[1]


@pytest.mark.parametrize("kind", ["exact", "hnsw"])
def test_other_engines(arrivals: Path, tmp_path: Path, grow: Grow, kind: str) -> None:
    """All codes compared, and InfoGrowth's own graph: on 60 samples both give what brute force gives; one state has one engine."""
    if kind == "hnsw":
        pytest.importorskip("hnswlib", reason="the extra hnsw needs a C++ compiler")
    state = tmp_path / "state"
    code, _, errors = grow(state, *step(arrivals, "first"), "--engine.kind", kind)
    assert code == 0, errors
    exact = exact_gains(np.load(arrivals / "first-image" / "features.npy"))
    np.testing.assert_allclose(open_snapshot(state).columns(0)["image_gain"], exact, atol=1e-3)
    code, _, errors = grow(state, *step(arrivals, "second"))
    assert code == 2
    assert f"engine=cells: the state began with {kind}" in errors


def test_a_policy_stays_until_another_is_asked_for(arrivals: Path, tmp_path: Path, grow: Grow) -> None:
    """A step without policy.* goes on with that of the newest snapshot; one that names a kind, the default too, has that."""
    state = tmp_path / "state"
    grow(state, *step(arrivals, "first"), "--policy.kind", "two-phase", "--policy.temperature", 2)
    grow(state, *step(arrivals, "second"))
    policy = open_snapshot(state).card["policy"]
    assert (policy["kind"], policy["temperature"]) == ("two-phase", 2)
    grow(state, "--policy.kind", "proportional")
    assert open_snapshot(state).card["policy"]["kind"] == "proportional"


def test_shards_packed_by_gain_train_from_a_snapshot_of_their_own(arrivals: Path, tmp_path: Path, grow: Grow) -> None:
    """`--bucket.out`: images of probability above 0, in shards of one bucket each; a snapshot names that folder, whose probabilities are
    those of the same images before.
    """
    state, out = tmp_path / "state", tmp_path / "packed"
    grow(state, *step(arrivals, "first"))
    before = open_snapshot(state)
    code, output, errors = grow(state, "--bucket.out", out, "--bucket.count", 4, "--bucket.samples_per_shard", 10, "--bucket.processes", 1)
    assert code == 0, errors
    snapshot = open_snapshot(state)
    (folder,) = snapshot.training
    assert (snapshot.number, folder.location, folder.grouped) == (2, str(out), True)
    assert "in groups of shards" in output
    packed, original = Shards.open(out), Shards.open(arrivals / "first")
    visits, images = np.load(folder.probabilities), {original.read(i): i for i in range(60)}
    expected = np.load(before.training[0].probabilities)
    assert len(packed) == int((expected > 0).sum())
    np.testing.assert_array_equal(visits, [expected[images[packed.read(i)]] for i in range(len(packed))])
    np.testing.assert_array_equal(snapshot.columns(0)["gain"], before.columns(0)["gain"])
    files = content(state)
    assert grow(state, "--bucket.out", out, "--bucket.count", 4, "--bucket.samples_per_shard", 10, "--bucket.processes", 1)[0] == 0
    assert grow(state, "--export", tmp_path / "list.json")[0] == 0
    assert content(state) == files, "the same again, and an export, change nothing"
    grow(state, *step(arrivals, "second"))
    assert [folder.location for folder in open_snapshot(state).training] == [str(arrivals / "first"), str(arrivals / "second")]

"""`bamboo grow`: features in, state and snapshots in and out; refusals leave the state as it was; kills end in the same snapshot."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bamboo.cli.main import main
from bamboo.datasets.feature_folder import write_features
from bamboo.datasets.growth.settings import GrowSettings
from bamboo.datasets.growth.snapshot import open_snapshot, verify_files
from bamboo.datasets.growth.state import GrowthState
from bamboo.datasets.shards import Shards
from tests.conftest import pack, write_pool
from tests.datasets.growth.grown import IDENTITY, exact_gains, vectors
from tests.pretrain.launch import ENVIRONMENT

Grow = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def arrivals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shard folders `first` (60 images) and `second` (45), with features of both beside them: `first-image`, …, of width 16."""
    folder = tmp_path_factory.mktemp("arrivals")
    for number, (name, count) in enumerate((("first", 60), ("second", 45))):
        write_pool(folder / f"{name}-images", count, number)
        pack(folder / f"{name}-images", folder / name)
        features = vectors(count, 16, seed=number)
        features[-5:] = features[:5]
        put_features(folder / f"{name}-image", features, folder / name)
        put_features(folder / f"{name}-text", features + 0.3 * vectors(count, 16, seed=9), folder / name)
    return folder


def put_features(out: Path, features: np.ndarray, shards: Path, **identity: Any) -> None:
    """Writes features as those of a shard folder."""
    opened = Shards.open(shards)
    made_from = {**IDENTITY, "data": opened.data_hash, **identity}
    write_features(out, features, np.asarray(opened.labels, np.int64), opened.class_names, made_from, {})


@pytest.fixture
def grow(capsys: pytest.CaptureFixture[str]) -> Grow:
    """Runs `bamboo grow …` in this process and returns (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["grow", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def content(state: Path) -> dict[str, bytes]:
    """Returns every file of a state but locks."""
    return {str(path.relative_to(state)): path.read_bytes() for path in sorted(state.rglob("*")) if path.is_file() and path.name != ".lock"}


def step(arrivals: Path, name: str, *modalities: str) -> list[object]:
    """Returns the arguments of a step over one of the folders."""
    return ["--data", arrivals / name, *(word for kind in modalities or ("image",) for word in (f"--{kind}", arrivals / f"{name}-{kind}"))]


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
    settled = 1 - np.sort(_cosines(np.concatenate(features)), axis=1)[:, -4:].mean(1)
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


def refusals(arrivals: Path, spoiled: Path) -> dict[str, tuple[list[object], str]]:
    """Returns, by name, arguments of a second step that must be refused, and a part of what is said."""
    features = np.load(arrivals / "second-image" / "features.npy")
    put_features(spoiled / "wide", vectors(45, 24), arrivals / "second")
    put_features(spoiled / "encoder", features, arrivals / "second", checkpoint="other")
    put_features(spoiled / "nan", np.where(np.arange(45)[:, None] == 7, np.nan, features).astype(np.float32), arrivals / "second")
    put_features(spoiled / "zero", np.where(np.arange(45)[:, None] == 8, 0, features).astype(np.float32), arrivals / "second")
    for name in ("cut", "altered", "lost"):
        shutil.copytree(arrivals / "second-image", spoiled / name)
    data = (spoiled / "cut" / "features.npy").read_bytes()
    (spoiled / "cut" / "features.npy").write_bytes(data[:-100])
    (spoiled / "altered" / "features.npy").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (spoiled / "lost" / "manifest.json").unlink()
    second = ["--data", arrivals / "second", "--image"]
    return {
        "dimension": ([*second, spoiled / "wide"], "features of width 24; the state has 16"),
        "encoder": ([*second, spoiled / "encoder"], "made by another encoder"),
        "nan": ([*second, spoiled / "nan"], "the features of sample 7 are not finite"),
        "zero": ([*second, spoiled / "zero"], "the features of sample 8 are all zeros"),
        "cut": ([*second, spoiled / "cut"], "damaged"),
        "altered": ([*second, spoiled / "altered"], "altered since it was made"),
        "lost": ([*second, spoiled / "lost"], "not a finished feature folder"),
        "other data": ([*second, arrivals / "first-image"], "features of other data"),
        "k": ([*second, arrivals / "second-image", "--k", 5], "k=5: the state began with 4"),
        "modality": (step(arrivals, "second", "text"), "features of text: the state has image"),
        "no features": (["--data", arrivals / "second"], "data is given without features"),
        "no data": (["--image", arrivals / "second-image"], "of which samples"),
        "budget": (["--policy.kind", "static", "--policy.budget", 1000], "an epoch of 1,000 samples cannot be drawn"),
        "audit": (
            [*second, arrivals / "second-image", "--engine.audit_limit", "1e-9"],
            "audit failed",
        ),
    }


def test_what_does_not_fit_is_refused_and_the_state_stays(arrivals: Path, tmp_path: Path, grow: Grow) -> None:
    """Another width, another encoder, NaN, zeros, damaged, altered and foreign feature folders, other settings, a policy out of reach, a
    failed audit: an error that names the cause; every file of the state's sources and snapshots is as it was, and the right step then
    goes on as if nothing had been.
    """
    state, straight = tmp_path / "state", tmp_path / "straight"
    for folder in (state, straight):
        assert grow(folder, *step(arrivals, "first"))[0] == 0
    before = content(state)
    (tmp_path / "spoiled").mkdir()
    for name, (arguments, said) in refusals(arrivals, tmp_path / "spoiled").items():
        code, _, errors = grow(state, *arguments)
        assert code in (1, 2), name
        assert said in errors, (name, errors)
        assert "Traceback" not in errors
        after = content(state)
        assert {key: after[key] for key in before} == before, name
        assert not [key for key in after if key not in before and not key.startswith("sources/000001/")], name
    assert grow(state, *step(arrivals, "second"))[0] == 0
    assert grow(straight, *step(arrivals, "second"))[0] == 0
    assert content(state) == content(straight)


def test_a_state_whose_files_were_altered_is_refused(arrivals: Path, tmp_path: Path, grow: Grow) -> None:
    """A flipped byte in codes or columns of an earlier step is found by its hash before anything grows."""
    state = tmp_path / "state"
    grow(state, *step(arrivals, "first"))
    path = next((state / "sources" / "000000" / "codes").glob("*-image.npy"))
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    code, _, errors = grow(state, *step(arrivals, "second"))
    assert code == 1
    assert f"{path}: missing or altered" in errors
    (state / "growth.json").write_text("{")
    assert "growth.json: damaged" in grow(state, *step(arrivals, "second"))[2]


def test_another_folder_is_no_state(arrivals: Path, tmp_path: Path, grow: Grow) -> None:
    """A folder with something else in it, and a state that another process grows: refused by name."""
    (tmp_path / "notes.txt").write_text("mine")
    code, _, errors = grow(tmp_path, *step(arrivals, "first"))
    assert (code, (tmp_path / "notes.txt").read_text()) == (2, "mine")
    assert "something else than a growth state" in errors
    with GrowthState(tmp_path / "state").held():
        assert "another process is growing it" in grow(tmp_path / "state", *step(arrivals, "first"))[2]


def test_a_full_disk_leaves_the_state_whole(arrivals: Path, mount_disk: Callable[[str], Path], tmp_path: Path, grow: Grow) -> None:
    """A step onto a disk that fills up: the error names the file, the state opens as before, and goes on once there is room."""
    state, straight = mount_disk("1m") / "state", tmp_path / "straight"
    for folder in (state, straight):
        assert grow(folder, *step(arrivals, "first"))[0] == 0
    before = content(state)
    filler = state.parent / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    code, _, errors = grow(state, *step(arrivals, "second"))
    assert code == 1
    assert "No space left" in errors
    assert {key: data for key, data in content(state).items() if key in before} == before
    filler.unlink()
    assert grow(state, *step(arrivals, "second"))[0] == 0
    assert grow(straight, *step(arrivals, "second"))[0] == 0
    assert content(state) == content(straight)


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


@pytest.mark.slow
def test_kill_minus_9_in_mid_growth_ends_in_the_same_snapshot(tmp_path: Path) -> None:
    """6,100 small images, killed with SIGKILL at three moments of growth: the same command then leaves every file as without a kill."""
    write_pool(tmp_path / "images", 300, 0)
    for number in range(1, 30):
        shutil.copytree(tmp_path / "images" / "dots", tmp_path / "images" / f"dots{number}")
        shutil.copytree(tmp_path / "images" / "waves", tmp_path / "images" / f"waves{number}")
    assert main(["shards", "pack", str(tmp_path / "images"), "--out", str(tmp_path / "shards"), "--samples-per-shard", "1000"]) == 0
    shards = Shards.open(tmp_path / "shards")
    put_features(tmp_path / "features", vectors(len(shards), 512), tmp_path / "shards")
    growing = ["--data", str(tmp_path / "shards"), "--image", str(tmp_path / "features")]

    def command(state: Path) -> list[str]:
        return [sys.executable, "-m", "bamboo.cli", "grow", str(state), *growing]

    straight, killed = tmp_path / "straight", tmp_path / "killed"
    subprocess.run(command(straight), check=True, env=ENVIRONMENT, timeout=300)
    expected = content(straight)
    moments = ("sources/000000/begun.json", "sources/000000/parts/000000.parquet", "sources/000000/source.json")
    for moment in moments:
        process = subprocess.Popen(command(killed), env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not (killed / moment).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (killed / "latest").exists(), f"it was killed too late, after {moment}"
    subprocess.run(command(killed), check=True, env=ENVIRONMENT, timeout=300)
    assert content(killed) == expected
    assert open_snapshot(killed).content_hash == open_snapshot(straight).content_hash


def test_settings_are_checked_together() -> None:
    """What contradicts itself is named: recaptions without captions, an effort that the engine does not use, buckets without a folder."""
    from bamboo.cli.config import build
    from bamboo.cli.errors import UserError

    tree = {"state": "s", "data": "d", "image": "i", "recaptions": "r", "engine": {"kind": "exact", "effort": 7}, "bucket": {"count": 3}}
    with pytest.raises(UserError) as caught:
        build(GrowSettings, tree, "settings")
    for part in ("recaptions=r: need image and text", "engine.effort=7: kind=exact does not use it", "bucket: give bucket.out"):
        assert part in str(caught.value)
    assert json.dumps(GrowSettings(state=Path("s")).shared)


def _cosines(features: np.ndarray) -> np.ndarray:
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    near: np.ndarray = unit @ unit.T
    np.fill_diagonal(near, -np.inf)
    return near

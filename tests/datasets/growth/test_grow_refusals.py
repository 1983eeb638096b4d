"""`bamboo grow` refuses what does not fit and leaves the state whole; kills end in the same snapshot."""

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

from bamboo.cli.main import main
from bamboo.datasets.growth.settings import GrowSettings
from bamboo.datasets.growth.snapshot import open_snapshot
from bamboo.datasets.growth.state import GrowthState
from bamboo.datasets.shards import Shards
from tests.conftest import write_pool
from tests.datasets.growth.grown import vectors
from tests.datasets.growth.steps import Grow, content, put_features, step
from tests.pretrain.launch import ENVIRONMENT, free_port


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


def test_a_lost_source_is_named_and_nothing_is_removed(arrivals: Path, tmp_path: Path, grow: Grow) -> None:
    """source.json of the first or of the last of two steps gone: every further call ends with its name, and no file changes."""
    state = tmp_path / "state"
    for name in ("first", "second"):
        grow(state, *step(arrivals, name))
    for number in ("000000", "000001"):
        path = state / "sources" / number / "source.json"
        kept = path.read_bytes()
        path.unlink()
        before = content(state)
        for arguments in (step(arrivals, "second"), ["--policy.kind", "uniform"]):
            code, _, errors = grow(state, *arguments)
            assert code == 1
            assert f"{path.parent}: source.json of a source that later ones or snapshots go on from is missing" in errors
        assert content(state) == before
        path.write_bytes(kept)
    (state / "latest").unlink()
    assert grow(state, "--policy.kind", "uniform")[0] == 0
    assert open_snapshot(state).number == 3, "numbers go on without the file that names the newest"


def test_a_first_step_that_failed_binds_nothing(arrivals: Path, tmp_path: Path, grow: Grow) -> None:
    """Features of an encoder, another width and another k that were refused for a NaN: the right ones then begin the state."""
    state = tmp_path / "state"
    features = np.where(np.arange(60)[:, None] == 3, np.nan, vectors(60, 24)).astype(np.float32)
    put_features(tmp_path / "nan", features, arrivals / "first", checkpoint="other")
    assert grow(state, "--data", arrivals / "first", "--image", tmp_path / "nan", "--k", 7)[0] == 1
    assert grow(state, *step(arrivals, "first"))[0] == 0
    assert grow(tmp_path / "straight", *step(arrivals, "first"))[0] == 0
    assert content(state) == content(tmp_path / "straight")


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


@pytest.mark.slow
def test_kill_minus_9_in_mid_growth_ends_in_the_same_snapshot(tmp_path: Path) -> None:
    """6,100 small images, killed with SIGKILL at three moments of growth: the same command then leaves every file as without a kill."""
    write_pool(tmp_path / "images", 300, 0)
    for number in range(1, 30):
        shutil.copytree(tmp_path / "images" / "dots", tmp_path / "images" / f"dots{number}")
        shutil.copytree(tmp_path / "images" / "waves", tmp_path / "images" / f"waves{number}")
    assert main(["shards", "pack", str(tmp_path / "images"), "--out", str(tmp_path / "shards"), "--samples-per-shard", "1000"]) == 0
    shards = Shards.open(tmp_path / "shards")
    features = vectors(len(shards), 512)
    features[500:3000] = features[np.random.default_rng(0).integers(0, 100, 2500)]  # copies: equally near codes, and cells
    put_features(tmp_path / "features", features, tmp_path / "shards")
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
        assert (killed / moment).exists()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (killed / "latest").exists(), f"it was killed too late, after {moment}"
    subprocess.run(command(killed), check=True, env=ENVIRONMENT, timeout=300)
    assert content(killed) == expected
    shared = tmp_path / "shared"
    job = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    subprocess.run([sys.executable, *job, *command(shared)[1:]], check=True, env=ENVIRONMENT, timeout=300)
    assert content(shared) == expected, "two processes of torchrun leave the same files"
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

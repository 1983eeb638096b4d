"""Feature folders: computed once, resumable, equal on any number of ranks, never reused on a mismatch."""

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest
import timm
import torch

import bamboo.model_zoo.features as features_module
from bamboo.cli.errors import DataError, UserError
from bamboo.datasets.feature_folder import FeatureFolder, read_features
from bamboo.datasets.ranks import Ranks, start_ranks
from bamboo.datasets.shards import Shards
from bamboo.model_zoo.backbone import Backbone, open_backbone
from bamboo.model_zoo.export import Card, write_export
from bamboo.model_zoo.features import extract_features
from bamboo.model_zoo.preprocessing import Preprocessing
from tests.pretrain.launch import ENVIRONMENT, free_port


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 10 rows, so that 37 images make four."""
    monkeypatch.setattr(features_module, "PART_ROWS", 10)


@pytest.fixture
def backbone() -> Backbone:
    """Returns a small network."""
    return open_backbone("untrained:test_resnet", image_size=32)


def extract(
    backbone: Backbone, pool: Path, cache: Path, precision: str = "fp32", workers: int = 0, ranks: Ranks | None = None
) -> FeatureFolder:
    """Extracts the validation split's features."""
    shards = Shards.open(pool / "val")
    device = torch.device("cpu")
    return extract_features(
        backbone,
        shards,
        cache,
        precision=precision,
        batch_size=4,
        workers=workers,
        device=device,
        what="val",  # type: ignore[arg-type]  # precision and workers are parametrised by the tests
        ranks=ranks,
    )


def test_features_are_the_backbones(backbone: Backbone, pool: Path, tmp_path: Path) -> None:
    """Against the backbone on each image alone; labels in the shards' order."""
    folder = extract(backbone, pool, tmp_path)
    shards = Shards.open(pool / "val")
    view = backbone.preprocessing.view
    for sample in range(len(shards)):
        alone = backbone.features(view(shards.load(sample)).permute(1, 2, 0)[None])
        np.testing.assert_allclose(folder.features[sample], alone[0].numpy(), rtol=1e-4, atol=1e-5)
    assert folder.labels.tolist() == shards.labels.tolist()
    assert {path.name for path in folder.path.iterdir()} == {"features.npy", "labels.npy", "manifest.json"}
    assert read_features(folder.path).manifest == folder.manifest


def test_a_finished_folder_is_not_computed_again(backbone: Backbone, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second call reads; another precision, image size or network gets a folder of its own."""
    first = extract(backbone, pool, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "features", None)
        assert extract(backbone, pool, tmp_path).path == first.path
    others = [
        extract(backbone, pool, tmp_path, "bf16"),
        extract(open_backbone("untrained:test_resnet", image_size=24), pool, tmp_path),
        extract(open_backbone("untrained:test_resnet", image_size=32, seed=1), pool, tmp_path),
    ]
    assert len({first.path, *(other.path for other in others)}) == 4
    assert others[0].features.dtype == np.float16


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_extraction_goes_on(
    backbone: Backbone, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Stopped in the third part: the first two are kept, the result equals an uninterrupted one, bit for bit."""
    whole = extract(backbone, pool, tmp_path / "whole")
    calls = iter(range(100))

    def failing(self: Backbone, images: torch.Tensor, precision: str) -> torch.Tensor:
        if next(calls) == 7:
            raise KeyboardInterrupt
        return original(self, images, precision)  # type: ignore[arg-type]  # as the caller has it

    original = Backbone.features
    with monkeypatch.context() as patch:
        patch.setattr(Backbone, "features", failing)
        with pytest.raises(KeyboardInterrupt):
            extract(backbone, pool, tmp_path / "cut", workers=workers)
    assert len(list((tmp_path / "cut").rglob("part-*.npy"))) == 2
    with pytest.raises(UserError, match="not a finished feature folder"):
        read_features(next((tmp_path / "cut").iterdir()))
    resumed = extract(backbone, pool, tmp_path / "cut", workers=workers)
    assert np.array_equal(resumed.features, whole.features)


def test_damage_is_refused(backbone: Backbone, pool: Path, tmp_path: Path) -> None:
    """A cut array, a manifest of something else: an error that says to remove the folder."""
    folder = extract(backbone, pool, tmp_path)
    array = folder.path / "features.npy"
    whole = array.read_bytes()
    array.write_bytes(whole[:-100])
    with pytest.raises(DataError, match="remove it"):
        extract(backbone, pool, tmp_path)
    array.write_bytes(whole)
    manifest = folder.path / "manifest.json"
    tree = json.loads(manifest.read_text())
    tree["identity"]["data"] = "0" * 64
    manifest.write_text(json.dumps(tree))
    with pytest.raises(DataError, match="something else"):
        extract(backbone, pool, tmp_path)


def test_features_out_of_range_are_refused(backbone: Backbone, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over float16's range, or not finite: an error with the remedy, no folder taken for finished."""
    for value, message in ((1e6, "precision=fp32"), (float("nan"), "not finite")):
        monkeypatch.setattr(Backbone, "features", lambda self, images, precision, value=value: torch.full((len(images), 4), value))
        with pytest.raises(DataError, match=message):
            extract(backbone, pool, tmp_path, "bf16")


def test_equal_tensors_in_another_network(pool: Path, tmp_path: Path) -> None:
    """Two exports of the same tensors, one with another activation: hashes, folders and features of their own."""
    torch.manual_seed(0)
    state, folders = timm.create_model("test_vit", num_classes=0).state_dict(), list[FeatureFolder]()
    for model_args in ({}, {"act_layer": "quick_gelu"}):
        card = Card(
            architecture="test_vit", model_args=model_args, classes=(), preprocessing=Preprocessing(image_size=160), trained={"steps": 1}
        )
        path = write_export(tmp_path / str(len(folders)), state, card)
        folders.append(extract(open_backbone(str(path)), pool, tmp_path / "cache"))
    assert folders[0].path != folders[1].path
    assert not np.allclose(folders[0].features, folders[1].features, atol=1e-4)
    assert open_backbone(str(tmp_path / "0")).checkpoint_hash == folders[0].manifest["identity"]["checkpoint"]


@dataclasses.dataclass(frozen=True)
class ThreadRanks(Ranks):
    """Ranks that are threads of this process."""

    meeting: threading.Barrier = dataclasses.field(kw_only=True)
    said: list[str] = dataclasses.field(kw_only=True)

    def barrier(self) -> None:
        """Waits for every thread."""
        self.meeting.wait()

    def from_first(self, value: str) -> str:
        """Returns rank 0's value."""
        if self.is_first:
            self.said[:] = [value]
        self.meeting.wait()
        heard = self.said[0]
        self.meeting.wait()
        return heard


def test_a_late_rank_beside_another_job(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks wait while another process holds the folder; then one begins 0.5 s late, and the parts are those of one rank."""
    alone = extract(open_backbone("untrained:test_resnet", image_size=32), pool, tmp_path / "alone")
    folder, moved, meeting, said = tmp_path / "two" / alone.path.name, Backbone.to, threading.Barrier(2, timeout=20), [""]
    folder.mkdir(parents=True)

    def late(self: Backbone, device: torch.device) -> Backbone:
        time.sleep(0.5 if self is networks[1] else 0.0)
        return moved(self, device)

    monkeypatch.setattr(Backbone, "to", late)
    monkeypatch.setattr(features_module, "_WORD_EVERY_S", 0.05)
    networks = [open_backbone("untrained:test_resnet", image_size=32) for _ in range(2)]
    ranks = [ThreadRanks(rank, rank, 2, torch.device("cpu"), meeting=meeting, said=said) for rank in range(2)]
    lock = filelock.FileLock(folder / ".lock")
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        with lock:
            coming = [threads.submit(extract, networks[rank], pool, tmp_path / "two", ranks=ranks[rank]) for rank in range(2)]
            time.sleep(0.5)
            assert not any(future.done() for future in coming)
            assert [path.name for path in folder.iterdir()] == [".lock"]
        folders = [future.result() for future in coming]
    assert all(np.array_equal(found.features, alone.features) for found in folders)
    assert {path.name for path in folder.iterdir()} == {"features.npy", "labels.npy", "manifest.json"}


def test_two_jobs_make_a_folder_once(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two jobs at once, whose parts take unequal time: four parts are written in all, both read the same folder."""
    write, written = features_module._write_part, list[Path]()
    networks = [open_backbone("untrained:test_resnet", image_size=32) for _ in range(2)]

    def slow(path: Path, *rest: Any) -> None:
        time.sleep(0.1 if threading.current_thread().name.endswith("_0") else 0.3)
        written.append(path)
        write(path, *rest)

    monkeypatch.setattr(features_module, "_write_part", slow)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        coming = [threads.submit(extract, network, pool, tmp_path) for network in networks]
        first, second = (future.result() for future in coming)
    assert len(written) == 4
    assert first.path == second.path
    assert np.array_equal(first.features, second.features)
    assert {path.name for path in first.path.iterdir()} == {"features.npy", "labels.npy", "manifest.json"}


def extract_on_rank(rank: int, world_size: int, port: int, pool: Path, cache: Path) -> None:
    """Extracts the training split's features in parts of 10 rows, as one of several ranks."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    features_module.PART_ROWS = 10
    ranks = start_ranks("cpu")
    network = open_backbone("untrained:test_resnet", image_size=32)
    shards, device = Shards.open(pool / "train"), torch.device("cpu")
    extract_features(network, shards, cache, precision="fp32", batch_size=4, workers=0, device=device, what="train", ranks=ranks)
    ranks.close()


@pytest.mark.slow
def test_two_ranks_write_what_one_writes(pool: Path, tmp_path: Path) -> None:
    """Eleven parts on one rank against the same parts on two: identical arrays."""
    for world_size in (1, 2):
        arguments = (world_size, free_port(), pool, tmp_path / str(world_size))
        torch.multiprocessing.start_processes(extract_on_rank, arguments, nprocs=world_size, start_method="spawn")
    one, two = (read_features(next((tmp_path / name).iterdir())) for name in ("1", "2"))
    assert one.path.name == two.path.name
    assert np.array_equal(one.features, two.features)


@pytest.mark.slow
def test_the_verb_runs_under_torchrun(pool: Path, tmp_path: Path) -> None:
    """`torchrun -m bamboo.cli features` on two ranks: a finished folder of every sample."""
    arguments = ["features", "untrained:test_resnet", str(pool / "train"), "--image-size", "32", "--device", "cpu", "--out", str(tmp_path)]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bamboo.cli"]
    subprocess.run([*launcher, *arguments], env={**os.environ, **ENVIRONMENT}, check=True, capture_output=True, timeout=240)
    assert len(read_features(next(tmp_path.iterdir())).features) == 101

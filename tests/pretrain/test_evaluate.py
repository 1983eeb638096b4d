"""Distributed accuracy."""

import dataclasses
import os
from pathlib import Path

import pytest
import timm
import torch

from bamboo.datasets.ranks import start_ranks
from bamboo.datasets.shards import Shards
from bamboo.datasets.stream.batches import EvalBatches
from bamboo.datasets.stream.loader import load_batches
from bamboo.model_zoo.preprocessing import Normalize, Preprocessing
from bamboo.pretrain.evaluators.classify import evaluate
from tests.pretrain.launch import free_port

BATCH_SIZE = 5  # 37 images: no number of ranks divides them


def score_on_rank(rank: int, world_size: int, port: int, folder: Path, out: Path) -> None:
    """Scores a fixed network on this rank's part; rank 0 writes the result."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    ranks = start_ranks("cpu")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    for buffer in model.buffers():
        buffer += rank  # ranks drift apart in training; rank 0's statistics count
    preprocessing = Preprocessing(image_size=32)
    source = EvalBatches(Shards.open(folder), preprocessing.view, BATCH_SIZE, ranks.rank, ranks.world_size)
    batches = load_batches(source, range(len(source)), workers=0)
    score = evaluate(model, Normalize(preprocessing), batches, ranks, "fp32")
    if ranks.is_first:
        out.write_text(repr(dataclasses.asdict(score)))
    ranks.close()


@pytest.mark.slow
def test_accuracy_is_the_same_number_on_any_number_of_ranks(pool: Path, tmp_path: Path) -> None:
    """1, 2 and 3 ranks against a plain loop over all images, one by one: the same hits to the last digit."""
    scores = []
    for world_size in (1, 2, 3):
        out = tmp_path / str(world_size)
        arguments = (world_size, free_port(), pool / "val", out)
        torch.multiprocessing.start_processes(score_on_rank, arguments, nprocs=world_size, start_method="spawn")
        scores.append(eval(out.read_text()))  # a repr that this test wrote
    assert scores[0]["num_images"] == 37
    for score in scores[1:]:
        assert all(score[name] == scores[0][name] for name in ("top1", "top5", "num_images"))
        assert score["loss"] == pytest.approx(scores[0]["loss"], rel=1e-6)
    assert scores[0]["top1"] == plain_top1(pool / "val")


def plain_top1(folder: Path) -> float:
    """Returns top-1 by the plainest loop there is."""
    shards = Shards.open(folder)
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3).eval()
    preprocessing = Preprocessing(image_size=32)
    normalize, view = Normalize(preprocessing), preprocessing.view
    hits = 0
    with torch.no_grad():
        for sample in range(len(shards)):
            image = view(shards.load(sample)).permute(1, 2, 0)[None]
            hits += int(model(normalize(image)).argmax()) == int(shards.labels[sample])
    return hits / len(shards)

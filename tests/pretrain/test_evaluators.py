"""Evaluators on downstream sets: settings, values against `bamboo probe` on the export, every due one once whatever happens."""

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bamboo.cli.errors import EXIT_RESUMABLE, DataError
from bamboo.cli.main import main
from bamboo.datasets.downstream.sets import open_both
from bamboo.datasets.ranks import Ranks, start_ranks
from bamboo.linear_probe.results import ResultRow, read_rows
from bamboo.model_zoo.backbone import backbone_in_training, open_backbone
from bamboo.model_zoo.export import read_card, read_weights
from bamboo.model_zoo.features import extract_features
from bamboo.pretrain.batches import RunBatches
from bamboo.pretrain.evaluators.features import Extraction, Gathered
from bamboo.pretrain.evaluators.opened import open_evaluators
from bamboo.pretrain.evaluators.scoring import score_downstream
from bamboo.pretrain.log import read_log
from bamboo.pretrain.pool import open_pool
from bamboo.pretrain.settings.pretrain import PretrainSettings
from bamboo.pretrain.stopping.preemption import StopRequested, Vote
from bamboo.pretrain.stopping.signals import StopSignals
from tests.faults.test_kill import trace
from tests.faults.test_preemption import Boundaries
from tests.pretrain.hard_set import COUNTS, draw, evaluators
from tests.pretrain.launch import finish, free_port, options, rank_processes, start, train, wait_for_step

KNN = {"kind": "knn", "every": "2 steps"}
PROBE = {"kind": "probe", "every": "3 steps", "subset": "60p"}
RESNET = {"model.name": "test_resnet", "model.args": "{}"}  # its batch norms have statistics, and its classifier a name of its own
SHORT = {"run.duration": "4 steps", "run.eval_batch_size": "16"}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("set"))


def rows_of(folder: Path, name: str | None = None) -> list[dict[str, Any]]:
    return read_log(folder, "eval", name)


def found(row: dict[str, Any]) -> dict[str, Any]:
    """Returns the part of a row that does not depend on when and how fast."""
    return {key: value for key, value in row.items() if key not in ("time", "seconds", "features_s", "solver_s")}


def probed(run: Path, images: Path, out: Path, *words: str) -> ResultRow:
    """Returns the row of `bamboo probe` on a run's export."""
    place = ["--dataset", "folder", "--data-root", str(images), "--out", str(out), "--cache", str(out / "cache")]
    how = ["--precision", "fp32", "--device", "cpu", "--workers", "0", "--batch-size", "16"]
    assert main(["probe", str(run), *place, *how, *words]) == 0
    return read_rows(out / "results.jsonl").rows[-1]


@pytest.mark.parametrize("extra", [{}, {**RESNET, "run.ema_decay": "0.9"}])
def test_values_are_those_of_a_probe_of_the_export(pool: Path, images: Path, tmp_path: Path, extra: dict[str, str]) -> None:
    """k-NN and probe after the last step against `bamboo probe` on the exported model: accuracies, errors, λ and certificate, all equal."""
    chosen = evaluators(images, near=KNN, line=PROBE, whole={"kind": "probe", "every": "100 %"})
    assert main(["pretrain", *options(pool, tmp_path / "run", {**SHORT, **extra, "evaluators": chosen})]) == 0
    near, line, whole = (rows_of(tmp_path / "run", name)[-1] for name in ("near", "line", "whole"))
    assert {row["weights"] for row in (near, line, whole)} == {"ema" if extra else "model"}
    knn = probed(tmp_path / "run", images, tmp_path / "probe", "--protocol", "knn")
    variant = knn.details["variants"]["k=20"]
    assert 0.4 < near["value"] < 1
    assert (near["top1"], near["mean_per_class"]) == (variant["top1"]["value"], variant["mean_per_class"]["value"])
    assert near["standard_error"] == variant["top1"]["standard_error"]
    for row, words in ((line, ("--subset", "60p")), (whole, ())):
        probe = probed(tmp_path / "run", images, tmp_path / "probe", *words)
        assert (row["value"], row["standard_error"]) == (probe.value, probe.standard_error)
        assert (row["certificate"], row["chosen"]) == (probe.certificate, probe.details["chosen"])
        assert (row["num_train"], row["num_images"]) == (probe.details["num_train"], probe.details["num_test"])
    assert line["num_train"] < whole["num_train"] == sum(COUNTS["train"])


def test_each_is_scored_when_it_is_due_and_training_does_not_notice(pool: Path, images: Path, tmp_path: Path) -> None:
    """Evaluators every 2 and 3 of 5 steps, data.val every 4: these steps and the last; losses, samples and bytes of a run without."""
    settings = {**RESNET, "run.duration": "5 steps", "run.ema_decay": "0.9", "run.eval_every": "4 steps"}
    assert main(["pretrain", *options(pool, tmp_path / "without", settings)]) == 0
    run = tmp_path / "with"
    assert main(["pretrain", *options(pool, run, {**settings, "evaluators": evaluators(images, near=KNN, line=PROBE)})]) == 0
    steps = {name: [row["step"] for row in rows_of(run, name)] for name in ("val", "near", "line")}
    assert steps == {"val": [4, 5], "near": [2, 4, 5], "line": [3, 5]}
    assert all(row["seconds"] > 0 for row in rows_of(run))
    assert trace(run) == trace(tmp_path / "without")
    weights = "export/model.safetensors"
    assert (run / weights).read_bytes() == (tmp_path / "without" / weights).read_bytes()


def test_the_best_by_an_evaluator_is_kept(pool: Path, images: Path, tmp_path: Path) -> None:
    """run.best_by against the evaluator's rows: the checkpoint of its highest value stays beside the newest."""
    best = {"run.keep_checkpoints": "1", "run.keep_best": "1", "run.best_by": "near", "run.checkpoint_every": "2 steps"}
    settings = {**RESNET, "run.duration": "8 steps", "optimizer.lr": "0.02", **best, "evaluators": evaluators(images, near=KNN)}
    assert main(["pretrain", *options(pool, tmp_path, settings)]) == 0
    values = {row["step"]: row["value"] for row in rows_of(tmp_path, "near")}
    top = max(values, key=lambda step: (values[step], step))
    kept = sorted(int(path.name[-8:]) for path in (tmp_path / "checkpoints").glob("step-*"))
    assert kept == sorted({top, 8})


@pytest.mark.parametrize("stops", [(5, 13), pytest.param(tuple(range(3, 42, 2)), marks=pytest.mark.slow)])
def test_a_stop_inside_an_evaluation(
    pool: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    """SIGUSR1 between batches and between a solver's iterations: 75, then each due evaluation once, its values those of a whole run."""
    settings = {**SHORT, **RESNET, "run.duration": "3 steps", "run.eval_every": "3 steps", "run.ema_decay": "0.9"}
    settings["evaluators"] = evaluators(images, near=KNN, line=PROBE)
    boundaries = Boundaries(monkeypatch)
    assert main(["pretrain", *options(pool, tmp_path / "whole", settings)]) == 0
    places = list(boundaries.places)
    # two steps, then features in 7 + 4 batches and 1 block of queries; one step, data.val in 3 batches, features again, block, iterations
    assert places[: 3 + 11 + 1] == ["training"] * 2 + ["evaluation"] * 11 + ["waiting", "training"]
    assert places[15 : 15 + 14 + 2] == ["evaluation"] * 14 + ["waiting"] * 2
    for at in stops:
        folder = tmp_path / str(at)
        boundaries.places, boundaries.at = [], at
        assert main(["pretrain", *options(pool, folder, settings)]) == EXIT_RESUMABLE
        boundaries.at = -1
        assert main(["pretrain", *options(pool, folder, settings)]) == 0
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        told = [(line["step"], line["name"]) for line in lines if line["kind"] == "eval"]
        assert sorted(told) == [(2, "near"), (3, "line"), (3, "near"), (3, "val")], f"boundary {at}, {places[at]}"
        assert [found(row) for row in sorted(rows_of(folder), key=repr)] == [
            found(row) for row in sorted(rows_of(tmp_path / "whole"), key=repr)
        ]
        assert trace(folder) == trace(tmp_path / "whole")


def test_a_row_of_weights_that_are_no_more_counts_for_nothing(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed start left a row of step 3; the next one, from step 1, is stopped in its own evaluation of step 3: that is made up for."""
    settings = {**SHORT, "run.duration": "3 steps", "run.checkpoint_every": "1 steps"}
    boundaries = Boundaries(monkeypatch)
    boundaries.at = 4  # three steps and the first of the evaluation's batches
    assert main(["pretrain", *options(pool, tmp_path, settings)]) == EXIT_RESUMABLE
    assert boundaries.places[-1] == "evaluation"
    boundaries.at = -1
    log = tmp_path / "log.jsonl"
    stale = [{"kind": "start", "step": 0}, {"kind": "eval", "step": 3, "name": "val", "top1": -1.0}, {"kind": "start", "step": 1}]
    log.write_text("".join(json.dumps(line) + "\n" for line in stale) + log.read_text())
    for _ in range(2):  # and once told, it is not told again
        assert main(["pretrain", *options(pool, tmp_path, settings)]) == 0
    assert [json.loads(line)["top1"] >= 0 for line in log.read_text().splitlines() if '"eval"' in line] == [False, True]


def test_what_does_not_fit_is_told_before_anything_is_touched(
    pool: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings that cannot work: exit code 2, the setting named as it is spelled, and no run folder."""
    run = tmp_path / "run"
    for section, said in (
        ({**KNN, "kk": 3}, "evaluators.x.kk: unknown setting; did you mean 'evaluators.x.k'?"),
        ({**KNN, "k": 0}, "evaluators.x.k=0: input should be greater than or equal to 1"),
        ({**KNN, "protocol": "clip"}, "evaluators.x.protocol: unknown setting"),
        ({"kind": "knm"}, "evaluators.x.kind=knm: allowed are knn, probe"),
        ({}, "evaluators.x.kind is required, and not given: allowed are knn, probe"),
        ({**KNN, "every": "2 moons"}, "evaluators.x.every='2 moons'"),
        ({**KNN, "every": "0 epochs"}, "evaluators.x.every=0 epochs: must be above 0"),
        ({**KNN, "dataset": "cifar11"}, "evaluators.x.dataset=cifar11: no such set; did you mean"),
        ({**KNN, "data_root": str(tmp_path / "gone")}, f"evaluators.x.data_root={tmp_path / 'gone'}: no such folder"),
        ({**KNN, "subset": "ten"}, "evaluators.x.subset='ten': must be"),
        ({**KNN, "k": 200}, f"evaluators.x.k=200: there are {sum(COUNTS['train'])} training images (subset=100p)"),
        ({**PROBE, "subset": "1shot"}, "evaluators.x.the training set cannot be probed"),
    ):
        assert main(["pretrain", *options(pool, run, {"evaluators": evaluators(images, x=section)})]) == 2, said
        assert said in capsys.readouterr().err
    for settings, said in (
        ({"evaluators": evaluators(images, val=KNN)}, "evaluators.val: is the name of what data.val"),
        ({"evaluators": evaluators(images, **{"a b": KNN})}, "evaluators.a b: a name is made of"),
        ({"run.keep_best": "1", "run.best_by": "near"}, "run.best_by=near: no such evaluator"),
        ({"run.best_by": "near"}, "run.best_by=near: nothing goes by it"),
        ({"run.eval_every": "0 steps", "run.keep_every": "0 %"}, "run.keep_every=0 %: must be above 0"),
    ):
        assert main(["pretrain", *options(pool, run, settings)]) == 2, said
        assert said in capsys.readouterr().err
    assert not run.exists()


def test_a_dry_run_lists_the_evaluators(pool: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--dry_run` against the set's sizes: one line for each evaluator."""
    words = options(pool, tmp_path / "run", {"evaluators": evaluators(images, near=KNN, line=PROBE)})
    assert main(["pretrain", *words, "--dry-run"]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("evaluator ")]
    assert listed == [
        "evaluator near: k-NN, k=20, on folder (109 train and 59 test images, 3 classes), every 2 steps",
        "evaluator line: linear probe, standard, on folder (66 train and 59 test images, 3 classes), every 3 steps",
    ]
    assert not (tmp_path / "run").exists()


def settings_of(pool: Path, run: Path, images: Path) -> PretrainSettings:
    """Returns the settings of a run on the test pool with two evaluators."""
    from bamboo.cli.arguments import parse

    return parse(PretrainSettings, options(pool, run, {**SHORT, "evaluators": evaluators(images, near=KNN, line=PROBE)}), prog="", doc="")


@pytest.mark.parametrize(("values", "said"), [(1.0, "the features are all equal"), (np.nan, "not finite")])
def test_features_that_tell_nothing_apart(pool: Path, images: Path, tmp_path: Path, values: float, said: str) -> None:
    """Equal and non-finite features: a row with the reason in place of a value, since training may go on."""
    line = open_evaluators(settings_of(pool, tmp_path, images))[1]
    train, test = (Gathered(np.zeros((count, 4), np.float32)) for count in (sum(COUNTS["train"]), sum(COUNTS["test"])))
    for gathered in (train, test):
        gathered.put(np.arange(len(gathered.matrix)), np.full(gathered.matrix.shape, values, np.float32), "fp32", "set")
    row = score_downstream(line, train, test, torch.device("cpu"))
    assert said in row["error"]
    assert "value" not in row


def test_float16_that_overflows_is_told_later() -> None:
    """Features beyond float16 after a bf16 pass: kept as a fault, not raised while other ranks wait."""
    gathered = Gathered(np.zeros((3, 2), np.float16))
    gathered.put(np.arange(2), np.full((2, 2), 1e6, np.float32), "bf16", "set train")
    gathered.put(np.arange(2, 3), np.ones((1, 2), np.float32), "bf16", "set train")
    with pytest.raises(DataError, match="set train: features reach 1e\\+06, over float16"):
        gathered.rows(np.zeros(3, np.int64))


def gather_on_rank(rank: int, world_size: int, port: int, pool: Path, run: Path, images: Path, out: Path) -> None:
    """Computes features of some training rows with every rank; the last one keeps them and writes them."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    ranks, keeper = start_ranks("cpu"), world_size - 1
    gathered = gather(ranks, keeper, pool, run, images)
    assert (gathered is not None) == (rank == keeper)
    if gathered is not None:
        np.save(out, gathered.matrix)
    ranks.close()


def some_rows() -> "np.ndarray[Any, np.dtype[np.int64]]":
    return np.arange(1, sum(COUNTS["train"]), 2)


def gather(ranks: Ranks, keeper: int, pool: Path, run: Path, images: Path) -> Gathered | None:
    """Returns the features of every other training image under a run's exported weights, as an evaluation computes them."""
    config = settings_of(pool, run, images)
    batches = RunBatches(config, open_pool(config), ranks, 1)
    extraction = Extraction(batches, 16, "bf16", ranks, Vote(StopSignals(), ranks))
    weights = run / "export" / "model.safetensors"
    card = read_card(weights)
    assert card is not None
    store, _ = open_both("folder", images)
    return extraction.gather(backbone_in_training(card, read_weights(weights)), store, some_rows(), keeper, "set train")


@pytest.fixture(scope="module")
def finished(pool: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a run without evaluators that has come to its end."""
    folder = tmp_path_factory.mktemp("finished")
    assert main(["pretrain", *options(pool, folder, {**SHORT, **RESNET})]) == 0
    return folder


def reference(run: Path, images: Path, cache: Path) -> Any:
    """Returns the features of `bamboo features` for the rows that are gathered; zeros elsewhere."""
    store, _ = open_both("folder", images)
    how: dict[str, Any] = {"precision": "bf16", "batch_size": 16, "workers": 0, "device": torch.device("cpu"), "what": "set"}
    features = np.array(extract_features(open_backbone(str(run)), store, cache, **how).features)
    features[~np.isin(np.arange(len(features)), some_rows())] = 0
    return features


def test_features_are_those_of_the_exported_model(pool: Path, images: Path, finished: Path, tmp_path: Path) -> None:
    """Gathered features of a part of the rows against `extract_features` of the export, at the same batch size: bit for bit."""
    gathered = gather(Ranks(0, 0, 1, torch.device("cpu")), 0, pool, finished, images)
    assert gathered is not None
    assert gathered.matrix.dtype == np.float16
    assert np.array_equal(gathered.matrix, reference(finished, images, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_features_are_the_same_on_any_number_of_ranks(pool: Path, images: Path, finished: Path, tmp_path: Path, world_size: int) -> None:
    """Features gathered from 2 and 3 ranks, which no batch divides evenly, against `extract_features` in one process: bit for bit."""
    arguments = (world_size, free_port(), pool, finished, images, tmp_path / "features.npy")
    torch.multiprocessing.start_processes(gather_on_rank, arguments, nprocs=world_size, start_method="spawn")
    assert np.array_equal(np.load(tmp_path / "features.npy"), reference(finished, images, tmp_path))


@pytest.mark.slow
def test_values_are_the_same_on_any_number_of_ranks(pool: Path, images: Path, finished: Path, tmp_path: Path) -> None:
    """The weights of one finished run, scored by 1, 2 and 3 ranks, and sharded by FSDP2 and ZeRO-3: the same rows to the last digit."""
    again = {name.replace(".", "__"): value for name, value in {**SHORT, **RESNET}.items()}
    chosen = evaluators(images, near=KNN, line=PROBE)
    scored = []
    zero = {"engine__zero_stage": "3"}
    for ranks, engine, more in ((0, "plain", {}), (2, "plain", {}), (3, "plain", {}), (2, "fsdp", {}), (2, "deepspeed", zero)):
        folder = shutil.copytree(finished, tmp_path / f"{ranks}-{engine}")
        train(pool, folder, ranks, evaluators=chosen, engine__kind=engine, **more, **again)
        scored.append([found(row) for row in rows_of(folder) if row["name"] != "val"])
    assert [row["name"] for row in scored[0]] == ["near", "line"]
    assert all(rows == scored[0] for rows in scored[1:])


@pytest.mark.slow
def test_two_ranks_stop_inside_an_evaluation(pool: Path, images: Path, tmp_path: Path) -> None:
    """SIGUSR1 to one rank of two while they evaluate after the last step: both end with 75; resumed, each evaluation has one row."""
    chosen = evaluators(images, near=KNN, line=PROBE, sgd={**PROBE, "protocol": "dino-linear"})
    settings = {**RESNET, "run.duration": "1 steps", "run.eval_batch_size": "16", "evaluators": chosen}
    process = start(2, options(pool, tmp_path, settings), (), "bamboo.pretrain.launch")  # whose exit code is the ranks'
    wait_for_step(process, tmp_path, 1)  # what follows is an evaluation of some seconds: 25,000 steps of SGD
    time.sleep(1)
    os.kill(rank_processes(process)[1], signal.SIGUSR1)
    code, output = finish(process)
    assert code == EXIT_RESUMABLE, output
    assert output.count("stopped on SIGUSR1 after step 1") == 2, output
    assert "sgd" not in {row["name"] for row in rows_of(tmp_path)}
    train(pool, tmp_path, 2, **{name.replace(".", "__"): value for name, value in settings.items()})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    told = sorted((line["step"], line["name"]) for line in lines if line["kind"] == "eval")
    assert told == [(1, "line"), (1, "near"), (1, "sgd"), (1, "val")]


def work_on_rank(rank: int, world_size: int, port: int, out: Path) -> None:
    """Rank 0 works for a while and the others wait; rank 1 is asked to stop in the second round."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    ranks, signals = start_ranks("cpu"), StopSignals()
    told: list[str] = []
    vote, lasted = Vote(signals, ranks, told.append), []
    for round_ in range(2):
        if round_ and rank == 1:
            signals._first = (10, time.monotonic())
        started, stopped = time.monotonic(), 0
        try:
            while rank == 0 and time.monotonic() - started < 3:
                time.sleep(0.01)
                vote.working()
            vote.until_none_works()
        except StopRequested as request:
            stopped = request.number
        lasted.append((round(time.monotonic() - started, 1), stopped, len(told)))
    (out / str(rank)).write_text(json.dumps(lasted))
    ranks.close()


@pytest.mark.slow
def test_ranks_wait_for_one_that_works(tmp_path: Path) -> None:
    """One rank at work for 3 s: the others return when it has done, a stop has all of them out within a second, and all told of as much."""
    torch.multiprocessing.start_processes(work_on_rank, (3, free_port(), tmp_path), nprocs=3, start_method="spawn")
    counts = set()
    for rank in range(3):
        (whole_s, number, told), (cut_s, asked, told_in_all) = json.loads((tmp_path / str(rank)).read_text())
        counts.add((told, told_in_all))
        assert (number, asked) == (0, 10)
        assert whole_s >= 2.9
        assert cut_s < 1.5
    ((told, told_in_all),) = counts
    assert 2 <= told < told_in_all, "whoever watches for ranks that hang hears of work that goes on"


def test_one_set_is_opened_once(pool: Path, images: Path, tmp_path: Path) -> None:
    """Two evaluators of one set: one opened set, so that its features are computed once for both."""
    near, line = open_evaluators(settings_of(pool, tmp_path, images))
    assert near.splits is line.splits
    assert dataclasses.asdict(near)["name"] == "near"

"""Runs on weighted, mixed and changing plans: what they see, what they record, and what they refuse."""

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from bamboo.cli.main import main
from bamboo.datasets.plan.order import Order
from bamboo.datasets.shards import Shards
from bamboo.pretrain.log import read_log
from tests.conftest import pack, write_pool
from tests.loopback import loopback
from tests.pretrain.launch import finish, options, start

STEPS = {"run.duration": "12 steps"}


def run(pool: Path, folder: Path, **settings: str) -> int:
    """Trains in this process and returns the exit code; settings are spelled with `__` for the dot."""
    chosen = {name.replace("__", "."): value for name, value in settings.items()}
    return main(["pretrain", *options(pool, folder, {**STEPS, **chosen})])


def stream(folder: Path) -> list[tuple[int, str]]:
    """Returns (samples consumed, fingerprint of what was seen) of every step."""
    return [(row["samples"], row["stream"]) for row in read_log(folder, "train")]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A weight column that leaves out every other sample of the 101."""
    path = tmp_path / "weights.npy"
    np.save(path, (np.arange(101) % 2).astype(np.float32))
    return path


def test_a_weighted_run_is_recorded_and_resumes(pool: Path, tmp_path: Path, weights: Path) -> None:
    """Stopped at step 5 and gone on with another number of workers: the uninterrupted stream, though the weight file is gone by then."""
    settings = {"sampling__weights": str(weights), "sampling__balance": "0.5", "run__checkpoint_every": "5 steps"}
    assert run(pool, tmp_path / "whole", **settings) == 0
    assert run(pool, tmp_path / "parts", **settings) == 0
    back(tmp_path / "parts", 12)
    weights.unlink()
    assert run(pool, tmp_path / "parts", **settings, data__workers="2", data__worker_kind="threads") == 0
    assert stream(tmp_path / "parts") == stream(tmp_path / "whole")
    record = json.loads((tmp_path / "whole" / "plan.json").read_text())
    assert versions(tmp_path / "whole") == [(0, 0)]
    rates = record["versions"][0]["plan"]["sources"][0]["rates"]
    assert (tmp_path / "whole" / "plan" / rates / "rates.npy").exists()
    assert stream(tmp_path / "whole") != stream_of_uniform(pool, tmp_path)


def back(folder: Path, *steps: int) -> None:
    """Takes a run back: removes the checkpoints of those steps."""
    for step in steps:
        shutil.rmtree(folder / "checkpoints" / f"step-{step:08d}")


def versions(folder: Path) -> list[tuple[int, int]]:
    """Returns (number, start) of every recorded plan version."""
    return [(version["number"], version["start"]) for version in json.loads((folder / "plan.json").read_text())["versions"]]


def stream_of_uniform(pool: Path, tmp_path: Path) -> list[tuple[int, str]]:
    """Returns the stream of the run without weights."""
    assert run(pool, tmp_path / "uniform") == 0
    return stream(tmp_path / "uniform")


def test_new_weights_begin_a_version_where_the_run_stands(
    pool: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights on a run that had none: refused with the remedy; with --sampling.replan version 1 begins at sample 144."""
    assert run(pool, tmp_path / "run") == 0
    longer = {"run__duration": "12 steps", "sampling__weights": str(weights)}
    assert run(pool, tmp_path / "run", **longer) == 2
    message = capsys.readouterr().err
    assert "begin a new plan version at sample 144 with --sampling.replan" in message
    assert "sources: was" in message
    before = stream(tmp_path / "run")
    assert run(pool, tmp_path / "run", **longer, sampling__replan="true") == 0
    assert versions(tmp_path / "run") == [(0, 0), (1, 144)]
    assert stream(tmp_path / "run") == before
    assert read_log(tmp_path / "run", "start")[-1]["plan_version"] == 1


def replanned(pool: Path, folder: Path, weights: Path) -> dict[str, str]:
    """Makes a run of 24 steps that took new weights from step 10 on, with checkpoints every 5; returns the settings of its second part."""
    kept = {"run__checkpoint_every": "5 steps", "run__keep_checkpoints": "9", "run__duration": "24 steps"}
    assert run(pool, folder, **kept) == 0
    back(folder, 24, 20, 15)
    changed = {**kept, "sampling__weights": str(weights), "sampling__replan": "true"}
    assert run(pool, folder, **changed) == 0
    return changed


def test_a_changed_version_is_what_the_resumed_run_sees(pool: Path, tmp_path: Path, weights: Path) -> None:
    """Weights from step 10 on; going on from step 20, and from step 5, before they began: the stream of the run that was not stopped."""
    changed = replanned(pool, tmp_path / "run", weights)
    whole = stream(tmp_path / "run")
    assert versions(tmp_path / "run") == [(0, 0), (1, 120)]
    back(tmp_path / "run", 24)
    assert run(pool, tmp_path / "run", **changed) == 0
    assert stream(tmp_path / "run") == whole
    back(tmp_path / "run", 24, 20, 15, 10)
    assert run(pool, tmp_path / "run", **changed | {"sampling__replan": "false"}) == 0
    assert stream(tmp_path / "run") == whole
    numbers = {row["step"]: row["plan_version"] for row in read_log(tmp_path / "run", "start")}
    assert numbers[5] == 0
    assert numbers[20] == 1


def test_a_replan_can_be_taken_back(pool: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The old settings on a checkpoint from before the change: the version is dropped, the stream is that of the run without it."""
    replanned(pool, tmp_path / "run", weights)
    back(tmp_path / "run", 24, 20, 15)
    kept = {"run__checkpoint_every": "5 steps", "run__keep_checkpoints": "9", "run__duration": "24 steps"}
    assert run(pool, tmp_path / "run", **kept) == 0
    assert "the version that began at sample 120 is dropped" in capsys.readouterr().err
    assert versions(tmp_path / "run") == [(0, 0)]
    assert run(pool, tmp_path / "plain", **kept) == 0
    assert stream(tmp_path / "run") == stream(tmp_path / "plain")
    back(tmp_path / "run", 24)
    assert run(pool, tmp_path / "run", **kept, sampling__weights=str(weights), sampling__replan="true") == 0
    assert versions(tmp_path / "run") == [(0, 0), (2, 240)]


def test_a_lost_or_foreign_record_is_not_made_up(pool: Path, tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """plan.json removed, or another run's in its place: exit code 1 with the remedy; --sampling.replan begins a version of its own."""
    assert run(pool, tmp_path / "run") == 0
    assert run(pool, tmp_path / "run", run__duration="13 steps") == 2
    (tmp_path / "run" / "plan.json").unlink()
    assert run(pool, tmp_path / "run") == 1
    assert "is missing, though the run stands at sample 144" in capsys.readouterr().err
    assert run(pool, tmp_path / "run", sampling__replan="true") == 0
    assert versions(tmp_path / "run") == [(144, 144)]
    replanned(pool, tmp_path / "other", weights)
    back(tmp_path / "other", 24, 20, 15, 5)
    (tmp_path / "run" / "plan.json").write_text((tmp_path / "other" / "plan.json").read_text().replace('"start": 120', '"start": 100'))
    assert run(pool, tmp_path / "run", sampling__weights=str(weights)) == 1
    assert "was made in version" in capsys.readouterr().err


def test_a_replan_leaves_the_length_of_the_run(pool: Path, tmp_path: Path, weights: Path) -> None:
    """Three epochs of 101 samples; halfway, epochs of 40: the run ends after 303 samples all the same, and the schedule goes on."""
    kept = {"run__checkpoint_every": "10 steps", "run__keep_checkpoints": "9", "run__duration": "3 epochs"}
    assert run(pool, tmp_path / "run", **kept) == 0
    rates = [row["lr"] for row in read_log(tmp_path / "run", "train")]
    back(tmp_path / "run", 26, 20)
    assert run(pool, tmp_path / "run", **kept, sampling__weights=str(weights), sampling__epoch="40", sampling__replan="true") == 0
    assert [row["lr"] for row in read_log(tmp_path / "run", "train")] == rates
    assert json.loads((tmp_path / "run" / "run.json").read_text())["total_steps"] == 26


def test_a_new_batch_size_goes_on_in_the_same_order(pool: Path, tmp_path: Path) -> None:
    """Two epochs in samples, the first five steps of 12, then steps of 7: samples go on from 60 and the end is at 202 or just above."""
    settings = {"run__duration": "202 samples", "run__checkpoint_every": "5 steps", "run__keep_checkpoints": "9"}
    assert run(pool, tmp_path / "run", **settings) == 0
    back(tmp_path / "run", 10, 15, 17)
    assert run(pool, tmp_path / "run", **settings, run__global_batch_size="7") == 0
    rows = read_log(tmp_path / "run", "train")
    assert [row["samples"] for row in rows] == [*range(12, 61, 12), *range(67, 208, 7)]
    assert rows[-1]["samples"] >= 202 > rows[-2]["samples"]
    assert all(later["lr"] <= earlier["lr"] for earlier, later in itertools.pairwise(rows[5:])), "the cosine goes on by samples"


def test_a_mixture_takes_its_shares(pool: Path, tmp_path: Path) -> None:
    """Two folders, 25 % and 75 % of epochs of 120: the recorded quotas; another share is another plan."""
    write_pool(tmp_path / "images", 31, seed=5)
    pack(tmp_path / "images", tmp_path / "more")
    mixture = f"[{pool / 'train'}@25%, {tmp_path / 'more'}@75%]"
    assert run(pool, tmp_path / "run", data__train=mixture, sampling__epoch="120", run__duration="1 epochs") == 0
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())["versions"][0]["plan"]
    assert [source["quota"] for source in plan["sources"]] == [30, 90]
    assert read_log(tmp_path / "run", "train")[-1]["step"] == 10
    assert run(pool, tmp_path / "run", data__train=mixture.replace("25", "50").replace("75", "50"), sampling__epoch="120") == 2


def test_unreadable_samples_are_replaced_and_listed(pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three images overwritten: refused by default; with replace every epoch's slots of them are listed once, also after a resumed run."""
    damaged = tmp_path / "damaged"
    shutil.copytree(pool / "train", damaged)
    shards = Shards.open(damaged)
    victims = [3, 40, 77]
    for sample in victims:
        with (damaged / shards.manifest.shards[int(shards.index.shard[sample])].name).open("r+b") as file:
            file.seek(int(shards.index.offset[sample]))
            file.write(b"\0" * int(shards.index.size[sample]))
    settings = {"data__train": str(damaged), "data__workers": "1", "run__duration": "202 samples"}
    assert run(pool, tmp_path / "fail", **settings) == 1
    settings |= {"data__bad_samples": "replace", "run__checkpoint_every": "7 steps", "run__keep_checkpoints": "9"}
    assert run(pool, tmp_path / "run", **settings) == 0
    back(tmp_path / "run", 17)
    assert run(pool, tmp_path / "run", **settings) == 0
    lines = (tmp_path / "run" / "bad_samples" / "rank-0.tsv").read_text().splitlines()[1:]
    ids = Order(shards.shard_counts, seed=0, window=2).take(0, 17 * 12).ids.tolist()
    expected = [place for place, sample in enumerate(ids) if sample in victims]
    assert sorted(int(line.split("\t")[0]) for line in lines) == expected
    assert Counter(int(line.split("\t")[1]) for line in lines) == Counter(ids[place] for place in expected)
    assert all("shard-00000" in line and "image" in line for line in lines), lines
    assert run(pool, tmp_path / "strict", **settings, data__max_bad_samples="1") == 1
    assert "data.max_bad_samples" in capsys.readouterr().err


def test_repeated_augmentation_shows_each_sample_again(pool: Path, tmp_path: Path) -> None:
    """data.repeats=3: four samples three times in a batch of twelve; a batch that it does not divide is refused."""
    assert run(pool, tmp_path / "run", data__repeats="3") == 0
    assert read_log(tmp_path / "run", "train")[-1]["samples"] == 144
    assert run(pool, tmp_path / "other", data__repeats="5") == 2


def test_signatures_are_not_recorded(pool: Path, tmp_path: Path) -> None:
    """A web address with a signature, streamed to the end: nothing in the run folder, on the terminal or in the cache holds it."""
    with loopback() as server:
        server.files = {path.name: path.read_bytes() for path in (pool / "train").iterdir() if path.is_file()}
        address = server.url("").rstrip("/") + "?signature=SECRET"
        settings = {**STEPS, "data.cache": str(tmp_path / "cache")}
        arguments = options(pool, tmp_path / "run", settings)[2:]
        code, output = finish(start(0, [f'--data.train=["{address}@101"]', *arguments]))
        assert (code, "SECRET" in output) == (0, False), output
        assert run(pool, tmp_path / "plain", sampling__epoch="101") == 0
    assert stream(tmp_path / "run") == stream(tmp_path / "plain")
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if b"SECRET" in path.read_bytes()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling__coupled": "true"}, "nothing is left over"),
        ({"sampling__weights_are": "probabilities"}, "give the file"),
        ({"sampling__weights": "nowhere.npy"}, "sampling.weights=nowhere.npy: not a readable .npy file"),
        ({"sampling__balance": "0.5", "sampling__epoch": "100000"}, "cannot be drawn"),
        ({"sampling__max_repeats": "3.0"}, "every sample is taken once; give weights or balance"),
        ({"data__train": "[a@30%, b]"}, "no such folder"),
    ],
)
def test_plans_that_cannot_be_are_refused(
    pool: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, str], message: str
) -> None:
    """Each mistake: exit code 2, the setting in the message, no run folder."""
    assert run(pool, tmp_path / "run", **settings) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

"""Runs on a grown dataset: what a snapshot makes them see, how they keep to it, how the next one joins, and what they refuse."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bamboo.cli.arguments import parse
from bamboo.cli.errors import UserError
from bamboo.cli.main import main
from bamboo.datasets.counters import mix
from bamboo.datasets.growth.snapshot import open_snapshot
from bamboo.datasets.plan.history import VersionedOrder
from bamboo.datasets.plan.rates import open_rates
from bamboo.datasets.plan.recipe import PlanRecipe
from bamboo.datasets.ranks import Ranks
from bamboo.datasets.shards import Shards
from bamboo.pretrain.pool import Pool, open_pool
from bamboo.pretrain.sampling import RunPlan, open_plan
from bamboo.pretrain.settings.pretrain import PretrainSettings
from tests.conftest import pack, write_pool
from tests.loopback import loopback
from tests.pretrain.grown import write_snapshot
from tests.pretrain.launch import finish, options, start, wait_for_step
from tests.pretrain.test_sampling import back, stream, versions

BATCH = 12
KEPT = {"run__checkpoint_every": "4 steps", "run__keep_checkpoints": "9", "run__duration": "16 steps"}

Floats = npt.NDArray[np.float64]


def probabilities(num_samples: int, total: int, seed: int = 0) -> Floats:
    """Returns float64[N] random rates up to 1, a few of them 0, that add up to `total`."""
    values = np.random.default_rng(seed).uniform(0.2, 0.8, num_samples)
    values[::10] = 0
    return np.asarray(values * total / values.sum())


def arguments(pool: Path, folder: Path, state: Path, **settings: str) -> list[str]:
    """Returns the arguments of a run on a snapshot; settings are spelled with `__` for the dot."""
    chosen = {name.replace("__", "."): value for name, value in (KEPT | settings).items()}
    return options(pool, folder, {"data.train": "[]", "data.snapshot": str(state), **chosen})


def run(pool: Path, folder: Path, state: Path, **settings: str) -> int:
    """Trains in this process and returns the exit code."""
    return main(["pretrain", *arguments(pool, folder, state, **settings)])


def planned(pool: Path, folder: Path, state: Path, **settings: str) -> tuple[Pool, RunPlan]:
    """Returns the data of a run and its plan, made and recorded as at the start, without training."""
    config = parse(PretrainSettings, arguments(pool, folder, state, **settings), prog="bamboo pretrain", doc="")
    opened = open_pool(config)
    return opened, open_plan(config, opened, Ranks(0, 0, 1, torch.device("cpu")), 0)


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A further shard folder of 31 images of the same classes."""
    folder = tmp_path_factory.mktemp("more")
    write_pool(folder / "images", 31, seed=5)
    pack(folder / "images", folder / "shards")
    return folder / "shards"


@pytest.fixture
def state(pool: Path, tmp_path: Path) -> Path:
    """A growth state with snapshot 1, over the pool: epochs of 62 samples."""
    write_snapshot(tmp_path / "state", 1, [(pool / "train", probabilities(101, 62))])
    return tmp_path / "state"


@pytest.fixture
def grow(pool: Path, more: Path, state: Path) -> Callable[[], Path]:
    """Returns what makes snapshot 2, over the pool and the further folder: other probabilities, epochs of 50 + 20 samples."""
    return lambda: write_snapshot(state, 2, [(pool / "train", probabilities(101, 50, 1)), (more, probabilities(31, 20, 2))])


def ids(folder: Path, *shards: Path, steps: int = 16) -> npt.NDArray[np.int64]:
    """Returns int64[steps · 12] the samples of the orders that plan.json describes over these shard folders."""
    counts, orders, starts = [Shards.open(each).shard_counts for each in shards], [], []
    for version in json.loads((folder / "plan.json").read_text())["versions"]:
        recipe = PlanRecipe.from_json(version["plan"])
        starts.append(version["start"])
        orders.append(recipe.order(counts[: len(recipe.sources)], folder / "plan", version["number"]))
    return VersionedOrder(starts, orders).take(0, steps * BATCH).ids


def fingerprints(folder: Path, *shards: Path) -> list[str]:
    """Returns the fingerprint that the log would hold for every step, were those samples seen."""
    hashes = mix(ids(folder, *shards).astype(np.uint64) ^ mix(np.arange(16 * BATCH, dtype=np.uint64)))
    return [f"{int(step.sum(dtype=np.uint64)):016x}" for step in hashes.reshape(16, BATCH)]


def test_a_run_draws_by_the_probabilities(pool: Path, tmp_path: Path, state: Path) -> None:
    """Against the same run by data.train and sampling.weights: the same stream. plan.json and run.json name the snapshot."""
    assert run(pool, tmp_path / "run", state) == 0
    snapshot = open_snapshot(state)
    by_hand = {"sampling.weights": str(snapshot.training[0].probabilities), "sampling.weights_are": "probabilities"}
    settings = {name.replace("__", "."): value for name, value in KEPT.items()}
    assert main(["pretrain", *options(pool, tmp_path / "by hand", settings | by_hand)]) == 0
    assert stream(tmp_path / "run") == stream(tmp_path / "by hand")
    plans = [json.loads((tmp_path / name / "plan.json").read_text())["versions"][0]["plan"] for name in ("run", "by hand")]
    assert plans[0].pop("snapshot") == f"1:{snapshot.content_hash}"
    assert plans[0].keys() == plans[1].keys()
    told = json.loads((tmp_path / "run" / "run.json").read_text())["snapshot"]
    assert told == {"state": str(state), "number": 1, "content_hash": snapshot.content_hash}


@pytest.mark.slow
def test_a_killed_run_goes_on_elsewhere(pool: Path, tmp_path: Path, state: Path, grow: Callable[[], Path]) -> None:
    """kill -9 in mid-epoch with two worker processes, then two ranks, while a newer snapshot appears: the uninterrupted stream."""
    assert run(pool, tmp_path / "whole", state) == 0
    process = start(0, arguments(pool, tmp_path / "run", state, data__workers="2"))
    wait_for_step(process, tmp_path / "run", 6)
    os.killpg(process.pid, signal.SIGKILL)
    finish(process)
    grow()
    code, output = finish(start(2, arguments(pool, tmp_path / "run", state)))
    assert code == 0, output
    assert output.count("snapshot 2 is there; this run goes on with 1; --sampling.replan lets 2 join") == 1
    assert stream(tmp_path / "run") == stream(tmp_path / "whole")


def test_a_run_keeps_to_its_snapshot(
    pool: Path, tmp_path: Path, state: Path, grow: Callable[[], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """With a newer one there: the uninterrupted stream. The newer one by name: refused. The kept one lost: refused, with the remedy."""
    assert run(pool, tmp_path / "run", state) == 0
    whole = stream(tmp_path / "run")
    newer = grow()
    back(tmp_path / "run", 16, 12)
    assert run(pool, tmp_path / "run", state, data__workers="2", data__worker_kind="threads") == 0
    assert stream(tmp_path / "run") == whole
    assert "snapshot 2 is there; this run goes on with 1; --sampling.replan lets 2 join at the next epoch" in capsys.readouterr().err
    assert run(pool, tmp_path / "run", newer) == 2
    message = capsys.readouterr().err
    assert "let snapshot 2 join at the next epoch boundary with --sampling.replan" in message
    assert "snapshot: was 1:" in message
    shutil.rmtree(state / "snapshots" / "000001")
    assert run(pool, tmp_path / "run", state) == 2
    assert "goes on with snapshot 1" in capsys.readouterr().err


def test_a_new_snapshot_joins_where_an_epoch_ends(
    pool: Path, more: Path, tmp_path: Path, state: Path, grow: Callable[[], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked for at sample 48: epochs of 62 end at 62, inside a batch. Before, the old stream; then samples of the new folder, too.

    Stopped before the boundary and gone on with, with and without replan, or with the old snapshot by name: the same again, or as if
    nothing had been asked for.
    """
    short = {"run__duration": "9 steps"}
    assert run(pool, tmp_path / "run", state, **short) == 0
    old = stream(tmp_path / "run")
    grow()
    back(tmp_path / "run", 9, 8)
    assert run(pool, tmp_path / "run", state, **short, sampling__replan="true") == 0
    assert "snapshot 2 joins at sample 62, where an epoch ends; until then the plan stays as it is" in capsys.readouterr().err
    assert versions(tmp_path / "run") == [(0, 0), (1, 62)]
    joined = stream(tmp_path / "run")
    assert joined[:5] == old[:5]
    assert [fingerprint for _, fingerprint in joined] == fingerprints(tmp_path / "run", pool / "train", more)[:9]
    for replan in ("true", "false"):
        back(tmp_path / "run", 9, 8)
        assert run(pool, tmp_path / "run", state, **short, sampling__replan=replan) == 0
        assert stream(tmp_path / "run") == joined
    back(tmp_path / "run", 9, 8)
    assert run(pool, tmp_path / "run", state / "snapshots" / "000001", **short) == 0
    assert "the version that began at sample 62 is dropped" in capsys.readouterr().err
    assert stream(tmp_path / "run") == old


def test_at_a_boundary_a_snapshot_joins_there(pool: Path, more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Epochs of 48, the run at 96: snapshot 2, whose folders are others, begins there. At 120, in mid-epoch, it is refused."""
    state, settings = tmp_path / "state", {"run__checkpoint_every": "2 steps", "run__duration": "12 steps"}
    write_snapshot(state, 1, [(pool / "train", probabilities(101, 48))])
    assert run(pool, tmp_path / "run", state, **settings) == 0
    write_snapshot(state, 2, [(more, probabilities(31, 12)), (pool / "train", probabilities(101, 48))])
    back(tmp_path / "run", 12)
    assert run(pool, tmp_path / "run", state, **settings, sampling__replan="true") == 2
    assert "snapshot 2 can join only where an epoch ends, which is at sample 144: it does not begin with" in capsys.readouterr().err
    back(tmp_path / "run", 10)
    assert run(pool, tmp_path / "run", state, **settings, sampling__replan="true") == 0
    assert versions(tmp_path / "run") == [(0, 0), (1, 96)]


def test_a_folder_from_afar_of_which_nothing_is_taken(pool: Path, more: Path, tmp_path: Path) -> None:
    """Two folders, one at an address, the other all duplicates: the stream of the first alone, in blocks; the run sees no other sample."""
    with loopback() as server:
        address = server.serve(pool / "train", "pool")
        state = tmp_path / "state"
        write_snapshot(state, 1, [(address, probabilities(101, 62)), (more, np.zeros(31))])
        assert run(pool, tmp_path / "run", state, data__cache=str(tmp_path / "cache")) == 0
    sources = json.loads((tmp_path / "run" / "plan.json").read_text())["versions"][0]["plan"]["sources"]
    assert [(source["quota"], bool(source["rates"])) for source in sources] == [(62, True), (0, False)]
    assert [fingerprint for _, fingerprint in stream(tmp_path / "run")] == fingerprints(tmp_path / "run", pool / "train", more)


def test_damage_is_refused(pool: Path, more: Path, tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A probability column altered by a bit, folders of other data, no snapshot at all: the message, and no run folder."""
    write_snapshot(tmp_path / "other", 1, [(pool / "train", probabilities(101, 62))], training=[])
    card = json.loads((state / "snapshots" / "000001" / "snapshot.json").read_text())
    card["training"][0]["location"], grown_over = str(more), card["training"][0]["data_hash"]
    write_snapshot(tmp_path / "moved", 1, [(pool / "train", probabilities(101, 62))], training=card["training"])
    column = state / "snapshots" / "000001" / "probabilities" / "000000.npy"
    column.write_bytes(column.read_bytes()[:-1] + b"\1")
    for location, code, text in (
        (state, 1, "missing or altered since the snapshot was made"),
        (
            tmp_path / "moved",
            1,
            f"holds data {Shards.open(more).data_hash}, and snapshot 1 was grown over {grown_over}",
        ),
        (tmp_path / "other", 2, "takes no sample"),
        (tmp_path, 2, "neither a growth state with a snapshot nor a snapshot"),
    ):
        assert run(pool, tmp_path / "run", location) == code
        assert text in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_snapshot_stands_in_place_of_a_configs_folders(
    pool: Path, tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`data.train` of a configuration beside `--data.snapshot`: said to be unused, in one line, and the stream is the snapshot's."""
    assert run(pool, tmp_path / "both", state, data__train="nowhere/at-all") == 0
    assert f"data.snapshot={state} names the training data; data.train=nowhere/at-all is not used" in capsys.readouterr().err
    assert run(pool, tmp_path / "alone", state) == 0
    assert stream(tmp_path / "both") == stream(tmp_path / "alone")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data__snapshot": "null"}, "data.train: names no folder; give data.train its shard folders, or data.snapshot a growth state"),
        ({"sampling__balance": "0.5"}, "sampling.balance=0.5: data.snapshot has a policy of its own"),
        ({"sampling__epoch": "99"}, "sampling.epoch=99: data.snapshot has a policy of its own"),
        ({"sampling__weights": "w.npy"}, "sampling.weights="),
    ],
)
def test_settings_beside_a_snapshot(
    pool: Path, tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, str], message: str
) -> None:
    """What names the data or the policy a second time, or not at all: exit code 2 and the setting in the message."""
    assert run(pool, tmp_path / "run", state, **settings) == 2
    assert message in capsys.readouterr().err


def test_coupled_epochs(pool: Path, more: Path, tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A coupled snapshot: a pair sees every sample once; the next one, of two folders, joins where it ends. Loss weights are refused."""
    half = probabilities(101, 40)
    write_snapshot(state, 2, [(pool / "train", half)], coupled=True)
    assert run(pool, tmp_path / "run", state) == 0
    assert sorted(ids(tmp_path / "run", pool / "train")[:101]) == list(range(101))
    back(tmp_path / "run", 16, 12, 8)
    write_snapshot(state, 3, [(pool / "train", half), (more, probabilities(31, 12))], coupled=True)
    assert run(pool, tmp_path / "run", state, sampling__replan="true") == 0
    assert versions(tmp_path / "run") == [(0, 0), (1, 101)]
    seen = ids(tmp_path / "run", pool / "train", more, steps=20)
    assert sorted(seen[101 : 101 + 132]) == list(range(132))
    assert (seen[101 : 101 + 52] >= 101).sum() == 12, "a phase has of each folder what its rates say"
    assert [fingerprint for _, fingerprint in stream(tmp_path / "run")] == fingerprints(tmp_path / "run", pool / "train", more)
    assert run(pool, tmp_path / "other", state, sampling__loss_beta="1") == 2
    assert "so there is nothing to correct" in capsys.readouterr().err


def test_two_phases_of_two_folders(pool: Path, more: Path, tmp_path: Path) -> None:
    """Every second epoch by the second columns: 40 + 8, then 20 + 30 samples, of each folder what its column says; as it was seen."""
    state, one = tmp_path / "state", probabilities(31, 8)
    write_snapshot(state, 1, [(pool / "train", probabilities(101, 40), probabilities(101, 20, 1)), (more, one, np.full(31, 30 / 31))])
    assert run(pool, tmp_path / "run", state, sampling__loss_beta="1") == 0
    seen = ids(tmp_path / "run", pool / "train", more)
    parts = np.split(seen, np.cumsum([48, 50, 48]))[:3]
    assert [(int((part < 101).sum()), int((part >= 101).sum())) for part in parts] == [(40, 8), (20, 30), (40, 8)]
    assert len(set(parts[1][parts[1] >= 101])) == 30
    assert [fingerprint for _, fingerprint in stream(tmp_path / "run")] == fingerprints(tmp_path / "run", pool / "train", more)


def test_a_phase_without_a_sample_of_a_folder(pool: Path, more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """First probabilities of 0.3 in all, second ones of 30, beside 40 + 20: epochs of 40 and of 20 + 30; alone: of 30, in both orders.
    Of 0.3 in both: passed over, and rank 0 says of which folder; nothing is said of one whose probabilities are all 0.
    """
    state, rare, full = tmp_path / "state", np.full(31, 0.3 / 31), np.full(31, 30 / 31)
    two = pool / "train", probabilities(101, 40), probabilities(101, 20, 1)
    write_snapshot(state, 1, [two, (more, rare, full)])
    assert run(pool, tmp_path / "run", state, sampling__loss_beta="1") == 0
    assert "no sample is taken" not in capsys.readouterr().err
    seen = np.split(ids(tmp_path / "run", pool / "train", more), np.cumsum([40, 50, 40]))[:3]
    assert [(int((part < 101).sum()), int((part >= 101).sum())) for part in seen] == [(40, 0), (20, 30), (40, 0)]
    assert [fingerprint for _, fingerprint in stream(tmp_path / "run")] == fingerprints(tmp_path / "run", pool / "train", more)
    for number, columns in enumerate([(rare, full), (full, rare)], 2):
        folder = write_snapshot(state, number, [(more, *columns)])
        opened, plan = planned(pool, tmp_path / f"alone {number}", folder)
        assert opened.lengths.samples_per_epoch == 15
        assert all(len(set(epoch)) == 30 for epoch in plan.order.take(0, 90).ids.reshape(3, 30).tolist())
    write_snapshot(state, 4, [two, (more, rare, rare)])
    assert planned(pool, tmp_path / "passed over", state)[0].quotas == (30, 0)
    message = f"plan: no sample is taken of {more}: its probabilities come to less than one an epoch\n"
    assert capsys.readouterr().err == message
    write_snapshot(state, 5, [two, (more, rare * 0, rare * 0)])
    planned(pool, tmp_path / "zero", state)
    assert capsys.readouterr().err == ""


def test_coupled_epochs_of_members(pool: Path, more: Path, tmp_path: Path) -> None:
    """Membership of 71 of 101 samples, 30 of them first, and of none of the further folder: run, plan and its length count 71 to a pair,
    which sees these alone. Of all of the further folder: 71 + 31.
    """
    members = np.arange(101) % 10 < 7
    first = np.where(members, probabilities(101, 30), 0)
    first *= 30 / first.sum()
    for number, (other, places) in enumerate([(None, (0,)), (np.zeros(31), (36, 0)), (np.ones(31), (36, 16))]):
        further = [] if other is None else [(more, other * 12 / 31, other)]
        state, folder = tmp_path / f"state {number}", tmp_path / f"run {number}"
        write_snapshot(state, 1, [(pool / "train", first, members.astype(np.float64)), *further], coupled=True)
        opened, plan = planned(pool, folder, state)
        assert opened.quotas == places
        assert opened.lengths.samples_per_epoch == (sum(places) or 36)
        assert json.loads((folder / "plan.json").read_text())["epoch_samples"] == opened.lengths.samples_per_epoch
        pair = 71 if other is None else 71 + int(other.sum())
        begins = 30 if pair == 71 else 30 + 12
        seen = plan.order.take(0, 2 * pair).ids.reshape(2, pair)
        assert (np.sort(seen) == [*np.flatnonzero(members), *range(101, 101 + pair - 71)]).all()
        assert ((seen[:, :begins] < 101).sum(1) == 30).all()
        assert plan.order.boundary(1) == pair
    assert run(pool, tmp_path / "run 1", tmp_path / "state 1") == 0
    assert [fingerprint for _, fingerprint in stream(tmp_path / "run 1")] == fingerprints(tmp_path / "run 1", pool / "train", more)


def test_coupled_first_epochs_without_a_sample(pool: Path, more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three members with 0.3 visits in all, beside a folder of 40 + 61, and alone: second epochs have them; no member at all: refused."""
    state, members, rare = tmp_path / "state", np.arange(31) % 13 == 2, np.zeros(31)
    rare[members] = 0.1
    write_snapshot(state, 1, [(pool / "train", probabilities(101, 40)), (more, rare, members.astype(np.float64))], coupled=True)
    opened, plan = planned(pool, tmp_path / "beside", state)
    assert opened.quotas == (51, 2)
    seen = plan.order.take(0, 104).ids
    assert sorted(seen.tolist()) == [*range(101), *(101 + np.flatnonzero(members)).tolist()]
    assert (seen[:40] < 101).all()
    write_snapshot(state, 2, [(more, rare, members.astype(np.float64))], coupled=True)
    opened, plan = planned(pool, tmp_path / "alone", state)
    assert (opened.quotas, opened.lengths.samples_per_epoch) == ((0,), 2)
    assert np.sort(plan.order.take(0, 6).ids.reshape(2, 3)).tolist() == [np.flatnonzero(members).tolist()] * 2
    write_snapshot(state, 3, [(more, rare * 0, rare * 0)], coupled=True)
    assert run(pool, tmp_path / "none", state) == 2
    assert "the policy of snapshot 3 takes no sample" in capsys.readouterr().err


def test_the_cache_of_coupled_members(pool: Path, tmp_path: Path) -> None:
    """Ten members at an address, eight of them first: as epochs of two samples use shards up, six are needed, not five."""
    members = np.arange(101) % 10 == 1
    first = np.where(members, 8 / members.sum(), 0)
    with loopback() as server:
        address, state = server.serve(pool / "train", "pool"), tmp_path / "state"
        write_snapshot(state, 1, [(address, first, members.astype(np.float64))], coupled=True)
        needed = sum(entry.size_bytes for entry in Shards.open(pool / "train").manifest.shards)
        cache = {"data__cache": str(tmp_path / "cache"), "run__global_batch_size": "2", "data__shards_ahead": "1"}
        opened, _ = planned(pool, tmp_path / "run", state, **cache, data__cache_bytes=str(needed))
        assert opened.lengths.samples_per_epoch == 5
        with pytest.raises(UserError, match=rf"the 6 largest shards.*data\.cache_bytes>={needed}"):
            planned(pool, tmp_path / "run", state, **cache, data__cache_bytes=str(needed - 1))


def test_grouped_shards(pool: Path, tmp_path: Path) -> None:
    """Probabilities of 0.1, in six shards: of a grouped snapshot an epoch has the same length and reads as many shards as its groups say at
    most, of one that is not always more; of a coupled one the mark changes nothing.
    """
    column, shard_of = np.full(101, 10 / 101), np.arange(101) // 20
    reads = {}
    for grouped in (False, True):
        state = tmp_path / f"grouped {grouped}"
        write_snapshot(state, 1, [(pool / "train", column)], grouped=grouped)
        opened, plan = planned(pool, tmp_path / f"run {grouped}", state)
        assert opened.lengths.samples_per_epoch == 10
        reads[grouped] = [len(set(shard_of[epoch].tolist())) for epoch in plan.order.take(0, 300).ids.reshape(30, 10)]
    (recorded,) = (tmp_path / "run True" / "plan").glob("rates-*")
    groups = open_rates(recorded, opened.train.parts[0].shard_counts).groups
    assert groups is not None
    assert max(reads[True]) == groups[:, 1].sum() < min(reads[False])
    orders = []
    for grouped in (False, True):
        write_snapshot(state, 2 + grouped, [(pool / "train", column)], grouped=grouped, coupled=True)
        orders.append(planned(pool, tmp_path / f"coupled {grouped}", state)[1].order.take(0, 202).ids)
    assert np.array_equal(*orders)

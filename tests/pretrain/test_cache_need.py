"""How many remote shards the cache must hold: the figure that is asked for, and a stream that needs no more than that."""

import collections
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bamboo.cli.errors import UserError
from bamboo.cli.main import main
from bamboo.datasets.augment.crops import TrainView
from bamboo.datasets.plan.order import Order
from bamboo.datasets.remote.cache import ShardCache
from bamboo.datasets.remote.transport import Patience
from bamboo.datasets.shards import Shards
from bamboo.datasets.stream.assemble import Columns
from bamboo.datasets.stream.batches import TrainBatches
from bamboo.datasets.stream.loader import load_batches
from bamboo.datasets.stream.stages import StageClock
from bamboo.pretrain.pool import open_pool, shards_read
from bamboo.pretrain.settings.data import DataSettings
from bamboo.pretrain.settings.pretrain import ModelSettings, PretrainSettings, RunSettings
from tests.loopback import Loopback, loopback

SHARDS, SAMPLES = 32, 4  # and samples a shard
VIEW = TrainView(16, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bilinear")


@pytest.fixture
def server() -> Iterator[Loopback]:
    with loopback() as running:
        yield running


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shard folder of 32 shards of four small pictures."""
    folder = tmp_path_factory.mktemp("narrow")
    for number in range(SHARDS * SAMPLES):
        path = folder / "pictures" / f"class {number % 4}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), number % 256, np.uint8)).save(path)
    pack = ["shards", "pack", str(folder / "pictures"), "--out", str(folder / "shards"), "--samples-per-shard", str(SAMPLES)]
    assert main(pack) == 0
    return folder / "shards"


def settings(*train: str, cache: Path | None = None, cache_bytes: float = 50e9, batch: int = 8, **data: Any) -> PretrainSettings:
    """Returns the settings of a run with a window of 3 shards and one ahead."""
    data = {"window": 3, "shards_ahead": 1, "workers": 2, "prefetch": 2, **data}
    return PretrainSettings(
        model=ModelSettings(name="test_vit"),
        data=DataSettings(train=train, cache=cache, cache_bytes=cache_bytes, **data),
        run=RunSettings(folder=Path("run"), global_batch_size=batch),
    )


@pytest.mark.parametrize(
    ("batch", "data", "count"),
    [
        (8, {}, 3 + 1 + 10),  # five batches of 8 in shards of four
        (8, {"workers": 0}, 3 + 1 + 2),
        (16, {"workers": 0, "repeats": 4}, 3 + 1 + 1),
        (16, {"workers": 4, "prefetch": 3, "window": 8, "shards_ahead": 4}, 8 + 4 + 52),
    ],
)
def test_the_figure(narrow: Path, batch: int, data: dict[str, int], count: int) -> None:
    """Window, spread of the batches under way and shards ahead against hand-worked sums."""
    config, shards = settings("shards", batch=batch, **data), Shards.open(narrow)
    assert shards_read(config, shards, SHARDS * SAMPLES, None) == count
    fixed = config.data.window + config.data.shards_ahead
    assert shards_read(config, shards, SHARDS * SAMPLES // 2, None) == fixed + 2 * (count - fixed), "slots half as long"


def test_a_cache_that_would_thrash_is_refused(server: Loopback, narrow: Path, tmp_path: Path) -> None:
    """A byte less than the sum for one folder, and for two of a mixture together, whose blocks span them: UserError; with it, it opens."""
    address = server.serve(narrow, "narrow")
    sizes = sorted((entry.size_bytes for entry in Shards.open(narrow).manifest.shards), reverse=True)
    for train, needed in (((address,), sum(sizes[:14])), ((f"{address}@64", f"{address}@1x"), 2 * sum(sizes))):
        enough = settings(*train, cache=tmp_path / "cache", cache_bytes=needed)
        assert len(open_pool(enough).train) == len(train) * SHARDS * SAMPLES
        short = dataclasses.replace(enough, data=dataclasses.replace(enough.data, cache_bytes=needed - 1))
        with pytest.raises(UserError, match=rf"data\.cache_bytes={needed - 1:,}: .*data\.prefetch.*data\.cache_bytes>={needed}"):
            open_pool(short)


@dataclasses.dataclass(frozen=True)
class LateBatches(TrainBatches):
    """The same batches, every `late_every`-th of which is begun so late that all others under way are made meanwhile; 0: none."""

    late_every: int = 0

    def make(self, number: int, images: torch.Tensor, clock: StageClock, num_before: int = 0) -> Columns:
        if self.late_every and number % self.late_every == 0:
            time.sleep(0.1)
        return super().make(number, images, clock, num_before)


@pytest.mark.parametrize("late_every", [0, 2, 3])
@pytest.mark.parametrize(
    ("kind", "batch", "workers", "prefetch"),
    [("threads", 8, 2, 2), ("processes", 8, 2, 2), ("threads", 16, 0, 1), ("processes", 4, 4, 1)],
)
def test_that_much_is_enough(
    server: Loopback, narrow: Path, tmp_path: Path, kind: Any, batch: int, workers: int, prefetch: int, late_every: int
) -> None:
    """Requests per shard of an epoch through a cache of exactly that size: one; at most two of those round the end and of the start.

    So it is too where workers drift apart as far as they can: late ones tell of what those ahead are done with.
    """
    config = settings("shards", batch=batch, workers=workers, prefetch=prefetch)
    count = shards_read(config, Shards.open(narrow), SHARDS * SAMPLES, None)
    sizes = [entry.size_bytes for entry in Shards.open(narrow).manifest.shards]
    cache = ShardCache(tmp_path / "cache", count * max(sizes), Patience(stall_s=5, attempts=4, first_wait_s=0.01, longest_wait_s=0.1))
    shards = Shards.open(server.serve(narrow, "narrow"), cache=cache)
    order = Order(shards.shard_counts, seed=0, window=config.data.window)
    source = LateBatches(shards, order, VIEW, batch, 0, 1, num_ahead=config.data.shards_ahead, late_every=late_every)
    for _ in load_batches(source, range(SHARDS * SAMPLES // batch), workers=workers, prefetch=prefetch, kind=kind):
        pass
    requests = collections.Counter(path.rpartition("/")[2] for path, _, _ in server.requests if path.endswith(".tar"))
    assert len(requests) == SHARDS
    # The first shards are fetched at once, in any order, so the cache does not know yet which of them is done with first.
    begin = order.shards_in(0, batch * (workers * prefetch + 1) - 1, config.data.shards_ahead)
    begin_again = [shard for shard in range(SHARDS) if shard not in begin]
    assert len(begin_again) > SHARDS // 3
    again = sum(requests[shards.manifest.shards[shard].name] - 1 for shard in begin_again)
    assert again <= 2
    assert max(requests.values()) <= 2

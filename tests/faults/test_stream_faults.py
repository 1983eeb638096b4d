"""What real faults do to the stream: a main process killed, shared memory that is small, shards damaged under a running job."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bamboo.cli.errors import DataError
from bamboo.datasets.augment.crops import TrainView
from bamboo.datasets.plan.order import Order
from bamboo.datasets.shards import Shards
from bamboo.datasets.stream.batches import TrainBatches
from bamboo.datasets.stream.loader import load_batches
from bamboo.datasets.stream.policies import BadSampleList, BadSamples, Replaced
from tests.datasets.stream.fakes import rows_of, shared_memory

REPOSITORY = Path(__file__).resolve().parents[2]

STREAMING = """
import multiprocessing, sys, time
from bamboo.datasets.stream.batches import TrainBatches
from bamboo.datasets.stream.loader import load_batches
from tests.datasets.stream.fakes import Pictures, Shuffled, Stamp
hanging = int(Shuffled().take(13, 14).ids[0])
batches = load_batches(TrainBatches(Pictures(hanging=hanging), Shuffled(), Stamp(), 10, 0, 1), range(1000), workers=3)
next(batches)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
time.sleep(60)
"""

FORKING = """
import multiprocessing, os, time
from bamboo.datasets.stream.batches import TrainBatches
from bamboo.datasets.stream.loader import Loader
from tests.datasets.stream.fakes import Pictures, Shuffled, Stamp
os.register_at_fork(after_in_child=lambda: time.sleep(1))
loader = Loader(TrainBatches(Pictures(), Shuffled(), Stamp(), 10, 0, 1), range(1000), workers=3)
print(*[child.pid for child in multiprocessing.active_children()], flush=True)
time.sleep(60)
"""

SMALL_SHM = """
import os
from bamboo.datasets.stream.batches import TrainBatches
from bamboo.datasets.stream.loader import load_batches
from tests.datasets.stream.fakes import Pictures, Shuffled, Stamp
class Wide(Stamp):
    size = 256
    def __call__(self, image, draws):
        return super().__call__(image, draws)[:, :1, :1].expand(3, 256, 256)
assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize <= 2**16
print(sum(len(batch.ids) for batch in load_batches(TrainBatches(Pictures(), Shuffled(), Wide(), 10, 0, 1), range(6), workers=2)))
"""

LISTING = """
import sys
from pathlib import Path
from bamboo.datasets.stream.policies import BadSampleList, Replaced
listed = BadSampleList(Path(sys.argv[1]))
for place in range(10**9):
    listed.add([Replaced(place, place, "shard-0.tar:" + "x" * 200, "damaged", place + 1)])
    if place == 100:
        print("begun", flush=True)
"""


FULL = """
import resource, sys
from pathlib import Path
from bamboo.datasets.stream.policies import BadSampleList, Replaced
path, count = Path(sys.argv[1]), 0
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
with BadSampleList(path) as listed:
    for place in range(0, 90, 9):
        slots = [Replaced(place + step, 0, "shard-0.tar:x", "damaged", 5) for step in range(9)]
        try:
            count += listed.add(slots)
        except OSError as error:
            print(count, error.filename)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            print(listed.add(slots))
            break
"""


def start(code: str, *arguments: object, before: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    """Starts Python on a piece of code, in the checkout."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*before, sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def lives(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_workers_end_with_their_parent() -> None:
    """SIGKILL of the main process while a worker hangs in a read: all three are gone in seconds; nobody had anything in /dev/shm."""
    process = start(STREAMING)
    assert process.stdout is not None
    workers = [int(word) for word in process.stdout.readline().split()]
    assert len(workers) == 3
    assert all(lives(worker) for worker in workers)
    assert not [line for pid in (process.pid, *workers) for line in shared_memory(pid)]
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while any(lives(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [worker for worker in workers if lives(worker)]


def test_workers_end_with_a_parent_that_they_never_saw() -> None:
    """SIGKILL of the main process before its workers have begun, as in a slow fork: they end all the same."""
    process = start(FORKING)
    assert process.stdout is not None
    workers = [int(word) for word in process.stdout.readline().split()]
    process.kill()
    process.wait()
    assert len(workers) == 3
    deadline = time.monotonic() + 10
    while any(lives(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [worker for worker in workers if lives(worker)]
    for worker in left:
        os.kill(worker, signal.SIGKILL)
    assert not left


def test_an_interpreter_that_ends_takes_its_workers_along() -> None:
    """A program that ends with a stream still open, one worker in a read that hangs: it ends at once, in order, without its workers."""
    process = start(STREAMING.replace("time.sleep(60)", "kept = batches"))
    output, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (0, "")
    assert len(output.split()) == 3
    assert not [worker for worker in output.split() if lives(int(worker))]


def test_a_small_dev_shm_is_enough() -> None:
    """64 kB of /dev/shm, as a container may have it, and a ring of 10 MB: all batches come."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a mount of one's own takes root and unshare")
    inside = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$0" "$@"')
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    output, errors = start(SMALL_SHM, before=inside).communicate(timeout=60)
    assert output.split() == ["60"], errors


def test_a_killed_list_holds_whole_lines(tmp_path: Path) -> None:
    """SIGKILL while slots are listed as fast as can be: every line is whole, in order; the next run lists none of them again."""
    path = tmp_path / "bad.tsv"
    process = start(LISTING, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = path.read_text().splitlines(keepends=True)
    slots = [Replaced(place, place, "shard-0.tar:" + "x" * 200, "damaged", place + 1) for place in range(len(lines) - 1)]
    assert len(slots) > 100
    assert lines[1:] == [slot.line for slot in slots]
    with BadSampleList(path) as listed:
        assert listed.add(slots) == 0


def test_a_full_disk_loses_no_line_in_silence(tmp_path: Path) -> None:
    """A file that may not grow beyond 1,000 bytes, and nine lines a batch: an error that names it; once it may, they are all listed."""
    path = tmp_path / "bad.tsv"
    output, errors = start(FULL, path).communicate(timeout=30)
    count, named, again = output.split()
    assert (named, again) == (str(path), "9"), errors
    with BadSampleList(path) as listed:
        assert listed.add([Replaced(place, 0, "", "", 5) for place in range(int(count) + 9)]) == 0
    assert 0 < int(count) < 81


@pytest.fixture
def damaged(pool: Path, tmp_path: Path) -> Path:
    """A copy of the training shards: once opened, its second shard loses its end and one image of the fourth is overwritten."""
    return Path(shutil.copytree(pool / "train", tmp_path / "train"))


def batches(shards: Shards, rank: int = 0, world_size: int = 1) -> TrainBatches:
    """Returns batches of 12 with a policy that goes beyond all but a whole shard."""
    view = TrainView(16, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bilinear")
    order = Order(shards.shard_counts, seed=0, window=2)
    return TrainBatches(shards, order, view, 12, rank, world_size, bad_samples=BadSamples(12))


def test_damaged_shards_are_streamed_around(pool: Path, damaged: Path) -> None:
    """A truncated shard and an overwritten image under an open stream: exactly their slots are replaced, on any ranks and workers."""
    shards = Shards.open(damaged)
    name = shards.manifest.shards[1].name
    first = int(shards.index.offset[25])
    os.truncate(damaged / name, first)
    lost = set(np.flatnonzero((shards.index.shard == 1) & (shards.index.offset >= first)).tolist())
    with (damaged / shards.manifest.shards[3].name).open("r+b") as file:
        file.seek(int(shards.index.offset[65]))
        file.write(bytes(int(shards.index.size[65])))
    bad = lost | {65}
    assert len(lost) == 15
    whole = [row for batch in load_batches(batches(Shards.open(pool / "train")), range(8), workers=0) for row in rows_of(batch)]
    made, slots = [], list[Replaced]()
    for batch in load_batches(batches(shards), range(8), workers=0):
        made += rows_of(batch)
        slots += batch.replaced
    assert {slot.sample for slot in slots} == bad & {row[1] for row in whole}
    assert [row for row, wanted in zip(made, whole, strict=True) if wanted[1] not in bad] == [row for row in whole if row[1] not in bad]
    assert all(slot.name.startswith(shards.manifest.shards[1 if slot.sample in lost else 3].name) for slot in slots)
    parts = []
    for rank in range(2):
        parts += [row for batch in load_batches(batches(shards, rank, 2), range(8), workers=1) for row in rows_of(batch)]
    assert sorted(parts) == sorted(made)


def test_a_shard_that_is_gone_stops_the_stream(damaged: Path) -> None:
    """A file deleted after it was opened for the index: an error that names it, whatever the policy for bad samples."""
    shards = Shards.open(damaged)
    gone = damaged / shards.manifest.shards[4].name
    gone.unlink()
    with pytest.raises((DataError, OSError), match=gone.name):
        list(load_batches(batches(shards), range(9), workers=1))

"""One rank of several that save checkpoints on a bad day: `RANK=… WORLD_SIZE=… python -m tests.faults.saving_ranks SCENE FOLDER`."""

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

import bamboo.pretrain.checkpoints.checkpoint
from bamboo.cli.errors import BambooError
from bamboo.datasets.ranks import Ranks, start_ranks
from bamboo.model_zoo.tensor_files import FileFacts
from bamboo.pretrain.average import NoAverage
from bamboo.pretrain.checkpoints.checkpoint import CheckpointFolder
from bamboo.pretrain.checkpoints.snapshot import Position, Snapshot, take_snapshot
from bamboo.pretrain.checkpoints.writer import Writer
from bamboo.pretrain.engines.engine import Engine
from bamboo.pretrain.engines.fsdp import ShardedEngine
from bamboo.pretrain.engines.plain import PlainEngine

WIDTH = 512  # of a square matrix: 1 MiB of float32


def main(scene: str, folder: Path) -> None:
    """Plays a scene."""
    torch.manual_seed(0)
    ranks = start_ranks("cpu")
    if scene == "wide":
        wide(folder, ranks)
    else:
        narrow(scene, folder, ranks)


def narrow(scene: str, folder: Path, ranks: Ranks) -> None:
    """Saves 1 MiB of weights that every rank holds, once well, and then as the scene has it."""
    module = torch.nn.Linear(WIDTH, WIDTH)
    engine = PlainEngine(module, torch.optim.SGD(module.parameters()), ranks, precision="fp32", clip_norm=None)
    writer = Writer(CheckpointFolder(folder, keep=9), ranks, background=True)
    writer.save(taker(1, engine, ranks))
    writer.wait()
    if scene.startswith("no room"):
        no_room(scene.removeprefix("no room, "), writer, engine, ranks)
    elif scene.startswith("killed"):
        killed(int(scene.removeprefix("killed ")), writer, engine, ranks)
    else:
        writer.save(taker(2, engine, ranks))
        writer.wait()
        ranks.close()


def taker(step: int, engine: Engine, ranks: Ranks) -> Callable[[], Snapshot]:
    """Returns what takes the snapshot after a step."""
    return lambda: take_snapshot(Position(step, step, 0, 1), engine, NoAverage(), ranks, {"pinned": {}})


def no_room(when: str, writer: Writer, engine: Engine, ranks: Ranks) -> None:
    """The kernel lets rank 1 write no file beyond 64 KiB."""
    if ranks.rank == 1:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    writer.save(taker(2, engine, ranks))
    try:
        if when == "end":
            with writer:
                pass
        else:
            writer.save(taker(3, engine, ranks))
    except OSError as error:
        sys.stdout.write(f"rank {ranks.rank} at the {when}: {error}\n")
    ranks.close()


def killed(victim: int, writer: Writer, engine: Engine, ranks: Ranks) -> None:
    """A rank is killed with half of its file written."""
    write = bamboo.pretrain.checkpoints.checkpoint.write_tensor_file

    def die(path: Path, tensors: Mapping[str, torch.Tensor]) -> FileFacts:
        if ranks.rank == victim:
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, tensors)

    bamboo.pretrain.checkpoints.checkpoint.write_tensor_file = die
    writer.save(taker(2, engine, ranks))
    begun = time.monotonic()
    try:
        writer.wait()
    except BambooError as error:
        sys.stdout.write(f"heard after {time.monotonic() - begun:.1f} s: {error}\n")
    sys.stdout.flush()
    os._exit(0)  # the process group cannot be left in good order any more


def wide(folder: Path, ranks: Ranks) -> None:
    """Saves 128 MiB of weights that are sharded over the ranks, and says by how much that raised this one's peak of memory."""
    module = torch.nn.Sequential(*(torch.nn.Linear(8 * WIDTH, 4 * WIDTH, bias=False) for _ in range(4)))
    engine = ShardedEngine(module, lambda module: torch.optim.SGD(module.parameters()), ranks, precision="fp32", clip_norm=None)
    own = sum(shard.nbytes for shard in engine.shards().values())
    writer = Writer(CheckpointFolder(folder, keep=9), ranks, background=True)
    ranks.barrier()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew from here
    before = peak_kib()
    writer.save(taker(1, engine, ranks))
    writer.wait()
    sys.stdout.write(f"own {own / 2**20:.1f} MiB, peak grew by {(peak_kib() - before) / 2**10:.1f} MiB\n")
    ranks.close()


def peak_kib() -> int:
    """Returns the peak of this process's resident memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

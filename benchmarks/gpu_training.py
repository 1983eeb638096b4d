"""Training throughput, MFU, waiting for data and memory, beside timm's own benchmark step and a bare compiled loop, in one run.

    python benchmarks/gpu_training.py                                 # ResNet-50 and ViT-B/16 at 224 px on a GPU
    python benchmarks/gpu_training.py --models resnet50 --rounds 3    # a part; what is written is that part
    python benchmarks/gpu_training.py --device cpu                    # ResNet-18 and ViT-Ti at 64 px, also where there is no GPU

    bamboo           Trainer and engine as a run has them, on batches that are on the device already
    bamboo, loader   the same on shards packed for the occasion, through plan, decoder, crops and the copy to the device
    timm             the step of timm's benchmark script
    bare             normalise → autocast → cross-entropy → backward → step; the limit

On a GPU all four are compiled and timed by the wall; on a CPU none is (it does not pay there), and CPU seconds are told. Beside torch,
torchvision, NumPy, pyarrow, Pillow, pydantic, PyYAML and safetensors it needs pure wheels alone: timm, huggingface_hub (of which timm needs
the import: httpx, anyio, h11, …), filelock, tqdm, packaging, typing_extensions. --no-loader leaves out the loop that decodes images.
"""

import argparse
import dataclasses
import functools
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from provenance import best_ratio, interleave, provenance, ratios, spread, write_results
from streams import Pictures, make_shards
from training_loops import BambooLoop, BareLoop, Case, Loop, TimmLoop, clock

from bamboo.datasets.ranks import Ranks, start_ranks
from bamboo.pretrain.meter import peak_flops, training_flops

SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-5, "args": {"fused": True}}
ADAMW = {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "args": {"fused": True}}
GPU_CASES = {
    "resnet50": Case("resnet50", {}, 224, 256, SGD, compiled=True),
    "vit_base_patch16_224": Case("vit_base_patch16_224", {}, 224, 256, ADAMW, compiled=True),
}
CPU_CASES = {
    "resnet18": Case("resnet18", {}, 64, 32, SGD, compiled=False),
    "vit_tiny_patch16_224": Case("vit_tiny_patch16_224", {"img_size": 64}, 64, 32, ADAMW, compiled=False),
}
OVERHEAD = 1.02
TARGETS = {("resnet50", "bamboo"): "≥ 3,000 images/s", ("vit_base_patch16_224", "bamboo"): "MFU ≥ 40 % (H200)"}

NOTES = """
{where} Batches of {batches}, bf16 autocast, channels-last, {steps} steps a round, {rounds} rounds in turn after one of warm-up. Ratios
are a loop's time over the bare loop's within a round, median (least – greatest), and once more between the best rounds. MFU is 3 × the
FLOPs of a forward pass over the peak: {peak}. Peak memory is what the loop added to the GPU's while it was built and warmed up.

- *bamboo*: `Trainer` and engine with schedule, `Meter`, stream fingerprint and a line of `log.jsonl` a round; label smoothing; the same
  fused optimiser as *bare*; uint8 batches on the device.
- *bamboo, loader*: the same on {num_images} JPEGs of {pictures}, random-resized crops and flips, {workers} loader workers.
- *timm*: the step of its `benchmark.py --bench train --amp --channels-last`, written after the script, which the wheel lacks: normal floats
  on the device, SGD, new random targets and a wait for the device every step{compiled}.
- *bare*: normalise, forward, cross-entropy, backward, step, `zero_grad`{compiled}; it knows neither its loss nor its speed.

Targets: ViT-B/16 at 40 % MFU or more on one H200, ResNet-50 at 3,000 images/s or more, bamboo at most {overhead} × bare.
"""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured of one model."""

    seconds: dict[str, list[float]]
    """Loop → seconds of each round."""
    memory_bytes: dict[str, int]
    """Loop → what it added to the device's peak; empty on a CPU."""
    data_waits: dict[str, list[float]]
    """Bamboo's loops → share of the time spent waiting in each round."""
    flops: float
    """FLOPs of an image in training."""


def measure(case: Case, ranks: Ranks, folder: Path, shards: Path | None, peak: float, options: argparse.Namespace) -> Measured:
    """Builds the loops of one model, and runs them in turn."""
    size = case.image_size
    flops = training_flops(case.make_model(ranks.device), torch.zeros(1, 3, size, size, device=ranks.device))
    ours = functools.partial(BambooLoop, case, ranks, workers=options.workers, flops=flops, peak=peak)
    makers: dict[str, Any] = {"bamboo": functools.partial(ours, folder / "memory", shards, from_loader=False)}
    if options.loader:
        makers["bamboo, loader"] = functools.partial(ours, folder / "loader", shards, from_loader=True)
    makers |= {"timm": functools.partial(TimmLoop, case, ranks), "bare": functools.partial(BareLoop, case, ranks)}
    loops: dict[str, Loop] = {}
    memory = {}
    for name, make in makers.items():
        before = _settled_bytes(ranks.device)
        loops[name] = make()
        loops[name].round(3)
        if ranks.device.type == "cuda":
            memory[name] = torch.cuda.max_memory_allocated(ranks.device) - before
    turns = {name: functools.partial(timed, loop, options.steps, ranks.device) for name, loop in loops.items()}
    seconds = interleave(turns, options.rounds, unit="s" if ranks.device.type == "cuda" else "CPU s")
    waits = {name: loop.data_waits(options.rounds) for name, loop in loops.items() if isinstance(loop, BambooLoop)}
    return Measured(seconds, memory, waits, flops)


def timed(loop: Loop, num_steps: int, device: torch.device) -> float:
    """Returns the seconds of a round."""
    if loop.lead:
        loop.round(loop.lead)
    before = clock(device)
    loop.round(num_steps)
    return clock(device) - before


def _settled_bytes(device: torch.device) -> int:
    """Returns what lies on the GPU now, from where its peak is counted anew."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def rows(case: Case, found: Measured, peak: float, options: argparse.Namespace) -> list[list[str]]:
    """Returns the lines of the table for one model."""
    lines = []
    num_images, bare = options.steps * case.batch_size, found.seconds["bare"]
    for name, seconds in found.seconds.items():
        rate = spread([num_images / value for value in seconds]).median
        waited = f"{spread(found.data_waits[name]).median:.1%}" if name in found.data_waits else ""
        memory = f"{found.memory_bytes[name] / 2**30:.1f} GiB" if name in found.memory_bytes else "–"
        ratio = ["1", "1"] if name == "bare" else [str(ratios(seconds, bare)), f"{best_ratio(seconds, bare):.3f}"]
        targets = [TARGETS.get((case.model, name), ""), f"≤ {OVERHEAD} × bare" if name == "bamboo" else ""]
        line = [case.model, name, f"{rate:,.0f}", f"{rate * found.flops / peak:.1%}", waited, memory, *ratio]
        lines.append([*line, ", ".join(filter(None, targets))])
    return lines


def notes(cases: Mapping[str, Case], ranks: Ranks, source: str, pictures: str, options: argparse.Namespace) -> str:
    """Returns what was measured and how."""
    is_gpu = ranks.device.type == "cuda"
    where = (
        "On one GPU, by the wall."
        if is_gpu
        else "**On a CPU, at a small size: no GPU was at hand.** Times are CPU seconds; look at the ratios."
    )
    return NOTES.format(
        where=where,
        batches=" and ".join(f"{case.batch_size} at {case.image_size} px ({case.model})" for case in cases.values()),
        steps=options.steps,
        rounds=options.rounds,
        peak=source,
        num_images=options.images,
        pictures=pictures,
        workers=options.workers or "no",
        compiled=", compiled" if is_gpu else "",
        overhead=OVERHEAD,
    )


def parse(argv: list[str]) -> argparse.Namespace:
    """Returns the options, with the device's own defaults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--models", nargs="+", choices=[*GPU_CASES, *CPU_CASES])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, help="a round; 30 on a GPU, 10 on a CPU")
    parser.add_argument("--batch-size", type=int, help="256 on a GPU, 32 on a CPU")
    parser.add_argument("--workers", type=int, help="of the loader; all cores but two beside a GPU, none on a CPU")
    parser.add_argument("--images", type=int, help="in the shards; 1024 beside a GPU, 256 on a CPU")
    parser.add_argument("--loader", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args(argv)


def main() -> None:
    """Measures, prints the table and writes the results."""
    options = parse(sys.argv[1:])
    ranks = start_ranks(options.device)
    is_gpu = ranks.device.type == "cuda"
    made = provenance(["torch", "torchvision", "timm", "numpy"])
    if is_gpu:
        made["machine"]["gpus"] = [torch.cuda.get_device_name(ranks.device)]
    else:
        torch.set_num_threads(1)
    cores = made["machine"]["cpus"]
    defaults = {"steps": 30, "workers": max(cores - 2, 1), "images": 1024} if is_gpu else {"steps": 10, "workers": 0, "images": 256}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    cases = {name: case for name, case in (GPU_CASES if is_gpu else CPU_CASES).items() if name in (options.models or [name])}
    if options.batch_size:
        cases = {name: dataclasses.replace(case, batch_size=options.batch_size) for name, case in cases.items()}
    peak, source = peak_flops(ranks.device, "bf16")
    pictures = Pictures(500, 375, 224) if is_gpu else Pictures(160, 120, 64)
    rate = "images/s" if is_gpu else "images per CPU second"
    table = [["model", "loop", rate, "MFU", "data wait", "peak memory", "time over bare's", "of best rounds", "target"]]
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        shards = make_shards(Path(temporary) / "pool", pictures, options.images)
        for name, case in cases.items():
            for loop in ("memory", "loader"):
                (Path(temporary) / name / loop).mkdir(parents=True)
            found = measure(case, ranks, Path(temporary) / name, shards, peak, options)
            table += rows(case, found, peak, options)
            measured[name] = dataclasses.asdict(found)
    text = notes(cases, ranks, source, f"{pictures.width}×{pictures.height}", options)
    write_results("gpu_training", "Training: throughput beside timm's step and a bare loop", made, table, text, {"peak": peak, **measured})


if __name__ == "__main__":
    sys.exit(main())

"""What the plan costs at 100 million samples: from a cold process to the first slice, per sample after that, and in memory.

    python benchmarks/plan.py
    python benchmarks/plan.py --rows 1000000 --json      # a quick look; prints the figures and writes no results

The data is synthetic: a real index.arrow of that many rows (10,000 shards) and, for the weighted plan, a weight column compiled by
`bamboo.datasets.plan.weighting`. Each figure is of a process of its own, which opens the index, builds the plan and looks up where
the samples of its slices lie. Without `--folder` the data (about 5.5 GB) lies in a temporary folder.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SHARDS, WINDOW, BATCH, WORLD = 10_000, 64, 4096, 8
ROUNDS, SLICES = 5, 40  # slices of a round
TARGETS = {"cold_s": 2.0, "sample_us": 2.0, "peak_mb": 300.0}

NOTES = f"""
{{rows:,}} samples in {SHARDS:,} shards, window {WINDOW}, global batches of {BATCH} of which one rank of {WORLD} takes its slice of
{BATCH // WORLD}; the files were written just before, so they lie in the page cache. Every row is a process of its own: *cold* is its
whole CPU time, imports included, until the first slice is there, with the places of its images in the tars; *a sample* is CPU time
over {SLICES} slices that follow one another, with the places of their images, the best of {ROUNDS} rounds, once their pages are in
memory; *peak* is the greatest resident set of the process, all its look-ups in the index, those of labels too, and Python, numpy and
pyarrow included (a bare one: {{bare:.0f}} MB); *own* is what it holds for itself in the end, and *mapped* what it then has mapped of files.
*middle* starts at half of the third epoch.

Targets: at most {TARGETS["cold_s"]} s, {TARGETS["sample_us"]} µs and {TARGETS["peak_mb"]:.0f} MB.
"""


def make_data(folder: Path, rows: int) -> None:
    """Writes index.arrow, counts.npy, weights.npy and the compiled weight column of a synthetic pool."""
    import pyarrow as pa

    from bamboo.datasets.index import FILE_NAME, SCHEMA, read_index, write_index
    from bamboo.datasets.plan.weighting import Weighting, compile_rates

    counts = np.full(SHARDS, rows // SHARDS, np.int64)
    counts[: rows % SHARDS] += 1
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "counts.npy", counts)
    starts = np.arange(rows + 1, dtype=np.int32)
    nothing = pa.ListArray.from_arrays(pa.array(np.zeros(rows + 1, np.int32)), pa.array([], pa.float16()))
    columns = {
        "shard": np.repeat(np.arange(SHARDS, dtype=np.int32), counts),
        "offset": np.arange(rows, dtype=np.int64) * 512,
        "size": np.full(rows, 400, np.int64),
        "width": np.full(rows, 64, np.int32),
        "height": np.full(rows, 64, np.int32),
        "labels": pa.ListArray.from_arrays(pa.array(starts), pa.array((starts[:-1] % 1000).astype(np.int32))),
        "confidences": nothing,
        "key_hash": np.arange(rows, dtype=np.uint64),
    }
    table = pa.Table.from_arrays(
        [pa.array(columns[name]) if isinstance(columns[name], np.ndarray) else columns[name] for name in SCHEMA.names], schema=SCHEMA
    )
    write_index(folder / FILE_NAME, [table])
    np.save(folder / "weights.npy", np.random.default_rng(0).exponential(size=rows).astype(np.float32))
    started = time.process_time()
    compile_rates(Weighting(weights=folder / "weights.npy"), read_index(folder / FILE_NAME), counts, folder / "rates", "weights")
    sys.stderr.write(f"weight column compiled in {time.process_time() - started:.1f} CPU s\n")


def probe(folder: Path, kind: str, where: str) -> dict[str, float]:
    """Returns the figures of this process."""
    from bamboo.datasets.index import FILE_NAME, read_index
    from bamboo.datasets.plan.order import Order
    from bamboo.datasets.plan.rates import open_rates
    from bamboo.datasets.plan.slices import rank_slice

    index, counts = read_index(folder / FILE_NAME), np.load(folder / "counts.npy")
    rates = open_rates(folder / "rates", counts) if kind == "weighted" else None
    order = Order(counts, seed=0, window=WINDOW, rates=rates)
    places = rank_slice(BATCH, WORLD // 2, WORLD)
    first = 0 if where == "start" else order.epoch_samples * 5 // 2 // BATCH

    def look_up(batch: int) -> npt.NDArray[np.int64]:
        ids = order.take(batch * BATCH + places.start, batch * BATCH + places.stop).ids
        index.rows.places(ids)
        return ids

    look_up(first)
    cold_s, best_s = time.process_time(), float("inf")
    for start in range(first + 1, first + 1 + ROUNDS * SLICES, SLICES):
        before = time.process_time()
        for batch in range(start, start + SLICES):
            ids = look_up(batch)
        best_s = min(best_s, time.process_time() - before)
        index.rows.first_labels(ids)
    memory = memory_mb()
    figures = {"cold_s": cold_s, "sample_us": best_s / SLICES / len(places) * 1e6, "peak_mb": memory["VmHWM"]}
    return {**figures, "own_mb": memory["RssAnon"], "mapped_mb": memory["RssFile"]}


def memory_mb() -> dict[str, float]:
    """Returns the resident sets of this process as the kernel counts them; getrusage would count the parent's before exec."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[name].split()[0]) / 1024 for name in ("VmHWM", "RssAnon", "RssFile")}


def measure(folder: Path, kind: str, where: str) -> dict[str, float]:
    """Returns the figures of a fresh process."""
    command = [sys.executable, __file__, "--folder", str(folder), "--probe", kind, where]
    figures: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return figures


def bare_mb() -> float:
    """Returns the resident set of a process that has only imported what the plan and the index need."""
    code = "import numpy, pyarrow; print(int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 1024)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--folder", type=Path, help="where the data lies, or is made and kept")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON, and write no results")
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.probe:
        print(json.dumps(probe(options.folder, *options.probe)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "rates").exists():
            make_data(folder, options.rows)
        figures = {f"{kind}, {where}": measure(folder, kind, where) for kind in ("uniform", "weighted") for where in ("start", "middle")}
    if options.json:
        print(json.dumps(figures))
        return
    write(figures, options.rows)


def write(figures: dict[str, Any], rows: int) -> None:
    """Writes the results."""
    from provenance import provenance, write_results

    columns = {"cold_s": "cold, CPU s", "sample_us": "a sample, µs", "peak_mb": "peak, MB", "own_mb": "own, MB", "mapped_mb": "mapped, MB"}
    table = [["plan", *columns.values()]]
    table += [[name, *(f"{row[column]:.{0 if column.endswith('mb') else 2}f}" for column in columns)] for name, row in figures.items()]
    notes = NOTES.format(rows=rows, bare=bare_mb())
    write_results("plan", "Plan: an index of 100 million rows", provenance(["numpy", "pyarrow"]), table, notes, figures)


if __name__ == "__main__":
    sys.exit(main())

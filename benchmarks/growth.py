"""What growth costs and how far its gains are off, beside InfoGrowth's own way over the same features.

    OMP_NUM_THREADS=1 python benchmarks/growth.py --patches tiny-imagenet/train      # a folder of JPEGs, for real image patches
    OMP_NUM_THREADS=1 python benchmarks/growth.py                                    # synthetic features alone

Every run is a process of its own, one thread; the two ways take turns. See `growth_ways.py` for what each does, `growth_pool.py` for
the features. Needs about 3 GB of disk in `--work` (none: a temporary folder), and 3 GB of memory.
"""

import argparse
import dataclasses
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from growth_pool import patches, synthetic
from growth_ways import AUDITED, Figures, bare_product_s, exact_gains
from provenance import provenance, spread, write_results

from bamboo.datasets.growth.audit import audited_rows
from bamboo.datasets.growth.settings import EFFORT, EngineSettings

SIZES, ALONE, SHARED = (60_000, 200_000), 1_000_000, 200_000
"""Sizes at which both ways grow, at which only ours does, and that one and two processes grow to."""
TARGET = 3.0
AUDITS = EngineSettings().audit_samples
FAR = 0.05
KINDS = {"S": "synthetic", "R": "patches"}
WAYS = ("ours", "seed")
NAMES = {"ours": "ours", "seed": "InfoGrowth's"}

NOTES = f"""
Growth over features of width 256, in the order of arrival, k = 4, one thread; *synthetic*: 4,000 clusters of uneven size in 200 topics,
8 % near-duplicates; *patches*: real grey image patches of 16 × 16, mean removed. Every run is a process of its own, ways in turn;
figures are medians, with least and greatest where there were several rounds, and ratios are within rounds.

- *ours* drives `grow_source` as `bamboo grow` does, effort {EFFORT:,}: features read, encoded, searched, put in, cells made anew, codes and
  columns written and synced, {AUDITS:,} samples audited against exact search, everything hashed. Settled gains are apart (below).
- *InfoGrowth's*, written from the description of its method: hnswlib, cosine, M 48, efConstruction 100, ef 32, one sample at a time,
  looked for, then put in; in memory only. *disk* is its graph once saved, which InfoGrowth itself does not do.
- *bare product*: the matrix product of every sample with all earlier ones, in float32, with nothing chosen from it: the least that
  exact search takes. A slice of 1,024 × 16,384 was measured, and scaled to N²/2.
- *bias*, *p99*, *max*, *over {FAR}*: gain minus exact causal gain, by the features unrounded, on the same {AUDITED:,} samples for both,
  which are chosen by their number alone; p99 and max of the absolute error. Ours holds features in float16, which alone costs some 5e-5.
  p99 is the 15th greatest of them: differences of a tenth say nothing.
  *missed*: p99 by what a way itself holds (float16 codes, float32 features), so what neighbours missed cost.
- *peak*: greatest memory of the process's own above what it held before, mapped files apart.
- *fewer*: InfoGrowth's CPU seconds over ours. Target: at least {TARGET:.0f} ×, with a smaller p99:

{{met}}

Load on the machine was {{load}} on {{cpus}} cores while this ran, this included: other work shared them. CPU seconds and ways in turn keep
ratios fair; wall times are the less to be trusted.

Where our CPU time goes, µs a sample:

{{parts}}

*choose*: cells compared with a sample, and which are searched; *cells anew*: k-means, and all codes put into lists again; *rest*: reading,
encoding, columns, files; *settled*: the pass that `settled` adds after each step, not in the figures above.

One and two processes (gloo), {SHARED:,} synthetic samples:

{{processes}}
"""


@dataclasses.dataclass(frozen=True)
class Errors:
    """Gain minus exact gain."""

    bias: float
    p99: float
    max: float
    share_over: float


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """Some features and a size: what each way took in every round, and how far it was off."""

    kind: str
    count: int
    runs: Mapping[str, list[Figures]]
    errors: Mapping[str, Errors]
    bare_s: float

    def seconds(self, way: str) -> list[float]:
        """Returns the CPU seconds of each round."""
        return [run["cpu_s"] for run in self.runs[way]]

    @property
    def fewer(self) -> list[float]:
        """InfoGrowth's CPU seconds over ours, of each round; none where ours ran alone."""
        return [seed / own for seed, own in zip(self.seconds("seed"), self.seconds("ours"), strict=True)] if "seed" in self.runs else []


def run_way(way: str, pool: Path, count: int, world_size: int = 1) -> tuple[list[Figures], np.ndarray[Any, Any]]:
    """Returns what each process says, and the gains."""
    with tempfile.TemporaryDirectory(dir=pool.parent) as folder:
        command = [sys.executable, str(Path(__file__).with_name("growth_ways.py")), way, str(pool), str(count), folder]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        group = {"WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        shared = os.environ | {"OMP_NUM_THREADS": "1"} | {name: str(value) for name, value in group.items()}
        ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world_size)]
        processes = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for env in ranks]
        told = [process.communicate()[0] for process in processes]
        if any(process.returncode for process in processes):
            raise SystemExit(f"failed: {' '.join(command)}")
        figures = [json.loads(text.splitlines()[-1]) for text in told]
        sys.stderr.write(f"{pool.stem} {count:,} {way} × {world_size}: {figures[0]['cpu_s']:.1f} CPU s, {figures[0]['wall_s']:.1f} s\n")
        return figures, np.load(Path(folder) / "gains.npy")


def compare(pool: Path, count: int, rounds: int, ways: Sequence[str]) -> Case:
    """Returns the rounds of a case; every other one runs the ways the other way round."""
    features = np.load(pool, mmap_mode="r")
    rows = audited_rows(count, AUDITED, 0, 0)
    exact, bare_s = exact_gains(features, rows), bare_product_s(features, count)
    runs: dict[str, list[Figures]] = {way: [] for way in ways}
    errors = {}
    for number in range(rounds):
        for way in list(ways)[:: -1 if number % 2 else 1]:
            figures, gains = run_way(way, pool, count)
            runs[way].append(figures[0])
            off = gains[rows] - exact
            far = np.abs(off)
            errors[way] = Errors(float(off.mean()), float(np.quantile(far, 0.99)), float(far.max()), float((far > FAR).mean()))
    return Case(pool.stem, count, runs, errors, bare_s)


def compare_processes(pool: Path, rounds: int) -> dict[int, list[list[Figures]]]:
    """Returns world size → rounds → figures of each process; all leave the same files and settled gains, or this ends."""
    runs: dict[int, list[list[Figures]]] = {1: [], 2: []}
    for _ in range(rounds):
        for world_size, found in runs.items():
            found.append(run_way("ours", pool, SHARED, world_size)[0])
    results = {figures["result"] for rounds_of in runs.values() for told in rounds_of for figures in told[:1]}
    if len(results) != 1:
        raise SystemExit("one and two processes do not come to the same result")
    return runs


def several(values: Sequence[float], digits: int) -> str:
    """Returns a median with least and greatest, or the one value there is."""
    found = spread(values)
    text = f"{found.median:.{digits}f}"
    return text if len(values) == 1 else f"{text} ({found.least:.{digits}f} – {found.greatest:.{digits}f})"


def table_of(cases: Sequence[Case]) -> list[list[str]]:
    """Returns a row for each way of each case, and one for the bare product."""
    errors = ["bias", "p99", "missed", "max", f"over {FAR}"]
    table = [["features", "samples", "way", "CPU s", "µs a sample", "fewer", *errors, "cells", "peak, MB", "disk, B a sample"]]
    for case in cases:
        head = [KINDS[case.kind], f"{case.count:,}"]
        for way, runs in case.runs.items():
            off, used = case.errors[way], case.seconds(way)
            peak = statistics.median(run["peak_mb"] for run in runs)
            missed = runs[0].get("missed_p99", off.p99)
            table.append(
                [
                    *[*head, NAMES[way], several(used, 1), several([value / case.count * 1e6 for value in used], 0)],
                    f"{several(case.fewer, 2)} ×" if way == "ours" and case.fewer else "",
                    *[f"{off.bias:.1e}", f"{off.p99:.1e}", f"{missed:.1e}", f"{off.max:.3f}", f"{off.share_over:.2%}"],
                    *[str(runs[0].get("cells", "")), f"{peak:.0f}", f"{runs[0]['disk_bytes'] / case.count:.0f}"],
                ]
            )
        bare = [f"{case.bare_s:.1f}", f"{case.bare_s / case.count * 1e6:.0f}"]
        fewer = f"{case.bare_s / statistics.median(case.seconds('ours')):.2f} ×"
        table.append([*head, "bare product", *bare, fewer, *["0"] * 5, "", "", ""])
    return table


def parts_of(case: Case) -> dict[str, float]:
    """Returns where the CPU time of ours goes, µs a sample: medians over rounds."""

    def micro(run: Figures) -> dict[str, float]:
        part = run["parts_s"]
        found = {
            "choose": part["take"] - part["scan"] - (part["add"] - part["settle_add"]),
            "scan": part["scan"],
            "put in": part["add"] - part["settle_add"],
            "cells anew": part["settle"],
            "rest": run["cpu_s"] - part["take"] - part["settle"] - part["audit"],
            "audit": part["audit"],
            "settled": part["settled pass"],
        }
        return {name: value / case.count * 1e6 for name, value in found.items()}

    runs = [micro(run) for run in case.runs["ours"]]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def markdown(table: Sequence[Sequence[str]]) -> str:
    """Returns a table."""
    header, *rows = (f"| {' | '.join(row)} |" for row in table)
    return "\n".join([header, f"|{' --- |' * len(table[0])}", *rows])


def parts_table(cases: Sequence[Case]) -> str:
    """Returns where the time of ours goes in each case."""
    parts = [parts_of(case) for case in cases]
    table = [["features", "samples", *parts[0], "cells compared"]]
    for case, part in zip(cases, parts, strict=True):
        compared = f"{case.runs['ours'][0]['cells_compared']:,.0f}"
        table.append([KINDS[case.kind], f"{case.count:,}", *(f"{value:.1f}" for value in part.values()), compared])
    return markdown(table)


def processes_table(runs: Mapping[int, list[list[Figures]]]) -> str:
    """Returns wall and CPU time by number of processes."""
    wall = {size: [told[0]["wall_s"] for told in found] for size, found in runs.items()}
    table = [["processes", "wall s", "faster", "CPU s, all", "peak, MB, each"]]
    for size, found in runs.items():
        faster = several([one / own for one, own in zip(wall[1], wall[size], strict=True)], 2)
        used, peak = [sum(run["cpu_s"] for run in told) for told in found], max(run["peak_mb"] for told in found for run in told)
        table.append([str(size), several(wall[size], 1), f"{faster} ×", several(used, 1), f"{peak:.0f}"])
    same = "The files, byte for byte, and the settled gains are the same."
    return f"{markdown(table)}\n\n{same}"


def met_of(cases: Sequence[Case]) -> str:
    """Returns what came of the targets, as a list."""
    lines = []
    for case in (case for case in cases if case.fewer):
        fewer, ours, seed = statistics.median(case.fewer), case.errors["ours"].p99, case.errors["seed"].p99
        words = [f"{fewer:.2f} × fewer CPU seconds ({'met' if fewer >= TARGET else 'missed'})"]
        words.append(f"p99 {ours:.1e} against {seed:.1e} ({'met' if ours < seed else 'missed'})")
        missed = statistics.median(run["missed_p99"] for run in case.runs["ours"])
        words.append(f"by what neighbours missed cost {missed:.1e} against {seed:.1e} ({'met' if missed < seed else 'missed'})")
        lines.append(f"- {KINDS[case.kind]}, {case.count:,}: {', '.join(words)}")
    return "\n".join(lines)


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=Path, help="folder of JPEGs to cut patches from; none: synthetic features alone")
    parser.add_argument("--work", type=Path, help="folder for features and states; none: a temporary one")
    parser.add_argument("--rounds", type=int, nargs=2, default=(3, 2), help="at the smaller and at the greater size")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(["numpy", "torch", "faiss-cpu", "hnswlib"])
    loads = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        pools = [Path(work) / "S.npy"]
        np.save(pools[0], synthetic(ALONE))
        if options.patches is not None:
            pools.append(Path(work) / "R.npy")
            np.save(pools[1], patches(options.patches, max(SIZES)))
        cases = [compare(pool, size, n, WAYS) for size, n in zip(SIZES, options.rounds, strict=True) for pool in pools]
        loads.append(os.getloadavg()[0])
        processes = compare_processes(pools[0], options.rounds[1])
        cases.append(compare(pools[0], ALONE, 1, ("ours",)))
        loads.append(os.getloadavg()[0])
    notes = NOTES.format(
        met=met_of(cases),
        load=f"{min(loads):.1f} to {max(loads):.1f}",
        cpus=os.cpu_count(),
        parts=parts_table(cases),
        processes=processes_table(processes),
    )
    rounds = {"cases": [dataclasses.asdict(case) for case in cases], "processes": processes}
    write_results("growth", "Growing by information gain, beside InfoGrowth's own way", made, table_of(cases), notes, rounds)


if __name__ == "__main__":
    main()

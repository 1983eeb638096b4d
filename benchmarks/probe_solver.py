"""A path of 45 values of λ against scikit-learn at equal loss: CPU seconds of one thread.

    OMP_NUM_THREADS=1 python benchmarks/probe_solver.py
    OMP_NUM_THREADS=1 python benchmarks/probe_solver.py --sets 2000x64x10 --batch 1500x64x10   # a quick look; it overwrites the results

Both minimise the same F on the same rows, from strong to weak regularisation, each value from the last one's solution:

    bamboo          the descent of `bamboo.linear_probe.solver.path.sweep`: its stop rule, its warm start, without the scoring
    scikit-learn    LogisticRegression(solver="lbfgs", warm_start=True) on the features as they are, as its users call it, and on
                    centred ones, which is better but not its own doing, in float32 and in float64; it is stopped at its first iterate
                    whose F is no higher than bamboo's at that value, by a callback that reads the F it has computed itself: the least
                    that it needs for an equal gap, which its own rules could not know

A set is ROWSxFEATURESxCLASSES@POWER:NUMBER: synthetic features, four modes per class, Gaussian noise, standard deviations that fall as
(1 + i)^-POWER in randomly rotated directions, then max(x + 0.1, 0), so that they are sparse and have a mean as pooled ones do. scikit-learn
solves NUMBER values of the grid, evenly spread (45: all); where it has not solved the value before, it starts from bamboo's solution of it.
--folders adds real features: feature folders that `bamboo features` or `bamboo probe` wrote.
"""

import argparse
import contextlib
import dataclasses
import math
import re
import statistics
import sys
import time
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import scipy.optimize
import threadpoolctl
import torch
from provenance import provenance, write_results
from sklearn.linear_model import LogisticRegression

from bamboo.datasets.feature_folder import read_features
from bamboo.linear_probe.solver.lbfgs import History, decrement_below, minimise
from bamboo.linear_probe.solver.path import sweep
from bamboo.linear_probe.solver.problem import Problem, full_float32

GRID = tuple(10.0 ** (2.0 - step / 4.0) for step in range(45))  # λ / n over the mean eigenvalue of the Gram matrix, as `standard`
TOLERANCE, FLOOR_SHARE = 1e-4, 0.01
SETS = ("16000x512x10@0.5:45", "20000x512x100@0.5:45", "20000x512x100@1:45", "50000x2048x100@0.5:5", "50000x2048x100@1:5")
FORMS = {"as they are, float32": ("float32", False), "centred, float32": ("float32", True), "centred, float64": ("float64", True)}
FLOAT64_ROWS = 16_000  # larger sets in float32 alone, scikit-learn's faster form
CHECKS = (8, 16, 24)  # values whose optimum is certified, to state the gap
MAX_ITERATIONS = 1000
SLACK = 1e-6  # of F: what float32 leaves undecided
TARGET = 10.0

HEADER = [
    "set",
    "condition",
    "values",
    "bamboo CPU s",
    "iterations",
    "gap",
    "of the limit",
    "scikit-learn",
    "values",
    "CPU s",
    "iterations",
    "ratio",
]
NOTES = """
CPU seconds are user and system time of this process, one thread, one round; the contenders take turns value by value, so that a busy
machine slows all alike. bamboo's seconds include its preparation (centring, Gram matrix, eigendecomposition), in proportion where
scikit-learn solves only some of the values. *of the limit* is the time that the products with the features alone would take at the
rate of the machine's float32 matrix product (2048³: {rate:.0f} GFLOP/s), over bamboo's time. *gap* is F / D − 1 with the certified lower
bound D of the optimum, the highest of {checks} values. *condition* is that of the Gram matrix of the centred features, which decides how
many iterations an L-BFGS without a preconditioner needs. ≥ marks a scikit-learn that was ended by its {cap} iterations a value or by
the budget of {budget:.0f} CPU seconds, with the number of values it had finished.

Target: at least {target:.0f} times fewer CPU seconds than scikit-learn.

The last rows are `sweep` with and without batches of neighbouring values, on a CPU.
"""


@dataclasses.dataclass(frozen=True)
class Set:
    """A feature set: a synthetic one, or the one in `folder`."""

    rows: int
    features: int
    classes: int
    power: float
    peer_values: int
    folder: Path | None = None

    @classmethod
    def read(cls, text: str) -> Self:
        """Returns the set of a feature folder."""
        found = read_features(Path(text))
        rows, features = found.features.shape
        return cls(rows, features, int(found.labels.max()) + 1, 0.0, len(GRID), Path(text))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the set that ROWSxFEATURESxCLASSES[@POWER][:NUMBER] names."""
        found = re.fullmatch(r"(\d+)x(\d+)x(\d+)(?:@([\d.]+))?(?::(\d+))?", text)
        if found is None:
            raise argparse.ArgumentTypeError(f"{text!r}: must be ROWSxFEATURESxCLASSES[@POWER][:NUMBER]")
        rows, features, classes, power, values = found.groups()
        return cls(int(rows), int(features), int(classes), float(power or 0.5), min(int(values or len(GRID)), len(GRID)))

    def __str__(self) -> str:
        kind = f"power {self.power:g}" if self.folder is None else f"real: {self.folder.name}"
        return f"{self.rows:,} × {self.features:,}, K = {self.classes}, {kind}"

    @property
    def peer_numbers(self) -> list[int]:
        """Grid numbers that scikit-learn solves."""
        if self.peer_values >= len(GRID):
            return list(range(len(GRID)))
        return sorted({round(number) for number in np.linspace(0, len(GRID) - 1, self.peer_values + 2)[1:-1]})


def make_rows(drawn: Set) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns float32[N, D] features and int64[N] labels, each class present."""
    if drawn.folder is not None:
        found = read_features(drawn.folder)
        return torch.from_numpy(found.features.astype(np.float32)), torch.from_numpy(found.labels)
    random = np.random.default_rng(0)
    labels = np.concatenate([np.arange(drawn.classes), random.integers(0, drawn.classes, drawn.rows - drawn.classes)])
    modes = random.standard_normal((4 * drawn.classes, drawn.features), np.float32)
    rotation = np.linalg.qr(random.standard_normal((drawn.features, drawn.features)))[0].astype(np.float32)
    deviations = ((1 + np.arange(drawn.features)) ** -drawn.power).astype(np.float32)
    features = random.standard_normal((drawn.rows, drawn.features), np.float32)
    features += 0.5 * modes[4 * labels + random.integers(0, 4, drawn.rows)]
    features *= deviations
    return torch.from_numpy(np.maximum(features @ rotation + np.float32(0.1), 0.0)), torch.from_numpy(labels)


@dataclasses.dataclass
class Work:
    """What a contender spent, by grid number."""

    seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    iterations: dict[int, int] = dataclasses.field(default_factory=dict)
    unfinished: set[int] = dataclasses.field(default_factory=set)
    prepare_s: float = 0.0

    def spent(self, numbers: list[int]) -> float:
        """CPU seconds on some values, with their part of the preparation."""
        return sum(self.seconds[number] for number in numbers) + self.prepare_s * len(numbers) / len(GRID)


class Ours:
    """bamboo's path, value by value."""

    def __init__(self, features_ND: torch.Tensor, labels_N: torch.Tensor, num_classes: int) -> None:
        self.work, start = Work(), time.process_time()
        self.problem = Problem(features_ND, labels_N, num_classes)
        self.objective = self.problem.objective()
        self.ridges = [value * self.problem.gram.mean_eigenvalue for value in GRID]
        self._stop = decrement_below(TOLERANCE, FLOOR_SHARE * math.log(num_classes))
        self._history = History()
        with full_float32():
            self._point = self.objective.start()
        self.work.prepare_s = time.process_time() - start

    def solve(self, number: int) -> tuple[float, npt.NDArray[np.float64]]:
        """Returns (F reached, the parameters it started from [K, D + 1])."""
        start, before = time.process_time(), self._point.parameters_KE.numpy()
        ridge = self.ridges[number]
        with full_float32():
            descent = minimise(self.objective, self.problem.gram, ridge, self._point, self._history, self._stop)
        self._point = descent.point
        self.work.seconds[number], self.work.iterations[number] = time.process_time() - start, descent.iterations
        return self._point.value(ridge), before

    def gap(self, number: int, value: float) -> float:
        """Returns F / D − 1 with the lower bound of a certified solution."""
        return value / self.problem.fit(self.ridges[number], start=self._point.parameters_KE, gap=1e-5).certificate.lower_bound - 1.0


class Peer:
    """scikit-learn's path on features that were centred by `mean_D` (0: as they are), stopped at a given F."""

    def __init__(self, features: npt.NDArray[Any], mean_D: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], budget_s: float) -> None:
        self.work = Work()
        self._features, self._mean_D, self._labels, self._left_s = features, mean_D, labels, budget_s
        self._model = LogisticRegression(solver="lbfgs", warm_start=True, tol=1e-15, max_iter=MAX_ITERATIONS)
        self._last = -2

    def solve(self, number: int, ridge: float, goal: float, start_KE: npt.NDArray[np.float64]) -> None:
        """Solves a value until F ≤ `goal`; not at all once the budget is spent."""
        if self._left_s <= 0.0:
            return
        if self._last != number - 1:
            self._model.classes_ = np.unique(self._labels)
            weight_KD, bias_K = start_KE[:, :-1], start_KE[:, -1] - start_KE[:, :-1] @ self._mean_D
            self._model.coef_, self._model.intercept_ = (array.astype(self._features.dtype) for array in (weight_KD, bias_K))
        self._model.set_params(C=1.0 / (ridge * len(self._labels)))
        with stopped_at(goal * (1.0 + SLACK), self._left_s) as watch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            start = time.process_time()
            self._model.fit(self._features, self._labels)
            used = time.process_time() - start - watch.uncounted_s
        self._last, self._left_s = number, self._left_s - used
        self.work.seconds[number], self.work.iterations[number] = used, watch.iterations
        if not watch.reached:
            self.work.unfinished.add(number)


@dataclasses.dataclass
class Watch:
    """What the stop saw."""

    reached: bool = False
    iterations: int = 0
    uncounted_s: float = 0.0


@contextlib.contextmanager
def stopped_at(goal: float, budget_s: float) -> Iterator[Watch]:
    """Ends `scipy.optimize.minimize` within the block at the first iterate with F ≤ `goal`, which may be the one it starts from."""
    watch, minimize, begun = Watch(), scipy.optimize.minimize, time.process_time()

    def watched(function: Callable[..., Any], start: npt.NDArray[Any], **options: Any) -> Any:
        before = time.process_time()
        value = float(function(start, *options["args"])[0])
        watch.uncounted_s = time.process_time() - before  # the solver evaluates its start itself
        if value <= goal:
            watch.reached = True
            return scipy.optimize.OptimizeResult(x=start, fun=value, nit=0, status=0, success=True, message="")

        def look(intermediate_result: Any) -> None:
            watch.iterations += 1
            watch.reached = float(intermediate_result.fun) <= goal
            if watch.reached or time.process_time() - begun > budget_s:
                raise StopIteration

        return minimize(function, start, **{**options, "callback": look})

    with unittest.mock.patch("scipy.optimize.minimize", watched):
        yield watch


def compare(drawn: Set, budget_s: float, rate: float) -> tuple[list[list[str]], dict[str, Any]]:
    """Returns table rows and every figure of one set."""
    features_ND, labels_N = make_rows(drawn)
    given_ND, mean_D = features_ND.numpy().copy(), features_ND.mean(0, dtype=torch.float64).numpy()
    ours = Ours(features_ND, labels_N, drawn.classes)  # centres them in place
    peers = {}
    for form, (dtype, is_centred) in FORMS.items():
        if dtype == "float32" or drawn.rows <= FLOAT64_ROWS:
            rows_ND = features_ND.numpy() if is_centred else given_ND
            shift_D = np.zeros_like(mean_D) if is_centred else mean_D
            peers[form] = Peer(rows_ND.astype(dtype, copy=False), shift_D, labels_N.numpy(), budget_s)
    gaps: list[float] = []
    for number, ridge in enumerate(ours.ridges):
        value, before_KE = ours.solve(number)
        said = f"bamboo {ours.work.seconds[number]:.2f} s {ours.work.iterations[number]} it"
        for form, peer in peers.items():
            if number in drawn.peer_numbers:
                peer.solve(number, ridge, value, before_KE)
                said += f", {form} {peer.work.seconds.get(number, 0.0):.2f} s {peer.work.iterations.get(number, 0)} it"
        if number in CHECKS:
            gaps.append(ours.gap(number, value))
        sys.stderr.write(f"{drawn} λ {number + 1}/{len(GRID)}: {said}\n")
    flops = 2.0 * (2 * sum(ours.work.iterations.values()) + 2) * drawn.rows * drawn.features * drawn.classes
    total, everything = ours.work.spent(list(range(len(GRID)))), {"bamboo": ours.work, **{form: peer.work for form, peer in peers.items()}}
    spectrum_R = ours.problem.gram.eigenvalues_R
    condition = float(spectrum_R[-1] / spectrum_R[0])
    head = [
        str(drawn),
        f"{condition:.0e}",
        "45",
        f"{total:.2f}",
        str(sum(ours.work.iterations.values())),
        f"{max(gaps):.1e}",
        f"{flops / rate / total:.2f}",
    ]
    table = [[*head, *_against(ours.work, form, peer.work, drawn)] for form, peer in peers.items()]
    figures = {name: dataclasses.asdict(work) | {"unfinished": sorted(work.unfinished)} for name, work in everything.items()}
    return table, {"set": str(drawn), "condition": condition, "gaps": gaps, **figures}


def _against(ours: Work, form: str, peer: Work, drawn: Set) -> list[str]:
    """Returns the peer's cells: form, values, CPU seconds, iterations, ratio of the same values."""
    numbers = sorted(peer.seconds)
    bound = "≥ " if peer.unfinished or len(numbers) < len(drawn.peer_numbers) else ""
    values = f"{len(numbers) - len(peer.unfinished)} of {len(drawn.peer_numbers)}"
    ratio = peer.spent(numbers) / ours.spent(numbers)
    return [form, values, f"{bound}{peer.spent(numbers):.2f}", str(sum(peer.iterations.values())), f"{bound}{ratio:.1f}"]


def batches(drawn: Set, rounds: int = 3) -> tuple[list[list[str]], dict[str, Any]]:
    """Returns table rows and figures of `sweep` with and without batches, the last fifth of the rows validating."""
    features_ND, labels_N = make_rows(drawn)
    problem, num_train = Problem(features_ND, labels_N, drawn.classes), drawn.rows * 4 // 5
    expected_M = problem.validation(num_train).labels_N1[:, 0]
    ridges = [value * problem.gram.mean_eigenvalue for value in GRID]

    def accuracy(predictions_M: torch.Tensor) -> float:
        return float((predictions_M == expected_M).double().mean())

    seconds: dict[bool, list[float]] = {False: [], True: []}
    iterations: dict[bool, int] = {}
    for _ in range(rounds):
        for together, used in seconds.items():
            start = time.process_time()
            path = sweep(problem, num_train, ridges, accuracy, patience=len(GRID), batch=together)
            used.append(time.process_time() - start)
            iterations[together] = sum(point.iterations for point in path.points)
            sys.stderr.write(f"{drawn} sweep(batch={together}): {used[-1]:.2f} CPU s, {iterations[together]} iterations\n")
    first = statistics.median(seconds[False])
    table = [
        [f"{drawn}, sweep(batch={name})", "", "45", f"{statistics.median(seconds[name]):.2f}", str(iterations[name]), *[""] * 6, ""]
        for name in seconds
    ]
    table[1][-1] = f"{statistics.median(seconds[True]) / first:.2f} of the path's"
    return table, {"set": str(drawn), "seconds": {str(key): used for key, used in seconds.items()}}


def product_rate() -> float:
    """Returns the flop/s of torch's float32 matrix product of 2048³, best of five."""
    matrix_DD, best = torch.randn(2048, 2048), math.inf
    for _ in range(5):
        start = time.process_time()
        matrix_DD @ matrix_DD
        best = min(best, time.process_time() - start)
    return 2.0 * 2048**3 / best


def main() -> None:
    """Measures, prints the table and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Set.parse, nargs="+", default=[Set.parse(text) for text in SETS])
    parser.add_argument("--folders", type=Set.read, nargs="*", default=[])
    parser.add_argument("--batch", type=Set.parse, default=Set.parse("8000x256x50"), help="the set of the batched sweep")
    parser.add_argument("--budget", type=float, default=60.0, help="CPU seconds for each form of scikit-learn on each set")
    options = parser.parse_args()
    torch.set_num_threads(1)
    made = provenance(["torch", "scikit-learn", "scipy", "numpy"])
    table = [HEADER]
    figures: list[dict[str, Any]] = []
    with threadpoolctl.threadpool_limits(1):
        rate = product_rate()
        for measure in [lambda one=one: compare(one, options.budget, rate) for one in [*options.folders, *options.sets]] + [
            lambda: batches(options.batch)
        ]:
            rows, found = measure()
            table += rows
            figures.append(found)
    notes = NOTES.format(rate=rate / 1e9, checks=len(CHECKS), cap=MAX_ITERATIONS, budget=options.budget, target=TARGET)
    everything = {"unit": "CPU seconds", "product_rate": rate, "measured": figures}
    write_results("probe_solver", "Probe solver: CPU seconds at equal loss", made, table, notes, everything)


if __name__ == "__main__":
    sys.exit(main())

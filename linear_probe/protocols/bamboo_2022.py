"""The protocol `bamboo-2022`: the released Bamboo benchmark as its code runs, so that its published figures have a counterpart.

Shape letters: B rows of a segment, D features, K classes.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np
import torch

from ..boundary import boundary
from ..metrics import Accuracy, Metric, Scores, score
from ..solver.problem import Matrix, full_float32
from .outcome import Clock, Curve, CurvePoint, Labels, Outcome, Protocol, Rows, SelectedOn, check_sides, load_rows, row_blocks

Segments = list[tuple[torch.Tensor, torch.Tensor]]

_METRICS: tuple[Metric, ...] = ("top1", "mean_per_class")


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One λ: the best of its evaluations, by each metric on its own, and the last."""

    penalty: float
    best: dict[Metric, tuple[int, Scores, Labels]]
    """Outer step, scores and predictions of the first evaluation with the highest accuracy."""

    last: Scores
    num_steps: int
    """Outer steps that were run; the remaining ones could not change anything."""

    finite: bool

    def value(self, metric: Metric) -> float:
        """Returns the highest accuracy."""
        return self.best[metric][1].metric(metric).value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bamboo2022(Protocol):
    """`bamboo-2022`: torch's L-BFGS on a penalised softmax head, the best of all evaluations **on the test set** reported.

    The objective is the sum over ten contiguous segments of the mean cross-entropy of each, plus λ ‖W‖ (the Frobenius norm itself, not its
    square; the bias is free). The optimiser is torch.optim.LBFGS at its defaults: 20 iterations an outer step, a history of 100, step
    length 1 without a line search; it is told the last segment's term with the penalty as the loss, which its stopping tests see. The test
    set is scored every 100 of 1,000 outer steps. Reported are the maxima of top-1 and of mean per-class accuracy, each on its own, over
    these evaluations and over λ. Nothing is held out, so an official validation part trains too.

    A run ends before its last step only at a fixed point: parameters and the optimiser's memory unchanged by a whole outer step, or no
    parameter left that is a number. What follows is then the same again, so it is scored as the next evaluation would, and the maxima
    are those of the whole run. All training features stand in memory as float32.

    Three things differ. The original draws the head after a backbone has used up random numbers, here the generator starts at the seed.
    For CIFAR-10 it makes 100 outputs, here as many as there are classes. And it decodes and resizes images in its own way; here the
    backbone's preprocessing decides, as under every protocol.
    """

    penalties: tuple[float, ...]
    num_segments: int
    num_steps: int
    """Outer steps."""

    scored_every: int
    """Outer steps between evaluations."""

    selected_on: ClassVar[SelectedOn] = "test"

    def evaluate(
        self,
        train: Rows,
        test: Rows,
        num_classes: int,
        metric: Metric,
        *,
        validation_rows: Labels | None = None,
        seed: int = 0,
        device: torch.device | None = None,
    ) -> Outcome:
        """As `Protocol.evaluate`; `validation_rows` are not held out."""
        clock = Clock()
        check_sides(train, test)
        rows = np.flatnonzero(train.labels >= 0)
        features_ND = load_rows(train.features, rows, device or torch.device("cpu"))
        labels_N = torch.from_numpy(train.labels[rows]).to(features_ND.device)
        parts = segments(features_ND, labels_N, self.num_segments)
        clock.lap("prepare")
        runs = [self._run(parts, penalty, test, num_classes, seed) for penalty in self.penalties]
        clock.lap("sweep")
        tops = {name: max(runs, key=lambda run: run.value(name)) for name in _METRICS}
        top, scores = tops[metric], {name: run.best[name][1] for name, run in tops.items()}
        return Outcome(
            scores=dataclasses.replace(scores[metric], top1=scores["top1"].top1, mean_per_class=scores["mean_per_class"].mean_per_class),
            predictions=top.best[metric][2],
            chosen={"penalty": top.penalty, "step": float(top.best[metric][0])},
            curve=Curve("λ", True, runs.index(top), tuple(CurvePoint(run.penalty, run.value(metric)) for run in runs)),
            split=None,
            num_train=len(rows),
            num_val=0,
            num_test=int((test.labels >= 0).sum()),
            seconds=clock.laps,
            variants={f"λ={run.penalty:g}": _variant(run) for run in runs},
            warnings=self._warnings(runs, top),
            details={"iterations": {"sweep": sum(run.num_steps for run in runs)}, "grid_visited": len(runs)},
        )

    def _run(self, parts: Segments, penalty: float, test: Rows, num_classes: int, seed: int) -> Run:
        """Returns the evaluations of one λ from the same start as any other."""
        head = linear_head(parts[0][0].shape[1], num_classes, seed).to(parts[0][0].device)
        optimizer = torch.optim.LBFGS(head.parameters())
        best: dict[Metric, tuple[int, Scores, Labels]] = {}
        with full_float32(), torch.inference_mode(mode=False):
            for step in range(1, self.num_steps + 1):
                boundary()
                before = _memory(optimizer)
                optimizer.step(lambda: backward(head, optimizer, parts, penalty)[1])  # type: ignore[no-untyped-call]  # as torch leaves it
                ended = _is_same(before, _memory(optimizer)) or _is_lost(head)
                if ended or step % self.scored_every == 0:
                    predictions = _predict(head, test.features)
                    scores = score(predictions, test.labels, num_classes)
                    scored_at = -(-step // self.scored_every) * self.scored_every
                    for metric in _METRICS:
                        if metric not in best or scores.metric(metric).value > best[metric][1].metric(metric).value:
                            best[metric] = scored_at, scores, predictions
                if ended:
                    break
        finite = all(bool(torch.isfinite(parameter).all()) for parameter in head.parameters())
        return Run(penalty, best, scores, step, finite)

    def _warnings(self, runs: list[Run], top: Run) -> list[str]:
        found = ["step and λ were selected on the test set: the accuracy is optimistic"]
        lost = [f"{run.penalty:g}" for run in runs if not run.finite]
        if lost:
            found.append(f"L-BFGS without a line search diverged at λ = {', '.join(lost)}")
        if len(runs) > 1 and top in (runs[0], runs[-1]):
            found.append("the chosen λ is an end of the grid: the best may lie outside")
        return found


def segments(features_ND: torch.Tensor, labels_N: torch.Tensor, count: int) -> Segments:
    """Returns `count` contiguous parts of ⌊N / count⌋ rows each, the last with what is left over; of fewer rows, one part a row."""
    count = min(count, len(features_ND))
    size = len(features_ND) // count
    sizes = [size] * (count - 1) + [len(features_ND) - size * (count - 1)]
    return list(zip(torch.split(features_ND, sizes), torch.split(labels_N, sizes), strict=True))


def linear_head(num_features: int, num_classes: int, seed: int) -> torch.nn.Linear:
    """Returns torch's linear layer as it initialises itself on the CPU under `seed`; the process's generators are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return torch.nn.Linear(num_features, num_classes)


def backward(head: torch.nn.Linear, optimizer: torch.optim.Optimizer, parts: Segments, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Puts the gradient of Σ_s mean CE_s + λ ‖W‖ into the head's parameters; returns that value, and the part that L-BFGS is told.

    The latter is the last segment's cross-entropy with the penalty.
    """
    optimizer.zero_grad()
    total = head.weight.new_zeros(())
    for number, (features_BD, labels_B) in enumerate(parts, 1):
        loss = torch.nn.functional.cross_entropy(head(features_BD), labels_B)
        if number == len(parts):
            loss = loss + penalty * torch.linalg.vector_norm(head.weight)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        total += loss.detach()
    return total, loss


def _predict(head: torch.nn.Linear, features: Matrix) -> Labels:
    with torch.inference_mode():
        blocks = row_blocks(features, np.arange(len(features)), head.weight.device)
        return np.concatenate([head(block_BD).argmax(1).cpu().numpy() for block_BD in blocks]).astype(np.int64)


def _memory(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns all that the next outer step depends on: parameters, last direction and gradient, and the pairs of the history."""
    parameters = optimizer.param_groups[0]["params"]
    state = optimizer.state[parameters[0]]
    vectors = {name: state[name].clone() for name in ("d", "prev_flat_grad") if state.get(name) is not None}
    numbers = {name: float(state[name]) for name in ("t", "H_diag") if state.get(name) is not None}
    pairs = {name: list(state.get(name) or []) for name in ("old_dirs", "old_stps")}
    return {"parameters": torch.cat([parameter.detach().flatten() for parameter in parameters]), **vectors, **numbers, **pairs}


def _is_same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether two memories are equal bit by bit; pairs are never altered in place, so they are compared by identity."""
    if before.keys() != after.keys():
        return False
    for name, value in after.items():
        if isinstance(value, list):
            if len(value) != len(before[name]) or any(one is not other for one, other in zip(value, before[name], strict=True)):
                return False
        elif not (torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name]):
            return False
    return True


def _is_lost(head: torch.nn.Linear) -> bool:
    return all(bool(parameter.isnan().all()) for parameter in head.parameters())


def _variant(run: Run) -> dict[str, Any]:
    best: dict[str, Any] = {name: _shown(run.best[name][1].metric(name)) | {"step": run.best[name][0]} for name in _METRICS}
    return {**best, "last": {name: _shown(run.last.metric(name)) for name in _METRICS}, "steps": run.num_steps, "finite": run.finite}


def _shown(accuracy: Accuracy) -> dict[str, float]:
    return {"value": accuracy.value, "standard_error": accuracy.standard_error}

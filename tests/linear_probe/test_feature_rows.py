"""Rows that are streamed from disk against the same rows in memory, and the memory that either takes."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bamboo.linear_probe.solver.feature_rows import HeldRows, StreamedRows, open_rows
from bamboo.linear_probe.solver.path import sweep
from bamboo.linear_probe.solver.problem import Problem, open_problem

I64 = npt.NDArray[np.int64]

CPU = torch.device("cpu")
NUM_ROWS, NUM_FEATURES, NUM_CLASSES = 6000, 64, 5
ROW_BYTES = 4 * NUM_FEATURES


class Largest(TorchDispatchMode):
    """Records the bytes of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.num_bytes = max(self.num_bytes, tensor.numel() * tensor.element_size())
        return made


def stored(folder: Path, dtype: type[np.float16 | np.float32]) -> tuple[npt.NDArray[Any], I64, I64]:
    """Returns a memory map of features with a mean, their labels, and an order of 5,000 of the rows."""
    random = np.random.default_rng(0)
    labels = random.integers(0, NUM_CLASSES, NUM_ROWS)
    centres = random.normal(size=(NUM_CLASSES, NUM_FEATURES)) * 0.3
    features = centres[labels] + random.normal(size=(NUM_ROWS, NUM_FEATURES)) + 2.0
    np.save(folder / "features.npy", features.astype(dtype))
    return np.load(folder / "features.npy", mmap_mode="r"), labels, random.permutation(NUM_ROWS)[:5000]


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_streamed_rows_are_the_rows_in_memory(tmp_path: Path, dtype: type[np.float16 | np.float32]) -> None:
    """Blocks, means, parts and shifts of both sources against numpy's float32 rows in order."""
    features, _, order = stored(tmp_path, dtype)
    expected = torch.from_numpy(features[order].astype(np.float32))
    for memory, kind, num_blocks in ((10**9, HeldRows, 1), (4 * 300 * ROW_BYTES, StreamedRows, 17)):
        rows = open_rows(features, order, CPU, memory)
        assert isinstance(rows, kind)
        assert len(list(rows.blocks())) == num_blocks
        assert torch.equal(torch.cat([block for _, block in rows.blocks()]), expected)
        assert torch.equal(torch.cat([block for _, block in rows.part(100, 700).blocks()]), expected[100:700])
        mean = rows.mean()
        torch.testing.assert_close(mean, expected.double().mean(0).float(), rtol=1e-6, atol=0.0)
        shifted = rows.shifted(mean).part(4000, None)
        assert torch.equal(torch.cat([block for _, block in shifted.blocks()]), expected[4000:] - mean)
        twice = torch.cat([block for _, block in shifted.shifted(torch.ones(NUM_FEATURES)).blocks()])
        torch.testing.assert_close(twice, expected[4000:] - mean - 1.0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_streamed_probe_is_the_probe_in_memory(tmp_path: Path, dtype: type[np.float16 | np.float32]) -> None:
    """Sweep and certified fit with a tenth of the memory against all of it: same curve, predictions and loss; gap ≤ 1e-6 on both."""
    features, labels, order = stored(tmp_path, dtype)
    found = []
    for memory in (None, len(order) * ROW_BYTES // 10):
        problem = open_problem(features, labels, order, NUM_CLASSES, device=CPU, memory=memory)
        assert isinstance(problem.rows, HeldRows if memory is None else StreamedRows)
        expected = problem.validation(4000).labels_N1[:, 0]
        path = sweep(problem, 4000, [1.0, 0.1, 0.01, 1e-3], score_of(expected))
        fit = problem.fit(path.points[path.best].ridge, start=path.best_parameters_JE)
        assert fit.converged
        assert fit.certificate.relative_gap <= 1e-6
        found.append((path, fit, fit.classifier.logits(torch.from_numpy(features[order].astype(np.float32))).argmax(1)))
    (held, held_fit, held_classes), (streamed, streamed_fit, streamed_classes) = found
    assert torch.equal(held_classes, streamed_classes)
    assert held_fit.certificate.value == pytest.approx(streamed_fit.certificate.value, rel=1e-6)
    assert [point.val_score for point in held.points] == pytest.approx([point.val_score for point in streamed.points], abs=2e-3)
    assert [point.train_loss for point in held.points] == pytest.approx([point.train_loss for point in streamed.points], rel=1e-3)


def test_a_streamed_probe_stays_within_its_memory(tmp_path: Path) -> None:
    """The largest tensor and the peak of numpy's memory: the whole matrix in memory; streamed, the budget and half the matrix."""
    features, labels, order = stored(tmp_path, np.float32)
    whole = len(order) * ROW_BYTES
    budget = whole // 4

    def probe(memory: int | None) -> None:
        open_problem(features, labels, order, NUM_CLASSES, device=CPU, memory=memory).fit(1.0, max_iterations=4)

    assert peak(lambda: probe(None))[0] >= whole
    tensor_bytes, numpy_bytes = peak(lambda: probe(budget))
    assert tensor_bytes <= budget  # a block in float64, a float64 [K, N] array of the certificate
    assert numpy_bytes <= 2 * budget  # every object of Python's is counted too


def peak(work: Callable[[], None]) -> tuple[int, int]:
    """Returns the bytes of the largest tensor and numpy's peak."""
    tracemalloc.start()
    try:
        with Largest() as largest:
            work()
        return largest.num_bytes, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def score_of(expected: torch.Tensor) -> Callable[[torch.Tensor], float]:
    return lambda predictions: float((predictions == expected).double().mean())


def test_streamed_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """An infinity of float16 in a row that is streamed: a ValueError, as in memory."""
    features, labels, order = stored(tmp_path, np.float32)
    broken = np.array(features)
    broken[order[-1], 3] = np.inf
    with pytest.raises(ValueError, match="not all finite"):
        open_problem(broken, labels, order, NUM_CLASSES, device=CPU, memory=1)


def test_a_wide_streamed_problem_is_certified(tmp_path: Path) -> None:
    """Fewer rows than features, streamed: the optimum of `Problem` on the same rows in memory."""
    random = np.random.default_rng(1)
    features, labels = random.normal(size=(300, 500)).astype(np.float16), np.arange(300) % 3
    streamed = open_problem(features, labels, np.arange(300), 3, device=CPU, memory=1).fit(1e-3)
    held = Problem(torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels), 3).fit(1e-3)
    assert streamed.converged
    assert streamed.certificate.value == pytest.approx(held.certificate.value, rel=2e-6)

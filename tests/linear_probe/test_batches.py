"""Problems that are solved together against the same problems solved alone, and against scikit-learn."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from bamboo.linear_probe.solver.lbfgs import History, decrement_below, minimise, minimise_all
from bamboo.linear_probe.solver.objective import Points
from bamboo.linear_probe.solver.path import run_length, sweep
from bamboo.linear_probe.solver.problem import Problem

F64 = npt.NDArray[np.float64]
NUM_ROWS, NUM_FEATURES, NUM_CLASSES, NUM_FOLDS = 900, 20, 4, 5
RIDGES = [1.0, 0.1, 0.01, 1e-3, 1e-4]


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Returns float32 features with a mean and their labels: four overlapping classes of unequal size."""
    random = np.random.default_rng(0)
    labels = random.choice(NUM_CLASSES, NUM_ROWS, p=[0.5, 0.3, 0.15, 0.05])
    centres = random.normal(size=(NUM_CLASSES, NUM_FEATURES)) * 0.6
    features = (centres[labels] + random.normal(size=(NUM_ROWS, NUM_FEATURES)) + 1.0) * (1.0 + np.arange(NUM_FEATURES)) ** -0.5
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels)


def folds() -> torch.Tensor:
    """Returns bool[folds, N]: the rows that train in every fold."""
    return torch.arange(NUM_ROWS) % NUM_FOLDS != torch.arange(NUM_FOLDS)[:, None]


def optimum(features: torch.Tensor, labels: torch.Tensor, ridge: float) -> tuple[float, LogisticRegression, F64]:
    """Returns (F*, model, mean) of scikit-learn in float64 at tol 1e-10."""
    mean = features.double().mean(0).numpy()
    centred = features.double().numpy() - mean
    model = LogisticRegression(C=1.0 / (ridge * len(features)), tol=1e-10, max_iter=20_000).fit(centred, labels.numpy())
    logits = torch.from_numpy(model.decision_function(centred))
    loss = float(torch.nn.functional.cross_entropy(logits, labels))
    return loss + 0.5 * ridge * float((model.coef_**2).sum()), model, mean


def accuracy_on(expected: torch.Tensor) -> Callable[[torch.Tensor], float]:
    return lambda predictions: float((predictions == expected).double().mean())


def test_every_member_of_a_batch_is_scikit_learns_optimum() -> None:
    """Five values of λ in one batch against LogisticRegression (float64, tol 1e-10): gap ≤ 1e-6, ≥ 99.9 % of predictions equal."""
    features, labels = rows()
    fits = Problem(features.clone(), labels, NUM_CLASSES).fit_all(RIDGES)
    for ridge, fit in zip(RIDGES, fits, strict=True):
        best, model, mean = optimum(features, labels, ridge)
        assert fit.converged
        assert abs(fit.certificate.value / best - 1) <= 1e-6
        assert fit.certificate.lower_bound <= best * (1 + 1e-9)
        ours = fit.classifier.logits(features).argmax(1).numpy()
        assert (ours == model.predict(features.double().numpy() - mean)).mean() >= 0.999


def test_folds_in_a_batch_are_separate_solves() -> None:
    """Five folds as weights over one matrix against `Problem` on each fold's own rows, and against scikit-learn: gap ≤ 1e-6."""
    features, labels = rows()
    fits = Problem(features.clone(), labels, NUM_CLASSES).fit_all([0.01] * NUM_FOLDS, folds().float())
    for fold, fit in zip(folds(), fits, strict=True):
        alone = Problem(features[fold], labels[fold], NUM_CLASSES).fit(0.01)
        best, _, _ = optimum(features[fold], labels[fold], 0.01)
        assert fit.converged
        assert abs(fit.certificate.value / best - 1) <= 1e-6
        assert abs(fit.certificate.value / alone.certificate.value - 1) <= 2e-6
        assert fit.certificate.lower_bound <= best * (1 + 1e-9)
        assert torch.equal(fit.classifier.logits(features).argmax(1), alone.classifier.logits(features).argmax(1))


def test_weights_count_rows() -> None:
    """Weights of 0, 1 and 3 against rows left out and repeated: value, gradient and curvature of the objective, and its certified fit."""
    features, labels = rows()
    counts = torch.arange(NUM_ROWS) % 3
    weights = torch.where(counts == 2, 3, counts)
    problem = Problem(features.clone(), labels, NUM_CLASSES)
    weighted = problem.objective(weights_MN=weights[None].float()).at_precision(torch.float64)
    repeated = Problem((features - problem.mean_D).repeat_interleave(weights, 0), labels.repeat_interleave(weights), NUM_CLASSES)
    parameters = torch.randn(NUM_CLASSES, NUM_FEATURES + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    point = weighted.at(parameters)
    moved = parameters.clone()
    moved[:, -1] += moved[:, :-1] @ repeated.mean_D.double()  # the other problem has a mean of its own
    other = repeated.objective().at_precision(torch.float64).at(moved)
    assert point.loss == pytest.approx(other.loss, rel=1e-6)
    torch.testing.assert_close(point.loss_gradient_KE[:, -1], other.loss_gradient_KE[:, -1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(point.curvature_K, other.curvature_K, rtol=1e-5, atol=1e-7)
    fit, same = problem.fit_all([0.01], weights[None].float())[0], repeated.fit(0.01)
    assert fit.certificate.value == pytest.approx(same.certificate.value, rel=2e-6)


def test_members_leave_a_batch_as_they_would_end_alone() -> None:
    """A batch whose members end at different iterations against one descent each: same iterations (give or take one) and loss."""
    features, labels = rows()
    problem = Problem(features, labels, NUM_CLASSES)
    exact = problem.objective().at_precision(torch.float64)
    rule = decrement_below(1e-9, 0.0)
    together = minimise_all(exact, problem.gram, RIDGES, Points.of(exact.start(), len(RIDGES)), History(), rule)
    for ridge, descent in zip(RIDGES, together, strict=True):
        alone = minimise(exact, problem.gram, ridge, exact.start(), History(), rule)
        assert descent.converged
        assert abs(descent.iterations - alone.iterations) <= 1
        assert descent.point.value(ridge) == pytest.approx(alone.point.value(ridge), rel=1e-8)
        torch.testing.assert_close(descent.point.logits_NK, exact.forward(descent.point.parameters_KE), rtol=0.0, atol=1e-8)
    assert len({descent.iterations for descent in together}) > 1


def test_members_that_rounding_stops_leave_where_they_are() -> None:
    """A rule that is never met, in float32: every member ends unconverged, within 1e-6 of scikit-learn's optimum."""
    features, labels = rows()
    problem = Problem(features.clone(), labels, NUM_CLASSES)
    objective = problem.objective()
    points = Points.of(objective.start(), 3)
    for ridge, descent in zip(
        RIDGES, minimise_all(objective, problem.gram, RIDGES[:3], points, History(), lambda progress: False), strict=False
    ):
        assert not descent.converged
        assert descent.iterations < 1000
        assert descent.point.value(ridge) == pytest.approx(optimum(features, labels, ridge)[0], rel=1e-6)


def test_passes_are_counted_for_every_member() -> None:
    """Two passes an iteration for each member that runs, and two for the point they start from."""
    features, labels = rows()
    problem = Problem(features, labels, NUM_CLASSES)
    objective = problem.objective()
    points = Points.of(objective.start(), 3)
    descents = minimise_all(objective, problem.gram, RIDGES[:3], points, History(), decrement_below(1e-4, 0.0))
    assert objective.passes == 2 + 2 * sum(descent.iterations for descent in descents)


@pytest.mark.parametrize("spread", [0.6, 6.0])
def test_a_batched_path_is_the_path(spread: float) -> None:
    """`sweep(batch=True)` against `batch=False`, with and without interpolation: losses within 2 %, scores within 1.5 points, same end."""
    random = np.random.default_rng(3)
    labels = torch.from_numpy(random.integers(0, NUM_CLASSES, NUM_ROWS))
    centres = torch.from_numpy(random.normal(size=(NUM_CLASSES, NUM_FEATURES)) * spread)
    features = (centres[labels] + torch.from_numpy(random.normal(size=(NUM_ROWS, NUM_FEATURES)))).float()
    problem = Problem(features, labels, NUM_CLASSES)
    score = accuracy_on(problem.validation(700).labels_N1[:, 0])
    ridges = [problem.gram.mean_eigenvalue * 10.0 ** (1 - step / 4) for step in range(21)]
    batched, warm = (sweep(problem, 700, ridges, score, batch=together) for together in (True, False))
    assert abs(len(batched.points) - len(warm.points)) <= 1
    floor = 0.01 * np.log(NUM_CLASSES)
    for ours, theirs in zip(batched.points, warm.points, strict=False):
        assert ours.ridge == theirs.ridge
        assert ours.val_score == pytest.approx(theirs.val_score, abs=0.015)
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=0.02, abs=floor / 10)
    assert batched.points[batched.best].val_score == pytest.approx(warm.points[warm.best].val_score, abs=0.006)


def test_a_batched_path_does_not_overshoot_where_rows_are_interpolated() -> None:
    """Few rows of many features, to the weak end of the grid: scores and losses of `sweep(batch=True)` are the warm path's there too."""
    random = np.random.default_rng(4)
    labels = torch.from_numpy(np.arange(600) % 20)
    modes = torch.from_numpy(random.normal(size=(80, 150)))[4 * labels + torch.from_numpy(random.integers(0, 4, 600))]
    deviations = torch.from_numpy((1.0 + np.arange(150)) ** -0.5)
    features = ((0.5 * modes + torch.from_numpy(random.normal(size=(600, 150)))) * deviations).clamp(min=-0.1).float()
    problem = Problem(features, labels, 20)
    score = accuracy_on(problem.validation(480).labels_N1[:, 0])
    ridges = [problem.gram.mean_eigenvalue * 10.0 ** (2 - step / 4) for step in range(45)]
    batched, warm = (sweep(problem, 480, ridges, score, patience=45, batch=together) for together in (True, False))
    for ours, theirs in zip(batched.points[20:], warm.points[20:], strict=True):
        assert ours.val_score == pytest.approx(theirs.val_score, abs=0.02)
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=0.5)


def test_a_run_is_shorter_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most eight values, as many as half the free memory holds by the formula, and never fewer than one."""
    features, labels = rows()
    objective = Problem(features, labels, NUM_CLASSES).objective()
    each = 4 * 4 * NUM_ROWS * NUM_CLASSES + 160 * NUM_CLASSES * (NUM_FEATURES + 1)
    for free, expected in ((10**12, 8), (2 * 3 * each + 1, 3), (1, 1)):
        monkeypatch.setattr("bamboo.linear_probe.solver.path.free_bytes", lambda device, free=free: free)
        assert run_length(objective) == expected


def test_a_fold_without_a_class_is_refused() -> None:
    """A class whose only row is left out has no optimum; weights of another shape are refused as well."""
    features, labels = rows()
    problem = Problem(features, labels, NUM_CLASSES)
    with pytest.raises(ValueError, match="without rows"):
        problem.fit_all([0.1], (labels != 3).float()[None])
    with pytest.raises(ValueError, match="must be"):
        problem.fit_all([0.1, 0.2], torch.ones(1, NUM_ROWS))

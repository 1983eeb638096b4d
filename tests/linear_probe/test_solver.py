"""The solver against scikit-learn in float64 at tight tolerance, against autograd, and its certificate against the true gap."""

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from bamboo.linear_probe.solver.certificate import certify
from bamboo.linear_probe.solver.feature_rows import HeldRows
from bamboo.linear_probe.solver.gram import gram_of
from bamboo.linear_probe.solver.lbfgs import History, decrement_below, minimise
from bamboo.linear_probe.solver.objective import Objective
from bamboo.linear_probe.solver.path import sweep
from bamboo.linear_probe.solver.problem import Problem, fit

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Case:
    features: F32
    labels: I64
    num_classes: int
    penalty: float


def blobs(num_rows: int, num_features: int, num_classes: int, *, spread: float = 1.0, power: float = 0.5, seed: int = 0) -> tuple[F32, I64]:
    """Returns Gaussian classes under a power-law spectrum, randomly rotated."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(num_classes, num_features))
    labels = np.concatenate([np.arange(num_classes), random.integers(0, num_classes, num_rows - num_classes)])
    spectrum = (1.0 + np.arange(num_features)) ** -power
    rotation = np.linalg.qr(random.normal(size=(num_features, num_features)))[0]
    features = ((centres[labels] * spread + random.normal(size=(num_rows, num_features))) * spectrum) @ rotation
    return features.astype(np.float32), labels


def unbalanced() -> tuple[F32, I64]:
    features, labels = blobs(2000, 24, 5, spread=0.4, seed=3)
    random = np.random.default_rng(3)
    kept = random.random(2000) < np.array([1.0, 0.4, 0.1, 0.03, 0.01])[labels]
    kept[:5] = True
    return features[kept], labels[kept]


def one_absent() -> tuple[F32, I64]:
    features, labels = blobs(600, 20, 6, spread=0.5, seed=4)
    return features[labels != 2], labels[labels != 2]


def large_mean() -> tuple[F32, I64]:
    features, labels = blobs(1500, 40, 4, spread=0.3, power=2.0, seed=5)
    return (features + np.linspace(5, 60, 40)).astype(np.float32), labels


CASES = {
    "tall": Case(*blobs(3000, 32, 10, spread=0.5), num_classes=10, penalty=1.0),
    "wide": Case(*blobs(120, 300, 8, spread=0.3, seed=1), num_classes=8, penalty=0.5),
    "separable": Case(*blobs(400, 30, 5, spread=4.0, seed=2), num_classes=5, penalty=1e-2),
    "unbalanced": Case(*unbalanced(), num_classes=5, penalty=0.3),
    "class absent": Case(*one_absent(), num_classes=6, penalty=1.0),
    "ill-conditioned, large mean": Case(*large_mean(), num_classes=4, penalty=1e-2),
    "many classes": Case(*blobs(1200, 40, 100, spread=1.0, seed=6), num_classes=100, penalty=1.0),
    "400 classes": Case(*blobs(1600, 24, 400, spread=1.0, seed=9), num_classes=400, penalty=1.0),
}


def sklearn_optimum(case: Case) -> tuple[float, Any, npt.NDArray[np.float64]]:
    """Returns (F*, model, means) of scikit-learn on centred float64 features."""
    features = case.features.astype(np.float64)
    mean = features.mean(0)
    model = LogisticRegression(C=1.0 / case.penalty, tol=1e-10, max_iter=20_000, solver="lbfgs").fit(features - mean, case.labels)
    model.coef_ -= model.coef_.mean(0)  # the penalty's own choice among equal predictions
    return objective(case, model.coef_, model.intercept_, features - mean), model, mean


def objective(case: Case, weight: npt.NDArray[np.float64], bias: npt.NDArray[np.float64], centred: npt.NDArray[np.float64]) -> float:
    """Returns F in plain numpy, float64, over the classes that occur."""
    present = np.unique(case.labels)
    logits = centred @ weight.T + bias
    highest = logits.max(1, keepdims=True)
    partition = highest[:, 0] + np.log(np.exp(logits - highest).sum(1))
    loss = (partition - logits[np.arange(len(logits)), np.searchsorted(present, case.labels)]).mean()
    return float(loss + case.penalty / (2 * len(case.labels)) * (weight**2).sum())


@pytest.mark.parametrize("name", CASES)
def test_the_optimum_is_scikit_learns(name: str) -> None:
    """Loss and predictions against LogisticRegression (float64, tol 1e-10): gap ≤ 1e-6, ≥ 99.9 % of predictions equal."""
    case = CASES[name]
    best, model, mean = sklearn_optimum(case)
    solved = fit(torch.from_numpy(case.features), torch.from_numpy(case.labels), case.num_classes, case.penalty)
    found = solved.classifier
    present = np.unique(case.labels)
    weight, bias = (tensor.double().numpy()[present] for tensor in (found.weight_KD, found.bias_K))
    value = objective(case, weight, bias, case.features.astype(np.float64) - found.mean_D.double().numpy())
    assert value / best - 1 <= 1e-6
    assert abs(solved.certificate.value / value - 1) <= 1e-6
    assert solved.converged
    assert solved.certificate.lower_bound <= best * (1 + 1e-9)
    ours = found.logits(torch.from_numpy(case.features)).argmax(1).numpy()
    assert (ours == model.predict(case.features - mean)).mean() >= 0.999


def test_an_absent_class_is_never_predicted() -> None:
    """A class without training rows: zero weights, intercept −∞ (the limit of its unpenalised optimum), finite other logits."""
    case = CASES["class absent"]
    solved = fit(torch.from_numpy(case.features), torch.from_numpy(case.labels), 6, 1.0).classifier
    assert solved.bias_K[2] == -torch.inf
    assert not solved.weight_KD[2].any()
    assert 2 not in solved.logits(torch.from_numpy(case.features)).argmax(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_autograds(dtype: torch.dtype) -> None:
    """Point.value and Point.gradient against torch's cross_entropy and autograd in float64."""
    features, labels = (torch.from_numpy(array) for array in blobs(200, 12, 4))
    objective_ = Objective(features, labels, 4, dtype)
    parameters = torch.randn(4, 13, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    logits = features.double() @ parameters[:, :-1].T + parameters[:, -1]
    value = torch.nn.functional.cross_entropy(logits, labels) + 0.05 * parameters[:, :-1].square().sum()
    (gradient,) = torch.autograd.grad(value, parameters)
    point = objective_.at(parameters.detach())
    tolerance = 1e-6 if dtype == torch.float32 else 1e-13
    assert point.value(0.1) == pytest.approx(value.item(), rel=tolerance)
    torch.testing.assert_close(point.gradient(0.1), gradient, rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("name", ["tall", "wide", "separable", "unbalanced"])
@pytest.mark.parametrize("iterations", [0, 2, 8, 30])
def test_the_certificate_bounds_the_true_gap(name: str, iterations: int) -> None:
    """Relative gap against F / F* − 1 with scikit-learn's F*, at points from the start of a descent to its end; D ≤ F*."""
    case = CASES[name]
    problem = Problem(torch.from_numpy(case.features.copy()), torch.from_numpy(case.labels), case.num_classes)
    centred = torch.cat([block for _, block in problem.rows.blocks()])
    case = dataclasses.replace(case, features=centred.numpy())  # the certificate is of the rows as float32 centred them
    best, _, _ = sklearn_optimum(case)
    objective_, ridge = problem.objective(), case.penalty / len(case.labels)
    rule = decrement_below(0.0, 0.0)
    descent = minimise(objective_, problem.gram, ridge, objective_.start(), History(), rule, max_iterations=iterations)
    parameters, certificate = certify(objective_, ridge, descent.point.parameters_KE)
    weight, bias = parameters[:, :-1].numpy(), parameters[:, -1].numpy()
    assert certificate.value == pytest.approx(objective(case, weight, bias, centred.double().numpy()), rel=1e-12)
    assert certificate.relative_gap >= certificate.value / best - 1 - 1e-9
    assert certificate.lower_bound <= best * (1 + 1e-9)
    bound = certificate.gradient_norm**2 / (2 * ridge)
    assert certificate.value - certificate.lower_bound == pytest.approx(bound, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("shape", [(50, 8), (8, 50)])
def test_the_gram_matrix_is_numpys(shape: tuple[int, int]) -> None:
    """U diag(s) Uᵀ against numpy's XᵀX / N, tall and wide; mean eigenvalue = trace / D."""
    features = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    features -= features.mean(0)
    gram = gram_of(HeldRows(torch.from_numpy(features)))
    expected = features.astype(np.float64).T @ features / shape[0]
    vectors = gram.eigenvectors_DR.numpy()
    np.testing.assert_allclose(vectors * gram.eigenvalues_R.numpy() @ vectors.T, expected, atol=1e-6)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(vectors.shape[1]), atol=1e-6)
    assert gram.mean_eigenvalue == pytest.approx(np.trace(expected) / shape[1], rel=1e-6)


def test_the_path_agrees_with_cold_solves() -> None:
    """Every value of a warm path against its own certified optimum: F within 1 % (decrement 1e-4), validation within 1 point."""
    features, labels = blobs(1500, 24, 6, spread=0.5, seed=7)
    problem = Problem(torch.from_numpy(features), torch.from_numpy(labels), 6)
    validation = problem.validation(1200)
    expected = validation.labels_N1[:, 0]
    ridges = [10.0**power for power in (0, -1, -2, -3, -4)]
    path = sweep(problem, 1200, ridges, lambda predictions: float((predictions == expected).double().mean()))
    assert [point.ridge for point in path.points] == ridges
    assert path.points[path.best].val_score == max(point.val_score for point in path.points)
    train = problem.objective(1200)
    for point in path.points:
        cold = minimise(train, problem.gram, point.ridge, train.start(), History(), decrement_below(1e-7, 0.0)).point
        assert point.train_loss == pytest.approx(cold.loss, rel=0.01)
        alone = float((validation.forward(cold.parameters_KE).argmax(1) == expected).double().mean())
        assert point.val_score == pytest.approx(alone, abs=0.01)


def test_the_path_ends_once_the_rows_are_interpolated() -> None:
    """Widely separated classes over 12 decades: the path stops after `patience` values without improvement."""
    features, labels = blobs(300, 20, 3, spread=8.0, seed=8)
    problem = Problem(torch.from_numpy(features), torch.from_numpy(labels), 3)
    path = sweep(problem, 240, [10.0 ** (2 - step / 4) for step in range(45)], lambda predictions: 1.0, patience=6)
    assert path.points[-1].train_accuracy == 1.0
    assert len(path.points) < 45


@pytest.mark.parametrize(
    ("features", "labels", "said"),
    [
        (torch.zeros(3, 2, dtype=torch.float64), torch.tensor([0, 1, 0]), "must be float32"),
        (torch.zeros(3, 2), torch.tensor([0, 1]), "must be float32"),
        (torch.zeros(0, 2), torch.tensor([], dtype=torch.int64), "nothing to fit"),
        (torch.zeros(2, 2), torch.tensor([0, 2]), r"must be in \[0, 2\)"),
        (torch.zeros(2, 2), torch.tensor([-1, 1]), r"must be in \[0, 2\)"),
        (torch.tensor([[0.0, torch.nan], [1.0, 2.0]]), torch.tensor([0, 1]), "not all finite"),
    ],
)
def test_wrong_input_is_refused(features: torch.Tensor, labels: torch.Tensor, said: str) -> None:
    """Types, lengths, ranges and NaN: a ValueError that says which."""
    with pytest.raises(ValueError, match=said):
        Problem(features, labels, 2)


def test_no_penalty_is_refused() -> None:
    """ridge = 0 has no optimum on separable rows."""
    problem = Problem(torch.eye(3), torch.tensor([0, 1, 1]), 2)
    with pytest.raises(ValueError, match="must be above 0"):
        problem.fit(0.0)

"""`bamboo-2022`: its objective against numpy by hand, and its numbers against the benchmark's loop stated anew without shortcuts."""

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch

from bamboo.linear_probe.protocols.bamboo_2022 import backward, linear_head, segments
from bamboo.linear_probe.protocols.outcome import Rows
from bamboo.linear_probe.protocols.registry import BAMBOO_2022
from tests.linear_probe.clouds import sides

Array = npt.NDArray[np.float64]

SHORT = dataclasses.replace(BAMBOO_2022, penalties=(1e-5, 1e-2, 1.0, 10.0), num_steps=30, scored_every=10)


def by_hand(weight_KD: Array, bias_K: Array, features_ND: Array, labels_N: Array, penalty: float) -> tuple[float, float, Array, Array]:
    """Returns value, told loss and gradients of Σ_s mean_{i∈s} −log softmax(W x_i + b)_{y_i} + λ ‖W‖ over ten segments.

    d/dW = Σ_s Xₛᵀ-weighted mean of (p_i − e_{y_i}), transposed, plus λ W / ‖W‖;  d/db = Σ_s mean of (p_i − e_{y_i}).
    """
    size = len(features_ND) // 10
    edges = [*range(0, 10 * size, size), len(features_ND)]
    norm = float(np.sqrt((weight_KD**2).sum()))
    value, weight_gradient_KD, bias_gradient_K = penalty * norm, penalty * weight_KD / norm, np.zeros_like(bias_K)
    mean = 0.0
    for first, last in itertools.pairwise(edges):
        features_BD, labels_B = features_ND[first:last], labels_N[first:last].astype(int)
        powers_BK = np.exp(features_BD @ weight_KD.T + bias_K)
        shares_BK = powers_BK / powers_BK.sum(1, keepdims=True)
        mean = float(-np.log(shares_BK[np.arange(len(labels_B)), labels_B]).mean())
        residual_BK = shares_BK - np.eye(len(bias_K))[labels_B]
        weight_gradient_KD = weight_gradient_KD + residual_BK.T @ features_BD / len(labels_B)
        bias_gradient_K = bias_gradient_K + residual_BK.mean(0)
        value += mean
    return value, mean + penalty * norm, weight_gradient_KD, bias_gradient_K


@pytest.mark.parametrize(("num_rows", "penalty"), [(40, 0.0), (47, 0.3), (59, 10.0)])
def test_value_and_gradient_by_hand(num_rows: int, penalty: float) -> None:
    """In float64: value, what L-BFGS is told, and both gradients to 12 digits; 47 and 59 rows leave a longer last segment."""
    random = np.random.default_rng(0)
    features_ND, labels_N = random.normal(size=(num_rows, 6)), random.integers(0, 4, num_rows)
    head = linear_head(6, 4, 0).double()
    optimizer = torch.optim.LBFGS(head.parameters())
    parts = segments(torch.from_numpy(features_ND), torch.from_numpy(labels_N), 10)
    assert [len(labels) for _, labels in parts] == [num_rows // 10] * 9 + [num_rows - 9 * (num_rows // 10)]
    found = backward(head, optimizer, parts, penalty)
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    value, told, weight_gradient, bias_gradient = by_hand(weight, bias, features_ND, labels_N.astype(float), penalty)
    assert float(found[0]) == pytest.approx(value, rel=1e-12)
    assert float(found[1].detach()) == pytest.approx(told, rel=1e-12)
    assert head.weight.grad is not None
    assert head.bias.grad is not None
    np.testing.assert_allclose(head.weight.grad.numpy(), weight_gradient, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(head.bias.grad.numpy(), bias_gradient, rtol=1e-12, atol=1e-14)


def test_the_head_starts_as_torchs_does() -> None:
    """Against torch.nn.Linear after manual_seed(0): equal bits; the process's own generator is left alone."""
    torch.manual_seed(0)
    expected = torch.nn.Linear(6, 4)
    before = torch.get_rng_state()
    found = linear_head(6, 4, 0)
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(found.bias, expected.bias)
    assert torch.equal(torch.get_rng_state(), before)


def original_loop(train: Rows, test: Rows, num_classes: int, penalty: float, num_steps: int, scored_every: int) -> tuple[float, float]:
    """Returns the highest top-1 and the highest mean per-class accuracy on the test set, with every step carried out."""
    torch.manual_seed(0)
    net = torch.nn.Linear(train.features.shape[1], num_classes)
    optimizer = torch.optim.LBFGS(net.parameters())
    features, labels = torch.from_numpy(train.features.astype(np.float32)), torch.from_numpy(train.labels)
    size, most_right, most_even = len(labels) // 10, 0.0, 0.0
    cuts = [(number * size, (number + 1) * size if number < 9 else len(labels)) for number in range(10)]

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        for number, (first, last) in enumerate(cuts):
            loss = torch.nn.functional.cross_entropy(net(features[first:last]), labels[first:last])
            if number == 9:
                loss = loss + penalty * torch.norm(net.weight)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return loss

    for step in range(1, num_steps + 1):
        optimizer.step(closure)
        if step % scored_every == 0:
            with torch.no_grad():
                right = net(torch.from_numpy(test.features.astype(np.float32))).argmax(1).numpy() == test.labels
            most_right = max(most_right, float(right.mean()))
            most_even = max(most_even, float(np.mean([right[test.labels == label].mean() for label in range(num_classes)])))
    return most_right, most_even


def test_the_maxima_are_those_of_the_original_loop() -> None:
    """For every λ both maxima over 30 outer steps, scored every 10: equal to the loop's; some runs end early, one λ is lost."""
    train, test = sides(60, 150)
    outcome = SHORT.evaluate(train, test, 5, "mean_per_class")
    assert outcome.curve is not None
    for penalty, variant in zip(SHORT.penalties, outcome.variants.values(), strict=True):
        top1, mean = original_loop(train, test, 5, penalty, SHORT.num_steps, SHORT.scored_every)
        assert (variant["top1"]["value"], variant["mean_per_class"]["value"]) == (top1, pytest.approx(mean, abs=1e-12)), penalty
    steps = [variant["steps"] for variant in outcome.variants.values()]
    assert min(steps) < SHORT.num_steps
    assert [variant["finite"] for variant in outcome.variants.values()].count(False) == 1
    assert "L-BFGS without a line search diverged at λ = 10" in outcome.warnings
    assert any(variant["top1"]["value"] > variant["last"]["top1"]["value"] for variant in outcome.variants.values())
    assert outcome.scores.top1.value == max(variant["top1"]["value"] for variant in outcome.variants.values())
    assert outcome.scores.mean_per_class.value == max(variant["mean_per_class"]["value"] for variant in outcome.variants.values())
    assert outcome.chosen["penalty"] == SHORT.penalties[outcome.curve.chosen]
    per_class = [(outcome.predictions == test.labels)[test.labels == label].mean() for label in range(5)]
    assert np.mean(per_class) == pytest.approx(outcome.scores.mean_per_class.value)


def test_what_it_says_of_itself() -> None:
    """Selected on test, nothing held out, nothing certified, and the first warning says so; official validation rows train too."""
    train, test = sides(100, 50)
    outcome = dataclasses.replace(SHORT, penalties=(1e-3, 1.0)).evaluate(train, test, 5, "top1", validation_rows=np.arange(20))
    assert SHORT.selected_on == "test"
    assert (outcome.split, outcome.num_val, outcome.num_train, outcome.certificate) == (None, 0, 100, {})
    assert outcome.warnings[0] == "step and λ were selected on the test set: the accuracy is optimistic"


def test_one_row_per_class() -> None:
    """Five rows: fewer segments than ten, a number nevertheless."""
    train, test = sides(5, 50)
    outcome = SHORT.evaluate(Rows(train.features, np.arange(5)), test, 5, "top1")
    assert 0.0 < outcome.scores.top1.value < 1.0

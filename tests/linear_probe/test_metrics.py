"""Accuracies and their errors against numbers worked by hand and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from bamboo.linear_probe.metrics import score, wilson


def test_a_small_table_worked_by_hand() -> None:
    """Classes of 4 (3 right) and 2 (1 right), two rows without a label: top-1 4/6, mean (0.75 + 0.5)/2, errors from the formulas."""
    labels = np.array([0, 0, 0, 0, 1, 1, -1, -1])
    predictions = np.array([0, 0, 0, 1, 1, 0, 0, 1])
    found = score(predictions, labels, 3)
    assert found.top1.value == pytest.approx(4 / 6)
    assert found.top1.standard_error == pytest.approx((4 / 6 * 2 / 6 / 6) ** 0.5)
    assert found.mean_per_class.value == pytest.approx(0.625)
    assert found.mean_per_class.standard_error == pytest.approx(0.5 * (0.75 * 0.25 / 4 + 0.25 / 2) ** 0.5)
    assert found.per_class_K[:2].tolist() == [0.75, 0.5]
    assert np.isnan(found.per_class_K[2])
    assert found.counts_K.tolist() == [4, 2, 0]
    assert found.metric("mean_per_class") is found.mean_per_class


def test_against_scikit_learn() -> None:
    """top-1 and mean per class of random predictions against accuracy_score and balanced_accuracy_score."""
    random = np.random.default_rng(0)
    labels, predictions = random.integers(0, 7, 500), random.integers(0, 7, 500)
    found = score(predictions, labels, 7)
    assert found.top1.value == pytest.approx(accuracy_score(labels, predictions), abs=1e-12)
    assert found.mean_per_class.value == pytest.approx(balanced_accuracy_score(labels, predictions), abs=1e-12)


@pytest.mark.parametrize(("hits", "count", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (8, 10, 0.4902, 0.9433)])
def test_wilsons_interval(hits: int, count: int, low: float, high: float) -> None:
    """95 % intervals against the values tabulated for n = 10 (Wilson 1927; Agresti and Coull 1998)."""
    assert wilson(hits, count) == pytest.approx((low, high), abs=1e-4)


def test_nothing_to_score_is_an_error() -> None:
    """No label at all, unequal lengths, a label beyond the classes."""
    with pytest.raises(ValueError, match="no row has a label"):
        score(np.array([0]), np.array([-1]), 2)
    with pytest.raises(ValueError, match="one length"):
        score(np.array([0]), np.array([0, 1]), 2)
    with pytest.raises(ValueError, match="below num_classes"):
        score(np.array([0]), np.array([2]), 2)

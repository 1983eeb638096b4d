"""The protocol `standard` from features to outcome, against scikit-learn at the chosen λ and against its own rules."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bamboo.cli.errors import UserError
from bamboo.linear_probe.protocol import STANDARD, Outcome, Rows, evaluate


def sides(num_train: int = 600, num_test: int = 300, *, spread: float = 0.35, seed: int = 0) -> tuple[Rows, Rows]:
    random = np.random.default_rng(seed)
    centres = random.normal(size=(5, 16)) * spread
    labels = random.integers(0, 5, num_train + num_test)
    features = (centres[labels] + random.normal(size=(len(labels), 16)) + 3.0).astype(np.float16)
    return Rows(features[:num_train], labels[:num_train]), Rows(features[num_train:], labels[num_train:])


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    return evaluate(STANDARD, *sides(), 5, "top1")


def test_the_refit_is_scikit_learns_at_the_chosen_penalty(outcome: Outcome) -> None:
    """Test predictions against LogisticRegression (float64, tol 1e-10) on all training rows with C = 1/λ: all equal."""
    train, test = sides()
    mean = train.features.astype(np.float64).mean(0)
    model = LogisticRegression(C=1 / outcome.penalty, tol=1e-10, max_iter=10_000).fit(train.features - mean, train.labels)
    assert (model.predict(test.features - mean) == outcome.predictions).all()
    assert outcome.scores.top1.value == pytest.approx(model.score(test.features - mean, test.labels))


def test_what_is_reported_follows_the_rules(outcome: Outcome) -> None:
    """λ is the best of the validation curve, λ/n is kept in the refit, the gap is certified, the plateau holds the chosen value."""
    points = outcome.path.points
    assert points[outcome.path.best].val_score == max(point.val_score for point in points)
    assert outcome.fit.ridge == points[outcome.path.best].ridge
    assert outcome.penalty == pytest.approx(outcome.fit.ridge * 600)
    assert outcome.fit.certificate.relative_gap <= STANDARD.final_gap
    assert outcome.fit.converged
    assert outcome.plateau.num_values >= 1
    assert outcome.plateau.decades == pytest.approx((outcome.plateau.num_values - 1) / 4)
    assert len(outcome.split.val) == 120
    assert set(outcome.seconds) == {"prepare", "sweep", "refit", "test"}
    assert [round(np.log10(entry["relative_ridge"]), 6) for entry in outcome.curve] == [2 - step / 4 for step in range(len(points))]


def test_unlabelled_rows_change_nothing(outcome: Outcome) -> None:
    """Rows of label −1 appended to train and test: the same scores and the same λ."""
    train, test = sides()
    noise = np.random.default_rng(1).normal(size=(40, 16)).astype(np.float16) * 100
    padded = [Rows(np.concatenate([side.features, noise]), np.concatenate([side.labels, np.full(40, -1)])) for side in (train, test)]
    again = evaluate(STANDARD, *padded, 5, "top1")
    assert again.scores.top1 == outcome.scores.top1
    assert again.fit.ridge == pytest.approx(outcome.fit.ridge, rel=1e-6)
    assert (len(again.predictions), again.num_test, again.num_train) == (340, 300, 600)


def test_the_edge_of_the_grid_is_flagged(outcome: Outcome) -> None:
    """The grid cut off at the value that the whole grid chooses: "weak"; a grid of one value: "strong"; the whole grid: none."""
    assert 0 < outcome.path.best < 44
    assert outcome.plateau.at_edge is None
    cut = dataclasses.replace(STANDARD, grid=STANDARD.grid[: outcome.path.best + 1])
    assert evaluate(cut, *sides(), 5, "top1").plateau.at_edge == "weak"
    one = dataclasses.replace(STANDARD, grid=(1.0,))
    assert evaluate(one, *sides(), 5, "mean_per_class").plateau.at_edge == "strong"


def test_the_digest_covers_every_field() -> None:
    """A protocol with one field changed has another digest."""
    assert dataclasses.replace(STANDARD, final_gap=1e-5).digest != STANDARD.digest


def test_what_cannot_be_probed_is_the_users_mistake() -> None:
    """No label in test, one row per class in train, features that are all equal: UserError with the reason."""
    train, test = sides()
    with pytest.raises(UserError, match="none of its rows has a label"):
        evaluate(STANDARD, train, Rows(test.features, np.full(300, -1)), 5, "top1")
    with pytest.raises(UserError, match="no class has two rows"):
        evaluate(STANDARD, Rows(train.features[:5], np.arange(5)), test, 5, "top1")
    with pytest.raises(UserError, match="all equal"):
        evaluate(STANDARD, Rows(np.ones((600, 16), np.float32), train.labels), test, 5, "top1")

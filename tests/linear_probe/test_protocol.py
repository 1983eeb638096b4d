"""The protocols `standard` and `clip` from features to outcome, against scikit-learn at the chosen λ and against their own rules."""

import dataclasses

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from bamboo.cli.errors import UserError
from bamboo.linear_probe.protocols.outcome import Outcome, Rows
from bamboo.linear_probe.protocols.registry import CLIP, PROTOCOLS, STANDARD, describe_protocol
from tests.linear_probe.clouds import sides


@pytest.fixture(scope="module", params=["standard", "clip"])
def outcome(request: pytest.FixtureRequest) -> Outcome:
    return PROTOCOLS[request.param].evaluate(*sides(), 5, "top1")


@pytest.fixture(scope="module")
def standard() -> Outcome:
    return STANDARD.evaluate(*sides(), 5, "top1")


def best(outcome: Outcome) -> float:
    assert outcome.curve is not None
    return outcome.curve.points[outcome.curve.chosen].x


def test_the_refit_is_scikit_learns_at_the_chosen_penalty(outcome: Outcome) -> None:
    """Against LogisticRegression (float64, tol 1e-10) on all training rows with C = 1/λ: equal where its best two are 10⁻³ apart."""
    train, test = sides()
    mean = train.features.astype(np.float64).mean(0)
    model = LogisticRegression(C=1 / outcome.chosen["penalty"], tol=1e-10, max_iter=10_000).fit(train.features - mean, train.labels)
    ranked = np.sort(model.predict_log_proba(test.features - mean))
    clear = ranked[:, -1] - ranked[:, -2] > 1e-3
    assert clear.mean() > 0.99
    assert (model.predict(test.features - mean) == outcome.predictions)[clear].all()
    assert outcome.scores.top1.value == pytest.approx((outcome.predictions == test.labels).mean())


def test_what_is_reported_follows_the_rules(outcome: Outcome) -> None:
    """The chosen λ is the best of the validation curve, the gap is certified, 20 % of the rows were held out, no warning."""
    assert outcome.curve is not None
    scores = [point.val_score for point in outcome.curve.points]
    assert scores[outcome.curve.chosen] == max(scores)
    assert outcome.certificate["relative_gap"] <= 1e-6
    assert outcome.details["converged"]
    assert outcome.warnings == []
    assert (outcome.num_train, outcome.num_val, outcome.num_test) == (600, 120, 300)
    assert set(outcome.seconds) == {"prepare", "sweep", "refit", "test"}
    assert outcome.details["plateau"]["num_values"] >= 1


def test_what_the_refit_keeps(standard: Outcome) -> None:
    """`standard`: λ/n, on a grid of four a decade; `clip`: λ itself, one of 97 from 10⁶ to 10⁻⁶."""
    assert standard.curve is not None
    assert [round(np.log10(point.x), 6) for point in standard.curve.points] == [2 - step / 4 for step in range(len(standard.curve.points))]
    assert standard.chosen["relative_ridge"] == pytest.approx(best(standard))
    assert standard.details["plateau"]["decades"] == pytest.approx((standard.details["plateau"]["num_values"] - 1) / 4)
    clip = CLIP.evaluate(*sides(), 5, "top1")
    assert clip.chosen["penalty"] == pytest.approx(best(clip))
    eighths = 8 * np.log10(clip.chosen["penalty"])
    assert eighths == pytest.approx(round(eighths), abs=1e-6)


def test_unlabelled_rows_change_nothing(standard: Outcome) -> None:
    """Rows of label −1 appended to train and test: the same scores and the same λ."""
    train, test = sides()
    noise = np.random.default_rng(1).normal(size=(40, 16)).astype(np.float16) * 100
    padded = [Rows(np.concatenate([side.features, noise]), np.concatenate([side.labels, np.full(40, -1)])) for side in (train, test)]
    again = STANDARD.evaluate(*padded, 5, "top1")
    assert again.scores.top1 == standard.scores.top1
    assert again.chosen["penalty"] == pytest.approx(standard.chosen["penalty"], rel=1e-6)
    assert (len(again.predictions), again.num_test, again.num_train) == (340, 300, 600)


def test_the_edge_of_the_grid_is_flagged(standard: Outcome) -> None:
    """The grid cut off at the value that the whole grid chooses: "weak"; a grid of one value: "strong"; both as warnings."""
    assert standard.curve is not None
    assert 0 < standard.curve.chosen < 44
    assert standard.details["plateau"]["at_edge"] is None
    cut = dataclasses.replace(STANDARD, grid=STANDARD.grid[: standard.curve.chosen + 1]).evaluate(*sides(), 5, "top1")
    assert cut.warnings == ["the chosen λ is the weakest of the grid: the best may lie outside"]
    one = dataclasses.replace(STANDARD, grid=(1.0,)).evaluate(*sides(), 5, "mean_per_class")
    assert one.warnings == ["the chosen λ is the strongest of the grid: the best may lie outside"]
    ended = dataclasses.replace(CLIP, weakest=1e4).evaluate(*sides(), 5, "top1")
    assert ended.warnings == ["the chosen λ is the weakest of the grid: the best may lie outside"]


def test_a_gap_that_is_not_reached_is_said() -> None:
    """A refit asked for a gap below 0, which none has: a warning with what is certified."""
    outcome = dataclasses.replace(STANDARD, final_gap=-1.0).evaluate(*sides(), 5, "top1")
    assert any("is certified to" in warning for warning in outcome.warnings)


@pytest.mark.parametrize("name", ["standard", "clip", "knn"])
def test_the_official_validation_rows_are_used(name: str) -> None:
    """Rows 0 … 99 named as the official part: they are the split's validation side; a class that would validate only is refused."""
    outcome = PROTOCOLS[name].evaluate(*sides(), 5, "top1", validation_rows=np.arange(100))
    assert outcome.split is not None
    assert outcome.split.val.tolist() == list(range(100))
    assert outcome.num_val == 100
    train, test = sides()
    with pytest.raises(UserError, match=r"classes \[3\] have validation rows only"):
        PROTOCOLS[name].evaluate(train, test, 5, "top1", validation_rows=np.flatnonzero(train.labels == 3))


def test_the_digest_covers_every_field() -> None:
    """A protocol with one field changed has another digest; the one of `standard` is recorded in rows: a change is a breaking change.

    `clip` has changed its numbers once.
    """
    for protocol in PROTOCOLS.values():
        digests = {protocol.digest}
        for field in dataclasses.fields(protocol):
            value = getattr(protocol, field.name)
            other = value + "x" if isinstance(value, str) else (*value, 7.0) if isinstance(value, tuple) else value * 2
            digests.add(dataclasses.replace(protocol, **{field.name: other}).digest)
        assert len(digests) == 1 + len(dataclasses.fields(protocol))
    assert STANDARD.digest.startswith("d3673eca694b")
    assert {name: protocol.revision for name, protocol in PROTOCOLS.items() if protocol.revision > 1} == {"clip": 2}


def test_what_cannot_be_probed_is_the_users_mistake() -> None:
    """No label in test or train, one row per class in train, features that are all equal, an unknown name: UserError with the reason."""
    train, test = sides()
    with pytest.raises(UserError, match="none of its rows has a label"):
        STANDARD.evaluate(train, Rows(test.features, np.full(300, -1)), 5, "top1")
    with pytest.raises(UserError, match="training set cannot be probed: none of its rows has a label"):
        STANDARD.evaluate(Rows(train.features, np.full(600, -1)), test, 5, "top1")
    with pytest.raises(UserError, match="all equal"):
        STANDARD.evaluate(Rows(np.ones((600, 16), np.float32), train.labels), test, 5, "top1")
    with pytest.raises(UserError, match="did you mean 'bamboo-2022'"):
        describe_protocol("bamboo-2021")


def test_one_row_per_class_says_which_protocols_need_two() -> None:
    """Five rows of five classes: every protocol that selects on validation refuses, and names all of them; the other one works."""
    train, test = sides()
    few = Rows(train.features[:5], np.arange(5))
    selecting = [name for name, protocol in PROTOCOLS.items() if protocol.selected_on == "validation"]
    for name in selecting:
        with pytest.raises(UserError, match="no class has two rows") as caught:
            PROTOCOLS[name].evaluate(few, test, 5, "top1")
        assert all(other in str(caught.value) for other in PROTOCOLS)
    assert set(PROTOCOLS) - set(selecting) == {"bamboo-2022"}

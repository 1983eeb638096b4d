"""`knn` against a brute-force vote in numpy, with and without ties, in blocks of any size."""

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import torch

import bamboo.linear_probe.protocols.neighbours as neighbours_module
from bamboo.linear_probe.protocols.outcome import Rows
from bamboo.linear_probe.protocols.registry import KNN
from tests.linear_probe.clouds import sides

CPU = torch.device("cpu")


def brute_force(keys: Rows, key_rows: npt.NDArray[np.int64], queries: npt.NDArray[np.float64], k: int, num_classes: int) -> list[int]:
    """Returns the vote for every query: sort all keys by falling cosine, then by row; add up exp(cosine / 0.07) of the first k."""
    known = keys.features[key_rows].astype(np.float64)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    found = []
    for query in queries:
        cosines = known @ (query / np.linalg.norm(query))
        order = sorted(range(len(known)), key=lambda row: (-cosines[row], row))[:k]
        votes = np.zeros(num_classes)
        for row in order:
            votes[keys.labels[key_rows[row]]] += np.exp(cosines[row] / 0.07)
        found.append(int(np.argmax(votes)))
    return found


@pytest.mark.parametrize(("query_rows", "key_rows"), [(1024, 16384), (7, 40)])
def test_votes_against_brute_force(query_rows: int, key_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """300 keys, 60 queries, every k: the same classes, in one block and in many; 200 and 300 neighbours of 150 keys are all of them."""
    monkeypatch.setattr(neighbours_module, "_QUERY_ROWS", query_rows)
    monkeypatch.setattr(neighbours_module, "_KEY_ROWS", key_rows)
    train, test = sides(300, 60)
    for rows in (np.arange(300), np.arange(0, 300, 2)):
        found = KNN.vote(train, rows, test.features, np.arange(60), 5, CPU)
        for k, votes in zip(KNN.neighbours, found, strict=True):
            assert votes.tolist() == brute_force(train, rows, test.features.astype(np.float64), k, 5), k


@pytest.mark.parametrize("key_rows", [5, 16, 100])
def test_ties_go_to_the_lower_row_then_to_the_lower_class(key_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors of ±1 in four dimensions, whose cosines are exact quarters: many equal ones at every k, against the same brute force."""
    monkeypatch.setattr(neighbours_module, "_KEY_ROWS", key_rows)
    random = np.random.default_rng(0)
    keys = Rows(random.choice([-1.0, 1.0], size=(80, 4)).astype(np.float32), random.integers(0, 6, 80))
    queries = random.choice([-1.0, 1.0], size=(30, 4)).astype(np.float32)
    protocol = dataclasses.replace(KNN, neighbours=(1, 2, 3, 8, 20))
    found = protocol.vote(keys, np.arange(80), queries, np.arange(30), 6, CPU)
    for k, votes in zip(protocol.neighbours, found, strict=True):
        assert votes.tolist() == brute_force(keys, np.arange(80), queries.astype(np.float64), k, 6), k


def test_k_is_chosen_on_validation_rows() -> None:
    """The chosen k has the highest accuracy with the rest as keys (brute force); its test number and the others' use all rows."""
    train, test = sides(300, 60)
    outcome = KNN.evaluate(train, test, 5, "top1")
    assert outcome.split is not None
    assert outcome.curve is not None
    held = train.features[outcome.split.val].astype(np.float64)
    expected = [np.mean(brute_force(train, outcome.split.train, held, k, 5) == train.labels[outcome.split.val]) for k in KNN.neighbours]
    assert [point.val_score for point in outcome.curve.points] == pytest.approx(expected)
    assert outcome.chosen["k"] == KNN.neighbours[int(np.argmax(expected))]
    for k in KNN.neighbours:
        right = np.mean(brute_force(train, np.arange(300), test.features.astype(np.float64), k, 5) == test.labels)
        assert outcome.variants[f"k={k}"]["top1"]["value"] == pytest.approx(right)
    assert outcome.scores.top1.value == outcome.variants[f"k={outcome.chosen['k']:.0f}"]["top1"]["value"]
    assert outcome.warnings == []


def test_a_k_above_the_keys_is_said() -> None:
    """60 training rows, 48 of them keys: k = 100 and 200 are capped, in words."""
    outcome = KNN.evaluate(*sides(60, 30), 5, "top1")
    assert outcome.warnings == ["k = 100, 200 exceeds the keys there are: capped at 48 to choose and at 60 to test"]
    assert outcome.variants["k=100"]["top1"] == outcome.variants["k=200"]["top1"]

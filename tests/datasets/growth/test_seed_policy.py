"""kind=seed against InfoGrowth's own sampler (arXiv 2405.18347), transcribed here from its description.

Gains are two numbers a sample, of image and text; the mean of the two is divided by its 99 % quantile over the list and cut off at 1; odd
passes keep a sample where a uniform draw is below that, even passes where one is below max(0.1, 1 - it).
"""

import numpy as np
import numpy.typing as npt
import pytest

from bamboo.datasets.growth.columns import Columns, Decision
from bamboo.datasets.growth.policy import Compiled, PolicyColumns, chosen_gain, compile_policy, keep_decisions
from bamboo.datasets.growth.policy_settings import PolicySettings

Floats = npt.NDArray[np.float64]

N = 20_000
ROUNDING = 2.0**-24 + 2.0**-24 + 2.0**-25
"""Of the mean gain, of the quantile and of p to float32: 1.5e-7."""


def normalised(gains: list[tuple[str, str]]) -> Floats:
    """Returns the seed's ĝ; its list has gains as text."""
    means = np.array([(float(image) + float(text)) / 2 for image, text in gains])
    upper = np.quantile(means, 0.99)
    return np.array([min(1.0, mean / upper) for mean in means])


def kept(hat: Floats, uniforms: Floats, odd_pass: bool) -> list[bool]:
    """Returns the seed's decisions in one pass."""
    return [bool(u < (g if odd_pass else max(0.1, 1 - g))) for g, u in zip(hat, uniforms, strict=True)]


@pytest.fixture(scope="module")
def columns() -> Columns:
    """Gains and decisions, some of them duplicates and dropped; what the seed never looks at is spoilt."""
    rng = np.random.default_rng(0)
    gains = {name: rng.gamma(3, 0.08, N).astype(np.float32) for name in ("image_gain", "text_gain")}
    decision = rng.choice(np.array([0, 1, 2, 3], np.uint8), N, p=[0.8, 0.05, 0.1, 0.05])
    return {**gains, "decision": decision, "corrected": np.full(N, np.nan, np.float32)}


@pytest.fixture(scope="module")
def compiled(columns: Columns) -> Compiled:
    settings = PolicySettings(kind="seed")
    return compile_policy(PolicyColumns(chosen_gain(columns, settings), columns["decision"]), settings)


@pytest.fixture(scope="module")
def listed(columns: Columns) -> npt.NDArray[np.bool_]:
    """The seed lists all samples but the dropped ones: it knows no duplicates."""
    return np.asarray(columns["decision"] != Decision.DROP)


@pytest.fixture(scope="module")
def hat(columns: Columns, listed: npt.NDArray[np.bool_]) -> Floats:
    pairs = zip(columns["image_gain"][listed], columns["text_gain"][listed], strict=True)
    return normalised([(str(image), str(text)) for image, text in pairs])


def test_the_normalised_gain_is_the_seeds(compiled: Compiled, listed: npt.NDArray[np.bool_], hat: Floats) -> None:
    """ĝ to the rounding of float32 columns; dropped samples 0 in both phases, which are drawn independently."""
    assert np.abs(compiled.probabilities[listed] - hat).max() <= ROUNDING
    assert compiled.second is not None
    assert np.abs(compiled.second[listed] - np.maximum(0.1, 1 - hat)).max() <= ROUNDING + 2.0**-25
    assert not compiled.probabilities[~listed].any()
    assert not compiled.second[~listed].any()
    assert not compiled.coupled


def test_the_decisions_are_the_seeds(compiled: Compiled, listed: npt.NDArray[np.bool_], hat: Floats) -> None:
    """The same 20,000 samples kept and left, for the same uniforms, in an odd and in an even pass."""
    uniforms = np.random.default_rng(1).uniform(size=(2, len(hat)))
    assert compiled.second is not None
    for p, draws, odd_pass in ((compiled.probabilities, uniforms[0], True), (compiled.second, uniforms[1], False)):
        assert keep_decisions(p[listed], draws)[0].tolist() == kept(hat, draws, odd_pass)


def test_expected_visits_over_two_epochs(compiled: Compiled, listed: npt.NDArray[np.bool_], hat: Floats) -> None:
    """ĝ + max(0.1, 1 - ĝ), so one visit but for the highest gains; counted over 400 pairs of passes within 5 standard errors."""
    assert compiled.second is not None
    expected = (compiled.probabilities + compiled.second)[listed]
    assert expected == pytest.approx(hat + np.maximum(0.1, 1 - hat), abs=2e-7)
    assert expected[hat <= 0.9] == pytest.approx(1)
    few = slice(0, 500)
    draws = np.random.default_rng(2).uniform(size=(2, 400, 500))
    counted = (draws[0] < compiled.probabilities[listed][few]).mean(0) + (draws[1] < compiled.second[listed][few]).mean(0)
    error = np.sqrt((hat * (1 - hat) + 0.25)[few] / 400)
    assert (np.abs(counted - expected[few]) < 5 * error).all()


def test_sharing_uniforms_takes_the_waste_out(hat: Floats) -> None:
    """Independent passes leave ĝ (1 - ĝ) of the samples unseen and see as many twice; complements of one draw see each once."""
    uniforms = np.random.default_rng(3).uniform(size=(2, len(hat)))
    odd, even = keep_decisions(hat.astype(np.float32), uniforms[0])
    assert np.array_equal(odd ^ even, np.ones(len(hat), np.bool_))
    independent = odd.astype(int) + keep_decisions((1 - hat).astype(np.float32), uniforms[1])[0]
    wasted = float((hat * (1 - hat)).mean())
    assert np.mean(independent == 0) == pytest.approx(wasted, abs=4 * (wasted / len(hat)) ** 0.5)
    assert np.mean(independent == 2) == pytest.approx(wasted, abs=4 * (wasted / len(hat)) ** 0.5)

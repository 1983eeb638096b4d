"""RandAugment against timm's, op by op and as a whole, and against torchvision's kernels."""

import math
from collections.abc import Iterator
from statistics import NormalDist

import numpy as np
import pytest
import timm.data.auto_augment as theirs
from PIL import Image
from torchvision.transforms.v2 import functional

from bamboo.datasets.augment.crops import Interpolation
from bamboo.datasets.augment.rand_augment import NAMES, RESAMPLING, RandAugment, RandPolicy, apply, parse_policy
from bamboo.datasets.counters import key, uniforms

FILL = (124, 116, 104)
# timm's name of an op, plainly and in the increasing set
PLAIN = dict(zip(NAMES, theirs._RAND_TRANSFORMS, strict=True))
INCREASING = dict(zip(NAMES, theirs._RAND_INCREASING_TRANSFORMS, strict=True))


def picture(seed: int = 0, height: int = 31, width: int = 45) -> Image.Image:
    """Returns a smooth RGB picture with noise on it, a narrow range of reds and no pure black."""
    rng = np.random.default_rng(seed)
    smooth = Image.fromarray(rng.integers(20, 236, (4, 5, 3), dtype=np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth).astype(int) + rng.integers(-9, 10, (height, width, 3))
    pixels[..., 0] = 60 + pixels[..., 0] // 3
    return Image.fromarray(pixels.clip(1, 255).astype(np.uint8))


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def single(name: str, sign: float) -> list[float]:
    """Returns the draws that choose `name`, apply it, and give the sign of `sign`."""
    return [(NAMES.index(name) + 0.5) / len(NAMES), 0.0, 0.5, sign]


@pytest.fixture(autouse=True)
def posterize_to_no_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives timm the `posterize` of older Pillow, where 0 bits are black: newer ones raise, and so does timm at magnitude 10."""
    original = theirs.ImageOps.posterize

    def posterize(image: Image.Image, bits: int) -> Image.Image:
        return original(image, bits) if bits >= 1 else Image.new("RGB", image.size)

    monkeypatch.setattr("timm.data.auto_augment.ImageOps.posterize", posterize)


@pytest.mark.parametrize("increasing", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_each_op_is_timms(name: str, increasing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal pixels at magnitudes 0 to 10, both signs, both interpolations, in both sets of ops."""
    interpolations: tuple[Interpolation, ...] = ("bilinear", "bicubic")
    for interpolation in interpolations:
        hparams = {"img_mean": FILL, "interpolation": RESAMPLING[interpolation]}
        for magnitude in (0, 1, 3.7, 9, 10):
            op = theirs.AugmentOp((INCREASING if increasing else PLAIN)[name], prob=1.0, magnitude=magnitude, hparams=hparams)
            ours = RandAugment(RandPolicy(magnitude=magnitude, num_ops=1, increasing=increasing), interpolation=interpolation, fill=FILL)
            for sign in (0.25, 0.75):
                monkeypatch.setattr("timm.data.auto_augment.random.random", lambda sign=sign: sign)
                draws = single(name, sign)
                assert [choice.name for choice in ours.choose(draws)] == [name]
                assert same(ours(picture(), draws), op(picture())), (magnitude, sign)


@pytest.mark.parametrize(
    "text", ["rand-m9-n2-mstd0.5-inc1", "rand-m7-n3-p0.8-mstd1", "rand-m5-n1-mstd101-inc1", "rand-m14-mmax20-mstd4-inc1"]
)
def test_the_whole_is_timms(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's transform of the same spelling, its generators fed with our draws: equal pixels for 60 rows of draws."""
    hparams = {"img_mean": FILL, "interpolation": RESAMPLING["bilinear"]}
    reference = theirs.rand_augment_transform(text, hparams)
    ours = RandAugment(parse_policy(text), interpolation="bilinear", fill=FILL)
    changed = 0
    for row in uniforms(key(3), np.arange(60), ours.num_draws).tolist():
        feed_timm(monkeypatch, reference, row)
        expected = reference(picture())
        assert same(ours(picture(), row), expected)
        changed += not same(picture(), expected)
    assert changed > 20


def feed_timm(monkeypatch: pytest.MonkeyPatch, reference: theirs.RandAugment, row: list[float]) -> None:
    """Makes timm's generators return what our row of draws says, op by op."""
    which, whether, noise, sign = (row[start::4] for start in range(4))
    ops = [reference.ops[int(draw * len(reference.ops))] for draw in which]
    prob = reference.ops[0].prob
    applied = [number for number, draw in enumerate(whether) if draw < prob]
    gate_then_sign: list[float] = []
    for number, op in enumerate(ops):
        signed = op.level_fn is not None and "Increasing" not in op.name and op.name.startswith(("Rotate", "Shear", "Translate"))
        signed |= op.name in ("ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing")
        gate_then_sign += [whether[number]] + ([sign[number]] if signed and number in applied else [])
    flips, noises = iter(gate_then_sign), iter([noise[number] for number in applied])
    monkeypatch.setattr("timm.data.auto_augment.random.random", lambda: next(flips))
    monkeypatch.setattr("timm.data.auto_augment.random.gauss", lambda mean, std: mean + std * NormalDist().inv_cdf(next(noises)))
    monkeypatch.setattr("timm.data.auto_augment.random.uniform", lambda low, high: low + next(noises) * (high - low))
    monkeypatch.setattr("timm.data.auto_augment.np.random.choice", lambda *_, **__: ops)


def torchvisions(image: Image.Image) -> Iterator[tuple[str, float, Image.Image]]:
    """Yields (op, amount, torchvision's result on a decoded picture)."""
    bilinear = functional.InterpolationMode.BILINEAR
    warp = {"angle": 0.0, "scale": 1.0, "interpolation": bilinear, "fill": list(FILL)}
    for tangent in (-0.27, 0.3):
        degrees = math.degrees(math.atan(-tangent))
        # With torchvision's centre at the corner, x' = x + y · tan
        yield "ShearX", tangent, functional.affine(image, translate=[0, 0], shear=[-degrees, 0.0], center=[0, 0], **warp)
        yield "ShearY", tangent, functional.affine(image, translate=[0, 0], shear=[0.0, -degrees], center=[0, 0], **warp)
    for pixels in (-9, 7):
        yield "TranslateX", -pixels / image.width, functional.affine(image, translate=[pixels, 0], shear=[0.0, 0.0], **warp)
        yield "TranslateY", -pixels / image.height, functional.affine(image, translate=[0, pixels], shear=[0.0, 0.0], **warp)
    for degrees in (-27.0, 13.5):
        yield "Rotate", degrees, functional.rotate(image, degrees, bilinear, fill=list(FILL))
    for factor in (0.1, 0.6, 1.0, 1.9):
        yield "Brightness", factor, functional.adjust_brightness(image, factor)
        yield "Color", factor, functional.adjust_saturation(image, factor)
        yield "Contrast", factor, functional.adjust_contrast(image, factor)
        yield "Sharpness", factor, functional.adjust_sharpness(image, factor)
    for bits in (1, 4, 8):
        yield "Posterize", bits, functional.posterize(image, bits)
    for threshold in (0, 26, 255):
        yield "Solarize", threshold, functional.solarize(image, threshold)
    yield "AutoContrast", 0, functional.autocontrast(image)
    yield "Equalize", 0, functional.equalize(image)
    yield "Invert", 0, functional.invert(image)


def test_kernels_are_torchvisions() -> None:
    """torchvision's functional ops on a decoded picture at the same amounts: equal pixels (shears, whose tangent makes a round trip
    through degrees: a grey level in one value of a thousand); every op but SolarizeAdd, which it lacks.
    """
    seen = set()
    for name, amount, expected in torchvisions(picture()):
        seen.add(name)
        actual = apply(picture(), name, amount, RESAMPLING["bilinear"], FILL)
        error = np.abs(np.asarray(actual, int) - np.asarray(expected, int))
        assert error.max() <= name.startswith("Shear"), (name, amount)
        assert (error > 0).mean() <= 0.001
    assert seen == set(NAMES) - {"SolarizeAdd"}


def test_point_ops_are_torchvisions_on_tensors_too() -> None:
    """torchvision's tensor kernels: equal for whole-number ops; within a grey level where they round differently."""
    image = picture()
    pixels = functional.pil_to_tensor(image)
    for name, amount, expected, most in (
        ("Invert", 0, functional.invert(pixels), 0),
        ("Posterize", 3, functional.posterize(pixels, 3), 0),
        ("Solarize", 77, functional.solarize(pixels, 77), 0),
        ("Equalize", 0, functional.equalize(pixels), 0),
        ("AutoContrast", 0, functional.autocontrast(pixels), 1),
        ("Brightness", 1.4, functional.adjust_brightness(pixels, 1.4), 1),
        ("Color", 0.3, functional.adjust_saturation(pixels, 0.3), 1),
        ("Contrast", 1.7, functional.adjust_contrast(pixels, 1.7), 2),
    ):
        actual = functional.pil_to_tensor(apply(image, name, amount, RESAMPLING["bilinear"], FILL))
        assert (actual.int() - expected.int()).abs().max() <= most, name


def test_law_of_the_choice() -> None:
    """20,000 rows of draws: each op within 4 standard errors of 1/15, applied half the time, the magnitude's noise normal."""
    rand = RandAugment(parse_policy("rand-m5-n2-mstd0.5-inc1"), interpolation="bilinear", fill=FILL)
    chosen = [rand.choose(row) for row in uniforms(key(8), np.arange(20_000), rand.num_draws).tolist()]
    counts = np.bincount([len(choices) for choices in chosen], minlength=3) / 20_000
    assert counts == pytest.approx([0.25, 0.5, 0.25], abs=4 * math.sqrt(0.25 / 20_000))
    names = [choice.name for choices in chosen for choice in choices]
    shares = np.array([names.count(name) for name in NAMES]) / len(names)
    assert np.abs(shares - 1 / 15).max() < 4 * math.sqrt(1 / 15 / len(names))
    turns = np.array([choice.amount for choices in chosen for choice in choices if choice.name == "Rotate"]) / 3
    assert abs((turns > 0).mean() - 0.5) < 4 * 0.5 / math.sqrt(len(turns))
    assert np.abs(turns).mean() == pytest.approx(5, abs=4 * 0.5 / math.sqrt(len(turns)))
    assert np.abs(turns).std() == pytest.approx(0.5, rel=0.12)


def test_extreme_draws_stay_in_range() -> None:
    """Draws of 0 and just below 1, noise included: magnitudes stay within 0 and mmax, and every op still works."""
    rand = RandAugment(parse_policy("rand-m9-n2-p1-mstd3-inc1"), interpolation="bicubic", fill=FILL)
    for value in (0.0, 1 - 2**-53):
        assert rand(picture(), [value] * rand.num_draws).size == picture().size
    lowest, highest = (rand.choose([(NAMES.index("Rotate") + 0.5) / 15, 0.0, draw, 0.0] * 2)[0].amount for draw in (0.0, 1 - 2**-53))
    assert (lowest, highest) == (0.0, 30.0)


def test_spelling() -> None:
    """Every section lands where timm's documentation puts it; the defaults are timm's."""
    assert parse_policy("rand") == RandPolicy(magnitude=10, num_ops=2, probability=0.5, noise=0, greatest=10, increasing=False)
    spelled = parse_policy("rand-m9.5-n3-p0.7-mstd0.5-mmax12-inc1")
    assert spelled == RandPolicy(magnitude=9.5, num_ops=3, probability=0.7, noise=0.5, greatest=12, increasing=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmix-m3", "must begin with 'rand'"),
        ("rand-m9-x2", "'x2' is none of"),
        ("rand-tweights", "'tweights' is none of"),
        ("rand-m9-m8", "'m' is given twice"),
        ("rand-m11", "m11 must not exceed mmax, 10"),
        ("rand-n0", "n must be a whole number"),
        ("rand-n1.5", "n must be a whole number"),
        ("rand-p1.5", "p must be at most 1"),
        ("rand-inc2", "inc must be 0 or 1"),
    ],
)
def test_wrong_spelling(text: str, message: str) -> None:
    """Each mistake against the text of its error."""
    with pytest.raises(ValueError, match=message):
        parse_policy(text)

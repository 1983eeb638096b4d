"""RandAugment (arXiv 1909.13719): a few ops out of fifteen, each at a noisy magnitude, all decided by given draws.

Ops, levels and spelling are timm's, so that `rand-m9-n2-mstd0.5-inc1` means what it means in published recipes, down to the probability
of 0.5 with which a chosen op is applied at all. torchvision's table differs: always applied, finer bins, no noise. The kernels are
Pillow's, which both libraries use on decoded pictures; on one core they are also the faster ones for all but the simplest ops.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageOps

from .crops import Interpolation

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_FULL = 10.0  # the magnitude at which an op has its full effect
_NORMAL = NormalDist()
_SECTION = re.compile(r"(mstd|mmax|inc|m|n|p)(\d+(?:\.\d+)?)")


@dataclasses.dataclass(frozen=True)
class RandPolicy:
    """What a spelling such as `rand-m9-n2-mstd0.5-inc1` asks for."""

    magnitude: float = 10.0
    """m: mean magnitude, 0 … `greatest`."""
    num_ops: int = 2
    """n: ops per image, drawn with replacement."""
    probability: float = 0.5
    """p: chance that a drawn op is applied."""
    noise: float = 0.0
    """mstd: standard deviation of the magnitude; above 100, the magnitude is uniform in [0, m]."""
    greatest: float = 10.0
    """mmax: where a noisy magnitude is cut."""
    increasing: bool = False
    """inc: every op becomes stronger with the magnitude; without it, some become weaker, as in the first implementations."""


def parse_policy(text: str) -> RandPolicy:
    """Returns the policy that timm's spelling `rand[-mM][-nN][-pP][-mstdS][-mmaxX][-inc0|1]` stands for.

    Raises:
        ValueError: for an unknown section (timm's named sets of ops, `-t…`, among them) or a value out of range.
    """
    head, *sections = text.split("-")
    if head != "rand":
        raise ValueError("must begin with 'rand', as in rand-m9-n2-mstd0.5-inc1")
    given: dict[str, float] = {}
    for section in sections:
        found = _SECTION.fullmatch(section)
        if found is None:
            raise ValueError(f"{section!r} is none of m, n, p, mstd, mmax, inc with a number, as in rand-m9-n2-mstd0.5-inc1")
        if found[1] in given:
            raise ValueError(f"{found[1]!r} is given twice")
        given[found[1]] = float(found[2])
    policy = RandPolicy(
        magnitude=given.get("m", 10.0),
        num_ops=int(given.get("n", 2)),
        probability=given.get("p", 0.5),
        noise=given.get("mstd", 0.0),
        greatest=given.get("mmax", 10.0),
        increasing=given.get("inc", 0) == 1,
    )
    for wrong, problem in (
        (policy.magnitude > policy.greatest, f"m{policy.magnitude:g} must not exceed mmax, {policy.greatest:g} here"),
        (given.get("n", 2) not in range(1, 16), "n must be a whole number from 1 to 15"),
        (policy.probability > 1, "p must be at most 1"),
        (given.get("inc", 0) not in (0, 1), "inc must be 0 or 1"),
    ):
        if wrong:
            raise ValueError(problem)
    return policy


class Choice(NamedTuple):
    """An op to apply, and how strongly."""

    name: str
    amount: float
    """What the op takes: degrees, a factor, a share of the side, bits, a threshold; 0 where it takes nothing."""


class RandAugment:
    """Applies the ops that the draws choose: four draws for each (which, whether, noise, sign)."""

    def __init__(self, policy: RandPolicy, *, interpolation: Interpolation, fill: tuple[int, int, int]) -> None:
        self._policy, self._resampling, self._fill = policy, RESAMPLING[interpolation], fill
        self.num_draws = 4 * policy.num_ops

    def choose(self, draws: Sequence[float]) -> list[Choice]:
        """Returns what is applied for these `num_draws` uniforms in [0, 1), in order; may be empty."""
        policy, chosen = self._policy, []
        for which, whether, noise, sign in zip(*(draws[start::4] for start in range(4)), strict=True):
            if whether < policy.probability:
                name = NAMES[int(which * len(NAMES))]
                level = _LEVELS[name][policy.increasing]
                chosen.append(Choice(name, level(_magnitude(policy, noise) / _FULL, 1 if sign < 0.5 else -1)))
        return chosen

    def __call__(self, picture: Image.Image, draws: Sequence[float]) -> Image.Image:
        """Returns the RGB picture after the chosen ops; the same object where none is chosen."""
        for name, amount in self.choose(draws):
            picture = apply(picture, name, amount, self._resampling, self._fill)
        return picture


def apply(picture: Image.Image, name: str, amount: float, resampling: Image.Resampling, fill: tuple[int, int, int]) -> Image.Image:
    """Returns the RGB picture after one op; `fill` is the colour of what a warp uncovers."""
    warp = _WARPS.get(name)
    if warp is not None:
        return picture.transform(picture.size, Image.Transform.AFFINE, warp(picture, amount), resampling, fillcolor=fill)
    if name == "Rotate":
        return picture.rotate(amount, resampling, fillcolor=fill)
    return _TONES[name](picture, amount)


def _magnitude(policy: RandPolicy, draw: float) -> float:
    if not policy.noise:
        return policy.magnitude
    if policy.noise > 100:
        return draw * policy.magnitude
    noisy = policy.magnitude + policy.noise * _NORMAL.inv_cdf(max(draw, 2.0**-54))
    return max(0.0, min(noisy, policy.greatest))


def _solarize_add(picture: Image.Image, amount: float) -> Image.Image:
    return picture.point([min(255, value + int(amount)) if value < 128 else value for value in range(256)] * 3)


def _posterize(picture: Image.Image, amount: float) -> Image.Image:
    # Noise at magnitude 9 asks for 0 bits now and then. That is black, but newer versions of Pillow's own `posterize` refuse it.
    mask = 256 - (1 << (8 - min(max(int(amount), 0), 8)))
    return picture.point([value & mask for value in range(256)] * 3)


def _nothing(share: float, sign: int) -> float:
    return 0.0


def _signed(full: float) -> Callable[[float, int], float]:
    return lambda share, sign: sign * (share * full)


def _factor(share: float, sign: int) -> float:
    return share * 1.8 + 0.1


def _factor_increasing(share: float, sign: int) -> float:
    return max(0.1, 1.0 + sign * (share * 0.9))


def _bits(share: float, sign: int) -> float:
    return int(share * 4)


def _threshold(share: float, sign: int) -> float:
    return min(256, int(share * 256))


_TONES: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "AutoContrast": lambda picture, _: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, _: ImageOps.equalize(picture),
    "Invert": lambda picture, _: ImageOps.invert(picture),
    "Posterize": _posterize,
    "Solarize": lambda picture, amount: ImageOps.solarize(picture, int(amount)),
    "SolarizeAdd": _solarize_add,
    "Color": lambda picture, amount: ImageEnhance.Color(picture).enhance(amount),
    "Contrast": lambda picture, amount: ImageEnhance.Contrast(picture).enhance(amount),
    "Brightness": lambda picture, amount: ImageEnhance.Brightness(picture).enhance(amount),
    "Sharpness": lambda picture, amount: ImageEnhance.Sharpness(picture).enhance(amount),
}

# Output to input coordinates: x' = ax + by + c, y' = dx + ey + f
_WARPS: dict[str, Callable[[Image.Image, float], tuple[float, ...]]] = {
    "ShearX": lambda _, amount: (1, amount, 0, 0, 1, 0),
    "ShearY": lambda _, amount: (1, 0, 0, amount, 1, 0),
    "TranslateX": lambda picture, amount: (1, 0, amount * picture.width, 0, 1, 0),
    "TranslateY": lambda picture, amount: (1, 0, 0, 0, 1, amount * picture.height),
}

# Per op: magnitude / 10 and a sign → amount, plainly and in the increasing set
_LEVELS: dict[str, tuple[Callable[[float, int], float], Callable[[float, int], float]]] = {
    "AutoContrast": (_nothing, _nothing),
    "Equalize": (_nothing, _nothing),
    "Invert": (_nothing, _nothing),
    "Rotate": (_signed(30.0), _signed(30.0)),
    "Posterize": (_bits, lambda share, sign: 4 - _bits(share, sign)),
    "Solarize": (_threshold, lambda share, sign: 256 - _threshold(share, sign)),
    "SolarizeAdd": (lambda share, _: min(128, int(share * 110)),) * 2,
    "Color": (_factor, _factor_increasing),
    "Contrast": (_factor, _factor_increasing),
    "Brightness": (_factor, _factor_increasing),
    "Sharpness": (_factor, _factor_increasing),
    "ShearX": (_signed(0.3), _signed(0.3)),
    "ShearY": (_signed(0.3), _signed(0.3)),
    "TranslateX": (_signed(0.45), _signed(0.45)),
    "TranslateY": (_signed(0.45), _signed(0.45)),
}

NAMES = tuple(_LEVELS)
"""The fifteen ops, equally likely."""

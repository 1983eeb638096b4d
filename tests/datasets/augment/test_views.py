"""The training view as a whole: parts in order, equal bits everywhere, nothing done for what is off."""

import inspect
import pickle
import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bamboo.datasets.augment.colour import ColourJitter, ThreeAugment
from bamboo.datasets.augment.crops import NUM_DRAWS, TrainView, View
from bamboo.datasets.augment.erasing import RandomErasing
from bamboo.datasets.augment.rand_augment import RandAugment, parse_policy
from bamboo.datasets.augment.views import RAND_AUGMENT, training_view
from bamboo.datasets.counters import key, uniforms
from bamboo.datasets.stream.batches import Columns
from bamboo.datasets.stream.loader import load_batches
from bamboo.pretrain.settings.data import DataSettings

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROP = TrainView(40, scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), flip=0.5, interpolation="bicubic")
FULL: list[dict[str, Any]] = [
    {"augment": "rand", "color_jitter": 0.4, "hue_jitter": 0.1, "erase": 0.5, "erase_count": 2},
    {"augment": "three", "erase": 0.5, "erase_mode": "mean"},
]


def view_of(**settings: Any) -> View:
    """Returns the view of these settings over `CROP`."""
    return training_view(CROP, interpolation="bicubic", mean=MEAN, std=STD, **settings)


def decoded(sample: int) -> torch.Tensor:
    """Returns a smooth uint8[3, H, W] with the decoder's channels-last strides; its size depends on the sample."""
    coarse = np.random.default_rng(sample).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((50 + sample % 7, 60 - sample % 11), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def views(view: View, samples: range) -> list[bytes]:
    """Returns the pixels of the views of some samples, with draws keyed by sample."""
    rows = uniforms(key(4), np.array(samples), view.num_draws).tolist()
    return [view(decoded(sample), row).contiguous().numpy().tobytes() for sample, row in zip(samples, rows, strict=True)]


def test_off_is_the_crop_itself() -> None:
    """With everything off there is no view around the crop, and no draw beyond the crop's."""
    assert view_of() is CROP
    assert view_of(rand_augment="rand-m3", erase_count=3, color_jitter=0.0) is CROP


def test_parts_in_order() -> None:
    """The parts one after another, each with its own draws, against the view: equal pixels, and the crop's draws come first."""
    parts: list[Any] = [RandAugment(parse_policy(RAND_AUGMENT), interpolation="bicubic", fill=(124, 116, 104)), ColourJitter(0.4, 0.1)]
    erasing = RandomErasing(0.5, mode="pixel", area=(0.02, 1 / 3), aspect=(0.3, 1 / 0.3), count=2, mean=MEAN, std=STD)
    view = view_of(**FULL[0])
    assert view.num_draws == NUM_DRAWS + 8 + 5 + 3 + 44
    changed = 0
    for row in uniforms(key(7), np.arange(30), view.num_draws).tolist():
        crop = CROP(decoded(3), row[:NUM_DRAWS])
        picture = Image.fromarray(np.ascontiguousarray(crop.permute(1, 2, 0).numpy()))
        picture = parts[1](parts[0](picture, row[NUM_DRAWS : NUM_DRAWS + 8]), row[NUM_DRAWS + 8 : NUM_DRAWS + 13])
        expected = erasing(torch.from_numpy(np.array(picture)).permute(2, 0, 1), row[NUM_DRAWS + 13 :])
        actual = view(decoded(3), row)
        assert torch.equal(actual, expected)
        assert actual.shape == (3, 40, 40)
        assert actual.stride() == (1, 120, 3)
        changed += not torch.equal(actual, crop)
    assert changed > 25


def test_three_augment_jitters_by_default() -> None:
    """DeiT III's jitter of 0.3 comes with augment=three, unless another is given."""
    row = uniforms(key(9), np.arange(1), NUM_DRAWS + 7)[0].tolist()
    plain = Image.fromarray(np.ascontiguousarray(CROP(decoded(1), row[:NUM_DRAWS]).permute(1, 2, 0).numpy()))
    one = ThreeAugment()(plain, row[NUM_DRAWS : NUM_DRAWS + 2])
    for given, strength in ((None, 0.3), (0.1, 0.1)):
        expected = ColourJitter(strength)(one, row[NUM_DRAWS + 2 :])
        assert view_of(augment="three", color_jitter=given)(decoded(1), row).permute(1, 2, 0).numpy().tobytes() == expected.tobytes()
    assert view_of(augment="three", color_jitter=0.0).num_draws == NUM_DRAWS + 2


@pytest.mark.parametrize("settings", FULL, ids=["rand", "three"])
def test_equal_bits_whatever_surrounds_it(settings: dict[str, Any]) -> None:
    """1 and 3 threads, another order, seeded and unseeded generators, a pickled copy: equal pixels; and the image is left alone."""
    expected = views(view_of(**settings), range(40))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        state = random.getstate(), np.random.get_state()[2], torch.get_rng_state()
        assert views(view_of(**settings), range(40)) == expected
        assert (random.getstate(), np.random.get_state()[2]) == state[:2]
        assert torch.equal(torch.get_rng_state(), state[2])
    finally:
        torch.set_num_threads(threads)
    copied = pickle.loads(pickle.dumps(view_of(**settings)))
    assert views(copied, range(20, 40)) + views(copied, range(20)) == expected[20:] + expected[:20]
    image, row = decoded(5), uniforms(key(1), np.arange(1), copied.num_draws)[0].tolist()
    copied(image, row)
    assert torch.equal(image, decoded(5))


class _Source:
    """Batches of five views, their draws keyed by sample."""

    def __init__(self, view: View) -> None:
        self._view = view

    def shape(self, number: int) -> tuple[int, int, int, int]:
        return (5, 40, 40, 3)

    def largest(self, numbers: range) -> tuple[int, int, int, int]:
        return (5, 40, 40, 3)

    def make(self, number: int, images: torch.Tensor, *_: Any) -> Columns:
        ids = np.arange(5 * number, 5 * number + 5)
        for row, pixels in enumerate(views(self._view, range(5 * number, 5 * number + 5))):
            images[row] = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).reshape(3, 40, 40).permute(1, 2, 0)
        return Columns(ids, ids, ids >= 0, ids)

    def let_go(self) -> None:
        pass


def test_equal_bits_in_any_worker() -> None:
    """Loaded by 0 and by 2 worker processes: equal batches."""
    source = _Source(view_of(**FULL[0]))
    made = [[batch.images.clone() for batch in load_batches(source, range(6), workers=workers)] for workers in (0, 2)]
    assert len(made[0]) == 6
    assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))


def test_settings_are_the_views() -> None:
    """Each keyword of `training_view` is a setting of `bamboo pretrain` under the same name and with the same default."""
    data = DataSettings(train=("shards",))
    keywords = {name: given for name, given in inspect.signature(training_view).parameters.items() if name != "crop"}
    for name, keyword in keywords.items():
        assert hasattr(data, name)
        assert keyword.default in (inspect.Parameter.empty, getattr(data, name)), name
    assert data.problems() == []
    assert training_view(CROP, **{name: getattr(data, name) for name in keywords}) is CROP


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"augment": "rand", "rand_augment": "rand-m9-q2"}, "rand_augment=rand-m9-q2: 'q2' is none of"),
        ({"rand_augment": "rand-m5"}, "rand_augment=rand-m5: augment=none does not use it; give augment=rand"),
        ({"erase_mode": "mean"}, "erase_mode=mean: nothing is erased with erase=0"),
        ({"erase": 0.3, "erase_area": (0.4, 0.2)}, "erase_area=(0.4, 0.2): needs 0 < least <= greatest"),
        ({"erase": 0.3, "erase_aspect": (0.0, 2.0)}, "erase_aspect=(0.0, 2.0): needs 0 < least <= greatest"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], problem: str) -> None:
    """Each mistake against the text of its problem, which is the only one."""
    (found,) = DataSettings(train=("shards",), **settings).problems()
    assert found.startswith(problem)

"""The page of a snapshot: its numbers against numpy on the columns, which samples it shows, and that nothing on it is anybody's markup."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bamboo.cli.errors import DataError
from bamboo.datasets.growth.columns import Decision, Reason
from bamboo.datasets.growth.report.page import write_report
from bamboo.datasets.growth.report.pictures import Pictures
from bamboo.datasets.growth.report.spread import Extremes, Spread
from bamboo.datasets.growth.report.tally import tally
from bamboo.datasets.growth.snapshot import Snapshot
from bamboo.datasets.shards import Shards
from tests.datasets.growth.states import write_state

Bamboo = Callable[..., tuple[int, str, str]]
ImageBytes = Callable[..., bytes]

N = 21
VOID = {"meta", "link", "img", "br"}
PROBABILITIES = np.linspace(0.1, 0.9, N, dtype=np.float32)


class Page(HTMLParser):
    """A page, read: rows of tables by their head, images, tags, and its text without markup; every tag must be closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: dict[str, list[str]] = {}
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self._cells: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        assert not self._open, "tags that were never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        self.images += [dict(attrs)] if tag == "img" else []
        self._cells = [] if tag == "tr" else [*self._cells, ""] if tag in ("td", "th") else self._cells
        self._open += [] if tag in VOID else [tag]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "tr" and self._cells:
            self.rows[self._cells[0].strip()] = [cell.strip() for cell in self._cells[1:]]

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data
        if {"td", "th"} & set(self._open):
            self._cells[-1] += data

    def places(self) -> list[tuple[int, int]]:
        """Returns (source, row) of the images that are shown, in order."""
        found = [re.search(r"source (\d+), row ([\d,]+)", image["alt"] or "") for image in self.images]
        return [(int(match[1]), int(match[2].replace(",", ""))) for match in found if match is not None]


def report(snapshot: Snapshot, tmp_path: Path, **options: Any) -> Page:
    """Writes a page and reads it."""
    write_report(snapshot, tmp_path / "report.html", **options)
    return Page(tmp_path / "report.html")


def random_columns(seed: int = 0) -> dict[str, Any]:
    """Columns of N samples, of which 4 are duplicates."""
    random = np.random.default_rng(seed)
    gain = random.permutation(N).astype(np.float32) / 40 + np.float32(0.1)
    decision, nearest = np.zeros(N, np.uint8), np.full(N, -1)
    decision[[5, 9, 14, 20]], nearest[[5, 9, 14, 20]] = Decision.DUPLICATE, [0, 3, 13, 1]
    distance = np.where(decision == Decision.DUPLICATE, 0.01 + np.arange(N) / 1000, np.nan)
    columns = {"image_gain": gain * 2, "gain": gain * 2, "corrected": gain, "text_gain": np.full(N, np.nan, np.float32)}
    reason = np.where(decision == Decision.DUPLICATE, Reason.NEAR_DUPLICATE, Reason.NEW).astype(np.uint8)
    return columns | {"decision": decision, "reason": reason, "image_nearest": nearest, "image_nearest_distance": distance}


@pytest.fixture
def captioned(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> Path:
    """Three images without classes and with captions, of which one is markup, packed in order."""
    (tmp_path / "pool").mkdir()
    for number in range(3):
        (tmp_path / "pool" / f"{number}.jpg").write_bytes(image_bytes(number))
    texts = ["number 0", "<script>alert(1)</script> & more", "number 2"]
    (tmp_path / "list.json").write_text(json.dumps([{"image": f"{n}.jpg", "caption": text} for n, text in enumerate(texts)]))
    assert bamboo("pack", tmp_path / "pool", "--to", "lmdb", "--out", tmp_path / "l", "--processes", 1)[0] == 0
    options = ("--annotations", tmp_path / "list.json", "--shuffle", "none", "--processes", 1)
    assert bamboo("pack", tmp_path / "l", "--out", tmp_path / "captioned", *options)[0] == 0
    return tmp_path / "captioned"


def test_numbers_are_those_of_the_columns(packed: Path, tmp_path: Path) -> None:
    """Decisions, and of every class samples, share kept, duplicates, mean gain and visits, against numpy."""
    columns, labels = random_columns(), Shards.open(packed).labels
    page = report(write_state(tmp_path / "state", [packed], [PROBABILITIES], columns=[columns]), tmp_path)
    assert page.rows["no earlier sample within the duplicate distance"] == ["17", f"{100 * 17 / N:.1f} %"]
    assert page.rows["an earlier sample lies within the duplicate distance"] == ["4", f"{100 * 4 / N:.1f} %"]
    is_kept = columns["decision"] == Decision.ACCEPT
    for label, name in enumerate(Shards.open(packed).class_names):
        own = labels == label
        kept, gain, visits = own & is_kept, columns["corrected"][own & is_kept].mean(), PROBABILITIES[own].mean()
        counts = [f"{own.sum()}", f"{100 * kept.sum() / own.sum():.1f} %", f"{(own & ~is_kept).sum()}"]
        assert page.rows[name][1:] == [*counts, f"{gain:.3f}", f"{visits:.3f}"]


def test_visits_of_two_phases(packed: Path, tmp_path: Path) -> None:
    """The second column, or what coupled epochs leave of their members, against their mean in numpy; and how many are never taken."""
    labels, members = Shards.open(packed).labels, (np.arange(N) % 3 > 0).astype(np.float32)
    first = PROBABILITIES * members
    for coupled, second in ((False, members), (True, members - first)):
        state = tmp_path / f"state-{coupled}"
        page = report(write_state(state, [packed], [first], second=[members], card={"coupled": coupled}), tmp_path)
        for label, name in enumerate(Shards.open(packed).class_names):
            assert page.rows[name][-1] == f"{((first + second) / 2)[labels == label].mean():.3f}"
        assert "never takes them: 7 and 7 samples" in page.text


def test_gain_over_arrival(packed: Path, tmp_path: Path) -> None:
    """Quantiles of kept samples by bin of arrival, over the borders of tars and sources, against numpy; one level is 0.001."""
    folders = [packed, shutil.copytree(packed, tmp_path / "again"), shutil.copytree(packed, tmp_path / "third")]
    columns = [random_columns(seed) for seed in range(3)]
    snapshot = write_state(tmp_path / "state", folders, [PROBABILITIES] * 3, columns=columns)
    made = tally(snapshot, Pictures(snapshot), 4)
    assert made.over_arrival["gain"].counts.shape[0] == 3, "63 samples, 20 at least to a bin"
    for number, part in enumerate(columns):
        kept = part["gain"][part["decision"] == Decision.ACCEPT]
        for share in (0.1, 0.5, 0.9):
            expected = np.quantile(kept, share, method="inverted_cdf")
            assert abs(made.over_arrival["gain"].quantile(share)[number] - expected) <= 0.0011
    assert not made.over_arrival["settled"].counts.any()


def test_spread_and_extremes() -> None:
    """Counts and quantiles of values that come in parts against numpy's on the whole; the lowest rows against a sort; no NaN."""
    random = np.random.default_rng(0)
    values, groups = random.gamma(2, 0.1, 10_000).clip(0, 2), random.integers(0, 3, 10_000)
    values[::7] = np.nan
    spread, extremes = Spread(3, 0, 2), Extremes(50)
    for part in np.array_split(np.arange(10_000), 7):
        spread.add(groups[part], values[part])
        extremes.add(values[part], {"row": part})
    for group in range(3):
        known = values[(groups == group) & ~np.isnan(values)]
        assert spread.counts[group].sum() == len(known)
        for share in (0.1, 0.5, 0.9):
            assert abs(spread.quantile(share)[group] - np.quantile(known, share)) < 0.002
        counts, edges = spread.histogram(60)
        assert counts[group].tolist() == pytest.approx(np.histogram(known, edges)[0], abs=2), "values on an edge may fall to either side"
    assert extremes.columns["row"].tolist() == np.argsort(values, kind="stable")[:50].tolist()
    assert not Extremes(3).columns


def test_sheets_hold_the_most_and_the_least_informative(packed: Path, tmp_path: Path) -> None:
    """Which images, in which order, against a sort of the kept samples; and an image's pixels against the shard's."""
    columns = random_columns()
    page = report(write_state(tmp_path / "state", [packed], [PROBABILITIES], columns=[columns]), tmp_path, images=3)
    gain = np.where(columns["decision"] == Decision.ACCEPT, columns["corrected"], np.nan)
    order = np.argsort(gain)[:17].tolist()
    assert page.places()[:6] == [(0, row) for row in [*order[::-1][:3], *order[:3]]]
    first = f"{gain[order[-1]]:.3f} {Shards.open(packed).class_names[Shards.open(packed).labels[order[-1]]]}"
    assert first in page.text
    data = base64.b64decode(str(page.images[0]["src"]).removeprefix("data:image/jpeg;base64,"))
    shown, stored = np.asarray(Image.open(io.BytesIO(data))), Shards.open(packed).load(order[-1]).permute(1, 2, 0).numpy()
    assert shown.shape == stored.shape
    assert np.abs(shown.astype(float) - stored).mean() < 12, "but for the JPEG"


def test_duplicates_stand_beside_what_they_repeat(packed: Path, tmp_path: Path) -> None:
    """Pairs across two sources: the nearest earlier sample by its arrival, its source and row, and the distance, the least first."""
    again = shutil.copytree(packed, tmp_path / "again")
    decision, nearest, distance = np.zeros(N, np.uint8), np.full(N, -1), np.full(N, np.nan)
    decision[[2, 6]], nearest[[2, 6]], distance[[2, 6]] = Decision.DUPLICATE, [4, N + 3], [0.0421, 0.0123]
    second = {"decision": decision, "image_nearest": nearest, "image_nearest_distance": distance}
    snapshot = write_state(tmp_path / "state", [packed, again], [PROBABILITIES] * 2, columns=[{}, second])
    page = report(snapshot, tmp_path, images=8)
    assert page.places()[16:] == [(1, 3), (1, 6), (0, 4), (1, 2)]
    assert page.text.index("0.0123") < page.text.index("0.0421")


def test_captions_before_and_after_are_escaped(captioned: Path, tmp_path: Path) -> None:
    """A cleaned and a dropped sample: captions, re-captions by name, alignments; markup in them stays text; half characters do no harm."""
    columns = {
        "decision": np.array([Decision.ACCEPT, Decision.CLEAN, Decision.DROP], np.uint8),
        "reason": np.array([Reason.NEW, Reason.RECAPTIONED, Reason.MISALIGNED_TWICE], np.uint8),
        "alignment": np.array([0.61, 0.12, 0.23]),
        "realigned": np.array([np.nan, 0.71, 0.34]),
    }
    snapshot = write_state(tmp_path / "state", [captioned], [np.ones(3)], columns=[columns])
    page = report(snapshot, tmp_path, recaptions={"1.jpg": "<img src=x onerror=y> \ud800", "2.jpg": "what it shows"})
    for text in ("<script>alert(1)</script> & more", "<img src=x onerror=y>", "number 2", "what it shows"):
        assert text in page.text
    for shown in ("caption 0.120", "re-caption 0.710", "caption 0.230", "re-caption 0.340"):
        assert shown in page.text
    assert not {"script", "iframe", "object"} & page.tags
    assert all("onerror" not in image for image in page.images)
    page = report(snapshot, tmp_path)
    assert "re-caption 0.710 not at hand" in " ".join(page.text.split())


def test_names_of_classes_are_escaped(tmp_path: Path, bamboo: Bamboo, image_bytes: ImageBytes) -> None:
    """A class folder that is called like a tag."""
    (tmp_path / "photos" / "<b>&'cat").mkdir(parents=True)
    (tmp_path / "photos" / "<b>&'cat" / "0.jpg").write_bytes(image_bytes(0))
    assert bamboo("pack", tmp_path / "photos", "--out", tmp_path / "s", "--processes", 1)[0] == 0
    page = report(write_state(tmp_path / "<i>state", [tmp_path / "s"], [np.ones(1)]), tmp_path)
    assert "<b>&'cat" in page.rows
    assert "<i>state" in page.text


def test_of_many_classes_the_first_and_the_last_twenty(packed: Path, tmp_path: Path) -> None:
    """21 samples of 62 classes, class 40 with two: a row for it and 19 more, then the last twenty, each as numpy counts it."""
    names = [f"kind {number}" for number in range(62)]
    labels = np.array([40, 40, *range(19)], np.int32)
    snapshot = write_state(tmp_path / "state", [packed], [PROBABILITIES], columns=[random_columns()], card={"growth": {"classes": names}})
    np.save(snapshot.state / "sources" / "000000" / "labels.npy", labels)
    shutil.rmtree(packed)  # so that the state's own labels count
    page = report(snapshot, tmp_path)
    shown = [name for name in page.rows if name.startswith("kind ")]
    assert shown == ["kind 40", *names[:19], *names[42:]]
    assert page.rows["kind 40"][1] == "2"
    assert page.rows["kind 40"][-1] == f"{PROBABILITIES[:2].mean():.3f}"
    assert page.rows["kind 61"][1:] == ["0", "–", "0", "–", "–"]
    assert "62 classes, 42 of them without a sample" in page.text


def test_shards_that_are_gone_or_others(packed: Path, photo_folder: Path, tmp_path: Path, bamboo: Bamboo) -> None:
    """First there is no folder, then one with the same images in another order: the page says so, has no image, but all else."""
    snapshot = write_state(tmp_path / "state", [packed], [PROBABILITIES], columns=[random_columns()])
    shutil.rmtree(packed)
    for why in ("no such folder", "holds other data"):
        page = report(snapshot, tmp_path)
        assert "its images and captions are left out" in page.text
        assert re.search(f"Source 0: .*{packed}.*", page.text)
        assert why in page.text
        assert not page.images
        assert page.rows["an earlier sample lies within the duplicate distance"][0] == "4"
        if not packed.exists():
            assert bamboo("pack", photo_folder, "--out", packed, "--samples-per-shard", 5, "--processes", 1)[0] == 0


def test_the_page_needs_nothing_else(packed: Path, tmp_path: Path) -> None:
    """One file: whatever is referred to lies on the page itself, and there is no script."""
    page = report(write_state(tmp_path / "state", [packed], [PROBABILITIES], columns=[random_columns()]), tmp_path)
    assert page.images
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    anchors = [address for address in page.addresses if address.startswith("#") and len(address) > 1]
    assert all(f'id="{anchor[1:]}"' in page.html for anchor in anchors)
    assert "script" not in page.tags
    ids = re.findall(r'\bid="([^"]*)"', page.html)
    assert len(ids) == len(set(ids)), "drawings share parts by their ids"
    assert "@import" not in page.html
    assert not re.search(r"url\((?!['\"]?#)", page.html)


def test_the_card_is_told(packed: Path, tmp_path: Path) -> None:
    """Encoder, thresholds, audit, policy, its warning and the forecast of reading, as the card has them."""
    encoder = {"checkpoint": "c0ffee", "preprocessing": {"image_size": 64}, "precision": "bf16"}
    growth = {"k": 7, "engine": "hnsw", "duplicate_distance": 0.0625, "modalities": {"image": {"encoder": encoder, "width": 512}}}
    entry = {"modality": "image", "samples": 1234, "bias": 0.015, "p50": 0.001, "p99": 0.025, "max": 0.5, "share_over": 0.0, "source": 0}
    summary = {"num_trainable": 17, "epoch_samples": 10.5, "second_samples": None, "mean_keep": 0.25, "ess": 0.75, "warning": "take <care>"}
    folder = {"location": str(packed), "data_hash": Shards.open(packed).data_hash, "num_samples": N, "second": None, "grouped": True}
    training = [{**folder, "probabilities": "probabilities/000000.npy", "read_bytes": 3e6, "used_bytes": 2e6, "amplification": 1.5}]
    policy = {"kind": "power", "floor": 0.125}
    card = {"growth": growth, "audit": [entry], "policy": policy, "policy_summary": summary, "training": training}
    snapshot = write_state(tmp_path / "state", [packed], [PROBABILITIES], card=card)
    page = report(snapshot, tmp_path)
    for text in ("c0ffee", "bf16", "hnsw", "0.0625", "power", "0.125", "take <care>", snapshot.content_hash):
        assert text in page.text
    assert page.rows[str(packed)] == ["21", "3 MB", "2 MB", "1.50", "yes"]
    assert page.rows["0"][:6] == ["image", "1,234", "0.015", "0.001", "0.025", "0.5"]


def test_one_sample_and_nothing_known(captioned: Path, packed: Path, tmp_path: Path) -> None:
    """No classes, no text, no duplicates, no gain at all, one sample: a page all the same, which says what it lacks."""
    page = report(write_state(tmp_path / "state", [captioned], [np.ones(3)]), tmp_path)
    assert "The samples have no classes" in page.text
    assert "0 samples are within the duplicate distance" in page.text or "not known" in page.text
    nothing = {name: np.full(N, np.nan) for name in ("image_gain", "text_gain", "gain", "corrected")}
    page = report(write_state(tmp_path / "unknown", [packed], [np.zeros(N)], columns=[nothing]), tmp_path)
    assert "No kept sample has a gain." in page.text
    assert not page.images


def test_damage_is_told(packed: Path, tmp_path: Path) -> None:
    """Columns and probabilities that are missing or too short: an error that names the file, and no page."""
    snapshot = write_state(tmp_path / "state", [packed], [PROBABILITIES])
    np.save(snapshot.training[0].probabilities, PROBABILITIES[:-1])
    with pytest.raises(DataError, match=r"000000\.npy"):
        write_report(snapshot, tmp_path / "report.html")
    np.save(snapshot.training[0].probabilities, PROBABILITIES)
    next((snapshot.folder / "sources").rglob("*.parquet")).unlink()
    with pytest.raises(DataError, match=r"\.parquet"):
        write_report(snapshot, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()

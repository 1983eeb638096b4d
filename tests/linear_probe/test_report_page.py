"""The page of `bamboo report`: what an evaluation's folder tells, what is drawn, that it needs nothing else, and that its tables sort."""

import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from bamboo.linear_probe.report import charts
from bamboo.linear_probe.report.cli import render
from bamboo.linear_probe.report.evidence import ClassScore, Confusion, Curve, Point, read_evidence
from bamboo.linear_probe.report.tables import TEN, Record, build
from tests.linear_probe.report_rows import HOSTILE, failure, fill_folder, row

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VOID = {"meta", "link", "br", "img", "input"}


class Outline(html.parser.HTMLParser):
    """Collects elements, what they refer to and all text, and checks that every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes one element."""
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes an element without content."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        """Closes one element."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keeps what is read, but for style and script."""
        if self._open and self._open[-1] not in ("style", "script"):
            self.text += data


@pytest.fixture
def page(tmp_path: Path) -> str:
    """Returns a page of two protocols, ten sets, hostile names, a failure, and one cell with a full folder."""
    fill_folder(tmp_path / "cell")
    rows = [row(dataset=name, model=model, value=value) for model, value in (("run", 0.5), (HOSTILE, 0.4)) for name in TEN[:9]]
    rows += [
        row(dataset=TEN[9], details={"warnings": [HOSTILE], "notes": [HOSTILE], "chosen": {HOSTILE: 1.0}}, versions={HOSTILE: HOSTILE})
    ]
    rows += [row(protocol="bamboo-2022", selected_on="test", dataset=HOSTILE, certificate={"relative_gap": float("inf")})]
    variants = {"k=<5>": {"top1": {"value": 0.25, "standard_error": 0.01}}}
    rows += [row(protocol="knn", subset="10p", certificate={}, details={"variants": variants})]
    records = [Record(each, tmp_path if number == 0 else None) for number, each in enumerate(rows)]
    return render(build(records, [failure(model=HOSTILE, dataset=TEN[9], reason=HOSTILE)]), ".html")


def test_a_folder_is_read_by_hand(tmp_path: Path) -> None:
    """Twelve predictions over three classes against recalls, pairs and points that were counted by hand."""
    fill_folder(tmp_path / "cell")
    evidence = read_evidence(tmp_path / "cell")
    assert evidence.notes == ()
    assert evidence.classes == (ClassScore("apple", 1, 4), ClassScore(HOSTILE, 3, 4), ClassScore("cherry", 4, 4))
    assert [found.share for found in evidence.classes] == [0.25, 0.75, 1.0]
    assert evidence.confusions == (Confusion("apple", "cherry", 3, 4), Confusion(HOSTILE, "apple", 1, 4))
    assert evidence.curve == Curve("λ <x>", True, 1, (Point(100.0, 0.4, 0.5), Point(1.0, 0.7, 0.8), Point(0.01, 0.6, None)))


def test_a_folder_may_hold_less_or_worse(tmp_path: Path) -> None:
    """No folder, an empty one, a torn archive, rows without labels, an older curve, a λ of 0 on a logarithmic axis: notes, no error."""
    assert read_evidence(None).notes[0].startswith("the folder of this evaluation is not beside its row")
    folder = tmp_path / "cell"
    folder.mkdir()
    assert [note.partition(":")[0] for note in read_evidence(folder).notes] == ["no predictions.npz", "no curve.json"]
    (folder / "predictions.npz").write_bytes(b"PK torn")
    (folder / "curve.json").write_text('[{"val_score": 0.5}]')
    first, second = read_evidence(folder).notes
    assert first.startswith("predictions.npz cannot be read")
    assert second.startswith("curve.json is of another version")
    np.savez(folder / "predictions.npz", predictions=np.array([0, 1]), labels=np.array([-1, -1]))
    (folder / "curve.json").write_text(json.dumps({"x": "λ", "log": True, "chosen": 7, "points": [{"x": 0.0, "val_score": 1.0}]}))
    first, second = read_evidence(folder).notes
    assert first.startswith("predictions.npz holds no pairs")
    assert second.startswith("curve.json holds values that cannot be drawn")
    np.savez(folder / "predictions.npz", predictions=np.array([0, 2, 0]), labels=np.array([0, 0, -1]))
    evidence = read_evidence(folder)
    assert evidence.classes == (ClassScore("class 0", 1, 2),)
    assert "no classes.json: classes go by their numbers" in evidence.notes


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 100, [0, 50, 100]), (71.2, 78.9, [70, 72, 74, 76, 78, 80]), (50, 50, None), (99.91, 99.93, None), (-3, 41, [-20, 0, 20, 40, 60])],
)
def test_axes_have_round_numbers(low: float, high: float, expected: list[float] | None) -> None:
    """Levels by hand; and for any range: they hold it, are evenly spaced, two to seven of them."""
    levels = charts.levels_between(low, high)
    assert expected is None or levels == expected
    assert levels[0] <= low <= high <= levels[-1]
    assert 2 <= len(levels) <= 7
    assert np.allclose(np.diff(levels), levels[1] - levels[0])


def test_a_curve_is_drawn_to_scale(tmp_path: Path) -> None:
    """Points two decades apart lie evenly, the best is the highest; one value alone and equal values are drawn too."""
    fill_folder(tmp_path / "cell")
    drawn = read_evidence(tmp_path / "cell").curve
    assert drawn is not None
    dots = [(float(x), float(y)) for x, y in re.findall(r'<circle class="val" cx="([\d.]+)" cy="([\d.]+)"', charts.curve(drawn, "top-1"))]
    assert dots[1][0] - dots[0][0] == pytest.approx(dots[2][0] - dots[1][0])
    assert dots[1][1] == min(y for _, y in dots)
    assert 'class="best"' in charts.curve(drawn, "top-1")
    for points in ((Point(5.0, 0.5, None),), (Point(10.0, 0.5, None), Point(20.0, 0.5, None))):
        assert "nan" not in charts.curve(Curve("k", False, None, points), "top-1")


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    """References are `data:` URIs or places on the page that exist; nothing is fetched by CSS or script; no placeholder is left."""
    outline = Outline(page)
    assert all(link.startswith(("data:", "#")) for link in outline.links)
    assert {link[1:] for link in outline.links if link.startswith("#")} <= set(outline.ids)
    assert len(outline.ids) == len(set(outline.ids))
    assert not {"iframe", "object", "embed", "base", "img"} & set(outline.tags)
    assert outline.tags.count("script") == 1
    style = page.partition("<style>")[2].partition("</style>")[0]
    script = page.partition("<script>")[2].partition("</script>")[0]
    assert not re.search(r"url\(|@import|https?:", style)
    assert not re.search(r"fetch|XMLHttp|import|https?:|innerHTML|eval", script)
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", page)
    assert "$" not in page.replace("{$1}", "")


def test_hostile_names_stay_text_on_the_page(page: str) -> None:
    """Markup as model, set, class, warning, reason, version and axis: no element, no handler; the text is there as it was."""
    outline = Outline(page)
    assert not outline.handlers
    assert outline.tags.count("b") < 60
    assert "x" not in outline.tags
    assert "<script>alert" not in page
    assert HOSTILE in outline.text
    assert "λ <x>" in outline.text


def test_the_page_tells_everything(page: str) -> None:
    """Selection on test and the failure are on top; classes, confusions, the curve, variants, hashes and sources are there."""
    text = " ".join(Outline(page).text.split())
    head = text.partition("Results")[0]
    assert "1 cell failed." in head
    assert "Selected on test: bamboo-2022." in head
    assert "2 backbones on 11 sets" in head
    for said in ("3 classes, from 25.0 % (apple) to 100.0 % (cherry); median 75.0 %; 1 without an error", "4 errors in 2 pairs", "k=<5>"):
        assert said in text
    for said in ("no bound", "≤ 1.0e-07", "c" * 64, "d" * 64, "arXiv:2203.07845", "the folder of this evaluation is not beside its row"):
        assert said in text
    assert page.count("<details") == 9 + 9 + 1 + 1 + 1
    assert page.count('class="chart"') == 2  # one curve, and bars for `standard` alone: the others have no set of the ten, or 10 %


def test_many_classes_are_shown_as_a_profile() -> None:
    """397 classes: one thin column each, in the order given, hostile names escaped."""
    classes = [ClassScore(f"<{index}>", index, 397) for index in range(397)]
    drawn = charts.profile(classes)
    assert drawn.count("<title>") == 397
    assert "<0>" not in drawn
    assert float(re.findall(r'height="([\d.]+)"><title>', drawn)[-1]) == pytest.approx(150 * 396 / 397, abs=0.1)


@pytest.mark.slow
def test_a_click_sorts_in_a_browser(tmp_path: Path) -> None:
    """Headless Chromium clicks on a set's head twice and on AVG once: falling, rising, and what has no value last; a quiet console."""
    browser = next((found for name in CHROMIUMS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no chromium here: apt-get install chromium")
    values = {"a": 0.09, "b": 0.5, "c": 0.2}
    rows = [row(model=model, value=value, dataset=name) for name in ("cifar10", "pet") for model, value in values.items()]
    text = render(build(map(Record, [*rows, row(model="d", dataset="pet")])), ".html")
    clicks = """<script>
      var heads = document.querySelectorAll("table.sortable thead button"), told = [];
      [2, 2, 4, 0].forEach(function (place) {
        heads[place].click();
        var rows = document.querySelector("table.sortable").tBodies[0].rows;
        told.push(Array.from(rows).map(function (row) { return row.cells[0].textContent; }).join(""));
      });
      document.title = "order " + told.join(" ");
    </script></body>"""
    file = tmp_path / "page.html"
    file.write_text(text.replace("</body>", clicks), encoding="utf-8")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    how = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run(
        [browser, *how, *quiet, f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    assert "<title>order bcad acbd bcad abcd</title>" in done.stdout

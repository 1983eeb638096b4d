"""The demo as its users run it, and its report in a browser."""

import html.parser
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bamboo.cli.main import main
from bamboo.linear_probe.results import read_rows
from bamboo.pretrain.demo_table import LABELS, TABLES
from bamboo.pretrain.log import read_log

CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LIMIT_S = 900  # three minutes on two idle cores; a loaded machine gets more


class References(html.parser.HTMLParser):
    """Collects what a page refers to, its images, its scripts and its language."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: list[str] = []
        self.language: str | None = None
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Notes one element."""
        found = dict(attrs)
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href")]
        if tag == "img":
            self.images.append(found)
        if tag == "html":
            self.language = found.get("lang")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `bamboo demo` in a process of its own and returns its folder."""
    out = tmp_path_factory.mktemp("demo") / "run"
    command = [sys.executable, "-m", "bamboo.cli", "demo", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"[{number}/4] " in done.stderr for number in range(1, 5))
    assert "is ahead of both baselines" in done.stdout
    return out


@pytest.mark.slow
def test_the_pretrained_backbone_is_best_on_digits_it_never_saw(demo: Path) -> None:
    """The rows of results.jsonl: three per table, certified, and the pretrained one ahead by more than three standard errors."""
    for name in TABLES:
        ledger = read_rows(demo / "probe" / name / "results.jsonl")
        assert not ledger.damaged
        assert [row.model.partition(":")[0] for row in ledger.rows] == list(LABELS)
        assert all(row.details["converged"] for row in ledger.rows)
    pretrained, *others = read_rows(demo / "probe" / "unseen" / "results.jsonl").rows
    for other in others:
        assert pretrained.value > other.value + 3 * (pretrained.standard_error + other.standard_error)


@pytest.mark.slow
def test_two_ranks_pretrained(demo: Path) -> None:
    """run.json and the log against what was asked for."""
    record = json.loads((demo / "pretrained" / "run.json").read_bytes())
    assert record["world_size"] == 2
    assert [node["ranks"] for node in record["hardware"]["nodes"]] == [2]
    assert read_log(demo / "pretrained", "eval")[-1]["top1"] > 0.8


@pytest.mark.slow
def test_the_report_needs_nothing_but_itself(demo: Path) -> None:
    """Every reference is a `data:` URI, every image has an alternative text, nothing is scripted, imported or fetched by CSS."""
    text = (demo / "report.html").read_text(encoding="utf-8")
    page = References(text)
    assert page.language == "en"
    assert page.links
    assert all(link.startswith("data:") for link in page.links)
    assert len(page.images) == 3
    assert all((found["src"] or "").startswith("data:image/png;base64,") and found["alt"] for found in page.images)
    assert not {"script", "iframe", "object", "embed", "base"} & set(page.tags)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "$" not in text.replace(">$ <", "")  # a placeholder of the template that was not filled


@pytest.mark.slow
def test_the_report_opens_in_a_browser(demo: Path, tmp_path: Path) -> None:
    """Headless Chromium draws it without a word on its console."""
    browser = next((found for name in CHROMIUMS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no chromium here: apt-get install chromium")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    how = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr", "--window-size=1200,4400"]
    where = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'report.png'}", (demo / "report.html").as_uri()]
    done = subprocess.run([browser, *how, *quiet, *where], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr
    assert (tmp_path / "report.png").stat().st_size > 100_000


@pytest.mark.slow
def test_a_second_run_repeats_nothing(demo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The same command again: every stage is said to be done, no row is added, the report is the same but for its date."""
    rows = {name: (demo / "probe" / name / "results.jsonl").read_bytes() for name in TABLES}
    (demo / "report.html").unlink()
    assert main(["demo", "--out", str(demo)]) == 0
    assert capfd.readouterr().err.count("done before, in") == 4
    assert rows == {name: (demo / "probe" / name / "results.jsonl").read_bytes() for name in TABLES}
    assert (demo / "report.html").exists()


@pytest.mark.slow
def test_an_unfinished_demo_goes_on(demo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A demo that was killed between two probes: the rows that are there are kept, the missing one is made again, and equal."""
    diary, results = demo / "demo.json", demo / "probe" / "centred" / "results.jsonl"
    tree, rows = json.loads(diary.read_bytes()), read_rows(results).rows
    del tree["stages"]["probe"]
    diary.write_text(json.dumps(tree))
    results.write_bytes(b"".join(results.read_bytes().splitlines(keepends=True)[:-1]))
    assert main(["demo", "--out", str(demo)]) == 0
    assert capfd.readouterr().err.count("done before, in") == 3
    again = read_rows(results).rows
    assert [(row.identity, row.value) for row in again] == [(row.identity, row.value) for row in rows]


@pytest.mark.slow
def test_other_settings_want_another_folder(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another seed in the folder of a finished demo: exit code 2, and the setting is named."""
    assert main(["demo", "--out", str(demo), "--seed", "7"]) == 2
    assert "seed was 0, is 7" in capsys.readouterr().err

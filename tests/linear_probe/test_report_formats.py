"""Markdown, LaTeX and CSV of the report: structure, escaping, and every fact of a cell; and the published figures below."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
import yaml

from bamboo.linear_probe.failures import Failure
from bamboo.linear_probe.report import published
from bamboo.linear_probe.report.formats import comma_separated, escape_latex, escape_markdown, latex, markdown
from bamboo.linear_probe.report.grid import measured
from bamboo.linear_probe.report.tables import TEN, Record, Table, build
from bamboo.linear_probe.results import ResultRow
from tests.linear_probe.report_rows import HOSTILE, failure, row


def tables(*rows: ResultRow, failures: tuple[Failure, ...] = ()) -> list[Table]:
    return build([Record(each) for each in rows], failures)


def ten(**changes: str) -> list[Table]:
    """Returns the table of one backbone on all ten sets."""
    return tables(*(row(dataset=name, **changes) for name in TEN))


def unescaped(line: str, separator: str) -> list[str]:
    """Returns a line split at the separators that no backslash precedes."""
    return re.split(rf"(?<!\\){re.escape(separator)}", line)


def test_markdown_by_hand() -> None:
    """Two backbones, one of them best: the whole text against what was written down."""
    text = markdown(map(measured, tables(row(), row(model="a_b", value=0.6))))
    assert text.splitlines() == [
        "**linear probe, protocol standard, 100p, selected on validation, % ± standard error**",
        "",
        "| model | weights | cifar10 (top-1) |",
        "| --- | --- | ---: |",
        "| run | cccccccc | 50.00 ± 0.50 |",
        "| a_b | cccccccc | **60.00** ± 0.50 |",
        "",
        "- bold: the highest of its column, which is no test of whether it is ahead by more than chance",
        "- protocol standard: pppppppp",
        "- data: cifar10 dddddddd",
        "- seed: 0; forward pass: bf16",
    ]


def test_hostile_names_stay_text_in_markdown() -> None:
    """A name of markup, pipes, newlines and backticks as model, set, warning and reason: no tag, no extra field, no new line."""
    hostile = row(model=HOSTILE, dataset=HOSTILE, details={"warnings": [HOSTILE]})
    text = markdown(map(measured, tables(hostile, row(), failures=(failure(model=HOSTILE, dataset="pet", reason=HOSTILE),))))
    assert "<" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert {len(unescaped(line, "|")) for line in lines} == {len(unescaped(lines[0], "|"))}
    assert len([line for line in text.splitlines() if line.startswith("- ⚠")]) == 2
    assert escape_markdown("snake_case _em_ a*b") == r"snake_case \_em\_ a\*b"
    assert escape_markdown("[x](y) `c` a\nb") == r"\[x\](y) \`c\` a b"


def test_latex_is_balanced_and_escaped() -> None:
    """No LaTeX here: braces and environments balance, every row has as many fields as the head, no special letter is left bare."""
    hostile = row(model=HOSTILE, details={"warnings": [f"λ {HOSTILE} 漢"]})
    (table,) = tables(hostile, row(dataset="pet", value=0.7), failures=(failure(dataset="dtd", reason=HOSTILE),))
    text = latex([measured(table)])
    bare = re.sub(r"\\[\\{}$&#%_]", "", text.partition("\n")[2])  # without the first line, a comment, and without what is escaped
    assert bare.count("{") == bare.count("}") > 0
    depth = [bare[:at].count("{") - bare[:at].count("}") for at in range(len(bare))]
    assert min(depth) >= 0
    assert re.findall(r"\\begin\{(\w+)\}", text) == ["table", "tabular"]
    assert re.findall(r"\\end\{(\w+)\}", text) == ["tabular", "table"]
    assert not set("#_%~") & set(re.sub(r"\\\w+", "", bare))
    assert bare.count("$") % 2 == 0
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert {len(unescaped(line, "&")) for line in rows} == {len(measured(table).heads)}
    assert len(rows) == 1 + len(table.lines)
    assert all(text.count(rule) == 1 for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert re.search(r"\\begin\{tabular\}\{(\w+)\}", text).group(1) == "llrrrr"  # type: ignore[union-attr]  # a miss fails the test as well
    assert not [line for line in text.splitlines() if line.startswith("[")]  # after \\ that would be an optional argument


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b & 5% #1 {x} $y$", r"a\_b \& 5\% \#1 \{x\} \$y\$"),
        (r"\x~^<>|", r"\textbackslash{}x\textasciitilde{}\textasciicircum{}\textless{}\textgreater{}\textbar{}"),
        ("1 ± 2 – é", r"1 $\pm$ 2 -- é"),
        ("ﬁ 漢\tz", "fi [U+6F22] z"),
        ("[1]", "{[}1{]}"),
    ],
)
def test_latex_letters(text: str, expected: str) -> None:
    """Each special letter against its command, by hand."""
    assert escape_latex(text) == expected


def test_csv_holds_every_fact() -> None:
    """A measured and a failed cell, read back by csv: a line each, all facts of the row, empty where there is none."""
    second = row(model=HOSTILE, dataset="pet", metric="mean_per_class", value=0.45, seconds={"vote": 9.0}, certificate={}, seed=4)
    text = comma_separated(tables(row(seed=1), row(), second, failures=(failure(dataset="dtd", reason="a,\n b"),)))
    lines = list(csv.DictReader(io.StringIO(text)))
    assert [(line["status"], line["dataset"]) for line in lines] == [("measured", "cifar10"), ("failed", "dtd"), ("measured", "pet")]
    first, failed, pet = lines
    assert None not in first
    expected = {
        "model": "run", "weights": "c" * 64, "protocol": "standard", "subset": "100p", "selected_on": "validation", "metric": "top1",
        "value": "0.5", "standard_error": "0.005", "low": "0.49", "high": "0.51", "top1": "0.5", "mean_per_class": "0.45",
        "mean_per_class_standard_error": "0.006", "relative_gap": "1e-07", "num_train": "1000", "num_val": "200", "num_test": "500",
        "num_rows": "2", "seed": "0", "seconds_features": "2.5", "seconds_vote": "", "version_torch": "9.9", "data_hash": "d" * 64,
        "protocol_hash": "p" * 64, "date": "2026-01-01T00:00:00+00:00", "reason": "",
    }  # fmt: skip
    assert {name: first[name] for name in expected} == expected
    assert json.loads(first["chosen"]) == {"penalty": 0.25}
    assert (failed["reason"], failed["value"], failed["weights"]) == ("a, b", "", "c" * 64)
    assert (pet["model"], pet["relative_gap"], pet["seconds_vote"], pet["low"]) == (HOSTILE, "", "9.0", "0.44")


def test_every_published_figure_has_a_source_and_agrees_with_its_mean() -> None:
    """published.yaml itself: each value in (0, 100) under a known source; the mean of ten equals the stated one at its decimals."""
    tree = yaml.safe_load(published.FILE.read_text(encoding="utf-8"))
    assert all(source["title"] and source["link"] and 2015 <= source["year"] <= 2026 for source in tree["sources"].values())
    cited = {group["source"] for entry in tree["rows"] for group in entry["numbers"]}
    assert cited == set(tree["sources"])
    checked = 0
    for entry in tree["rows"]:
        assert all(isinstance(group["recalled"], bool) for group in entry["numbers"])
        values = {name: value for group in entry["numbers"] for name, value in group["values"].items()}
        assert all(0 < value < 100 for value in values.values())
        if "mean" in entry:
            assert set(values) == set(TEN)
            unit = 10.0 ** -len(str(entry["mean"]).partition(".")[2])
            assert sum(values.values()) / 10 == pytest.approx(entry["mean"], abs=0.5 * unit + 1e-9), entry["model"]
            checked += 1
    assert checked == 16


def test_recalled_figures_only_on_request() -> None:
    """`seen`: no recalled figure, no mean over fewer than ten; `all`: marked ones too; `none`: nothing; never among measured lines."""
    seen, everything = published.beside(ten(), "seen"), published.beside(ten(), "all")
    assert seen is not None
    assert everything is not None
    assert published.beside(ten(), "none") is None
    assert len(everything.lines) == len(published.load().rows) > len(seen.lines)
    texts = [[entry.text for entry in line] for line in seen.lines]
    assert not [text for line in texts for text in line if "°" in text]
    (partial,) = (line for line in seen.lines if line[0].text == "CLIP ViT-L/14")
    assert [entry.text for entry in partial[3:-1]] == ["98.0", "87.5", "95.2", "–", "–", "–", "–", "82.1", "–", "69.4", "–"]
    assert partial[-2].after == "(5 of 10)"
    (whole,) = (line for line in everything.lines if line[0].text == "CLIP ViT-L/14")
    assert whole[-2].text == "89.57°"
    bamboo = [line for line in seen.lines if line[1].text == "Bamboo-CLS"]
    assert [line[-2].text for line in bamboo] == ["87.33", "91.65"]
    assert all("SELECTED ON TEST" in line[2].text for line in bamboo)
    assert not any(entry.is_best for line in everything.lines for entry in line)
    assert all(line[-1].text.startswith("[") for line in everything.lines)


def test_published_figures_stand_beside_the_sets_that_were_measured() -> None:
    """Two sets measured: two columns and no mean; other sets, or only a part of the training images: no published figures at all."""
    grid = published.beside(tables(row(), row(dataset="food")), "seen")
    assert grid is not None
    assert [head.name for head in grid.heads] == ["model", "pretrained on", "protocol", "cifar10", "food", "source"]
    assert published.beside(tables(row(dataset="own")), "seen") is None
    assert published.beside(ten(subset="10p"), "seen") is None


def test_a_figure_without_a_source_is_refused(tmp_path: Path) -> None:
    """A file with an unknown source, a set given twice, a set that is none of the ten: ValueError with the model's name."""
    good = yaml.safe_load(published.FILE.read_text(encoding="utf-8"))
    for number, (source, values) in enumerate([("nowhere", {"cifar10": 1.0}), ("clip", {"zebra": 1.0})]):
        file = tmp_path / f"{number}.yaml"
        numbers = [{"source": source, "recalled": True, "values": values}]
        good["rows"] = [{"model": "x", "data": "", "protocol": "p", "selected_on": "test", "numbers": numbers}]
        file.write_text(yaml.safe_dump(good))
        with pytest.raises(ValueError, match="x: "):
            published.load(file)

"""The tables of `bamboo report`: what stands in which, what is averaged, what is said below; and the verb."""

from pathlib import Path

import numpy as np
import pytest

from bamboo.cli.main import main
from bamboo.linear_probe.failures import Failure
from bamboo.linear_probe.report.cli import Collected, collect, markdown_tables
from bamboo.linear_probe.report.grid import Grid, measured
from bamboo.linear_probe.report.tables import TEN, Record, Table, build
from bamboo.linear_probe.results import ResultRow, append_row
from tests.linear_probe.report_rows import failure, row


def tables(*rows: ResultRow, failures: tuple[Failure, ...] = ()) -> list[Table]:
    return build([Record(each) for each in rows], failures)


def shown(grid: Grid) -> list[list[str]]:
    """Returns the fields of a grid as text, best ones between stars."""
    return [[f"*{entry.text}*" if entry.is_best else " ".join((entry.text, entry.after)).strip() for entry in line] for line in grid.lines]


def notes(grid: Grid) -> str:
    return "\n".join(f"{note.kind}: {note.text}" for note in grid.notes)


def ten(model: str, values: np.ndarray, errors: np.ndarray) -> list[ResultRow]:
    """Returns a row per set of the ten."""
    pairs = zip(TEN, values.tolist(), errors.tolist(), strict=True)
    return [row(model=model, dataset=name, value=value, standard_error=error) for name, value, error in pairs]


def test_tables_never_mix_protocols_subsets_or_selections() -> None:
    """Rows of three protocols, two subsets and two ways of selection: a table each, and in every table only rows of its kind."""
    kinds = [("knn", "100p", "validation"), ("standard", "10p", "validation"), ("standard", "5shot", "validation")]
    kinds += [("standard", "100p", "validation"), ("bamboo-2022", "100p", "test"), ("standard", "100p", "test"), ("mine", "1p", "nothing")]
    rows = [row(protocol=protocol, subset=subset, selected_on=selected) for protocol, subset, selected in kinds]
    found = tables(*rows)
    assert [(table.protocol, table.subset, table.selected_on) for table in found] == [
        ("standard", "100p", "test"),
        ("standard", "100p", "validation"),
        ("standard", "10p", "validation"),
        ("standard", "5shot", "validation"),
        ("bamboo-2022", "100p", "test"),
        ("knn", "100p", "validation"),
        ("mine", "1p", "nothing"),
    ]
    for table in found:
        assert {(cell.row.protocol, cell.row.subset, cell.row.selected_on) for cell in table.cells} == {
            (table.protocol, table.subset, table.selected_on)
        }
    assert "SELECTED ON TEST" in measured(found[0]).title
    assert measured(found[0]).notes[0].text.startswith("SELECTED ON TEST")
    assert "SELECTED ON TEST" not in markdown_tables(Collected((Record(rows[0]),), ()))


def test_sets_stand_in_the_order_of_the_suite() -> None:
    """Sets written in another order, two of one's own and ImageNet among them: the ten first, in order; metrics in the head."""
    names = ["zebra", "imagenet", "aircraft", "own", "food", "cifar10"]
    (table,) = tables(*(row(dataset=name, metric="mean_per_class" if name == "aircraft" else "top1") for name in names))
    heads = [(head.name, head.below) for head in measured(table).heads]
    assert heads == [
        ("model", ""),
        ("weights", ""),
        ("cifar10", "top-1"),
        ("food", "top-1"),
        ("aircraft", "mean per class"),
        ("imagenet", "top-1"),
        ("own", "top-1"),
        ("zebra", "top-1"),
        ("AVG", "of 3"),
    ]


def test_the_average_and_its_error() -> None:
    """Ten random cells and one outside the ten against numpy: mean, √(Σ se²) / 10; the best value of each column is marked."""
    rng = np.random.default_rng(0)
    values, errors = rng.uniform(0.2, 0.7, 10), rng.uniform(0.001, 0.02, 10)
    (table,) = tables(*ten("one", values, errors), *ten("two", values + 0.1, errors), row(model="one", dataset="own", value=0.9))
    average = table.average(table.lines[0])
    assert average.value == pytest.approx(values.mean(), rel=1e-12)
    assert average.standard_error == pytest.approx(np.sqrt((errors**2).sum()) / 10, rel=1e-12)
    one, two = shown(measured(table))
    assert one[-1] == f"{100 * values.mean():.2f} ± {100 * np.sqrt((errors**2).sum()) / 10:.2f}"
    assert [text.startswith("*") for text in two] == [False, False, *[True] * 10, False, True]
    assert one[-2] == "90.00 ± 0.50"  # alone in its column: nothing to be better than


def test_no_average_over_missing_cells() -> None:
    """One of ten cells missing: – and how many are there, instead of a mean that would not compare; one set alone: no AVG at all."""
    values, errors = np.full(10, 0.5), np.full(10, 0.01)
    (table,) = tables(*ten("whole", values, errors), *ten("torn", values, errors)[:9])
    whole, torn = shown(measured(table))
    assert whole[-1].startswith("50.00")
    assert torn[-2:] == ["–", "– (9 of 10)"]
    assert all(entry.is_best is False for entry in measured(table).lines[1][-2:])
    (single,) = tables(row())
    assert [head.name for head in measured(single).heads] == ["model", "weights", "cifar10"]


def test_a_line_is_one_set_of_weights_and_the_last_row_counts() -> None:
    """Rows of a cell out of order, with three seeds: the newest is shown and the others are counted; other weights are another line."""
    rows = [row(value=0.6, seed=1, date="2026-03-01T00:00:00+00:00"), row(value=0.7, seed=2, date="2026-02-01T00:00:00+00:00"), row()]
    (table,) = tables(*rows, row(value=0.1, checkpoint_hash="f" * 64))
    assert shown(measured(table)) == [["run", "cccccccc", "*60.00*"], ["run", "ffffffff", "10.00 ± 0.50"]]
    assert "run on cifar10 (3 rows, seeds 0, 1, 2)" in notes(measured(table))


def test_what_makes_numbers_incomparable_is_said() -> None:
    """Two versions of a protocol and of a set's data in one table: alerts; digests, hashes, seeds, precision below."""
    warned = row(dataset="pet", details={"warnings": ["λ at the edge"]})
    (table,) = tables(row(), row(model="other", protocol_hash="q" * 64, data_hash="1" * 64, seed=3), warned)
    text = notes(measured(table))
    assert "alert: 2 versions of protocol standard (pppppppp, qqqqqqqq)" in text
    assert "alert: cifar10: 2 versions of the data (dddddddd, 11111111)" in text
    assert "alert: warning: run on pet: λ at the edge" in text
    assert "fact: seeds: 0, 3; forward pass: bf16" in text
    (plain,) = tables(row())
    assert "alert" not in notes(measured(plain))
    assert "fact: protocol standard: pppppppp\nfact: data: cifar10 dddddddd\nfact: seed: 0; forward pass: bf16" in notes(measured(plain))


def test_failed_cells() -> None:
    """A failure without a row is shown with its reason; one that came again is not shown twice, an outdated one not at all."""
    older = failure(dataset="cifar10", date="2025-12-31T23:59:59+00:00")
    twice = failure(reason="an older reason", date="2026-01-01T12:00:00+00:00")
    (table,) = tables(row(), failures=(older, twice, failure()))
    assert shown(measured(table)) == [["run", "cccccccc", "50.00 ± 0.50", "failed", "– (1 of 2)"]]
    assert notes(measured(table)).count("failed: run on pet: no layout") == 1
    assert "older reason" not in notes(measured(table))
    assert "later attempt" not in notes(measured(table))
    first, second = tables(row(), failures=(failure(model="new", subset="10p", reason="out of memory"),))
    assert not first.failures
    assert shown(measured(second)) == [["new", "–", "failed"]]


def test_a_row_outlives_a_later_failure() -> None:
    """A finished cell whose repetition failed (a mistyped root) keeps its number, with a remark that says so."""
    (table,) = tables(row(), failures=(failure(dataset="cifar10", reason="no such folder"),))
    assert shown(measured(table)) == [["run", "cccccccc", "50.00 ± 0.50"]]
    assert "a later attempt failed (2026-01-02T00:00:00+00:00)" in notes(measured(table))
    assert "no such folder" in notes(measured(table))


def test_failures_of_namesakes_stay_apart() -> None:
    """Two runs that both call themselves `run`: the failure of one goes to neither the number nor the line of the other."""
    mine, other = row(details={"checkpoint": "a/run"}), row(checkpoint_hash="d" * 64, dataset="pet", details={"checkpoint": "b/run"})
    (table,) = tables(mine, other, failures=(failure(model="a/run", checkpoint="a/run"),))
    assert [(line.weights[0], [column.dataset for column in line.failures]) for line in table.lines] == [("c", ["pet"]), ("d", [])]


def test_a_line_of_two_settings_is_marked() -> None:
    """Cells of one model at two precisions, or two preprocessings, in one line: an alert."""
    for changes in ({"precision": "fp32"}, {"preprocessing": "other"}):
        (table,) = tables(row(), row(dataset="pet", **changes))
        assert "differ in image preprocessing or precision" in notes(measured(table))
    assert "differ in image" not in notes(measured(tables(row(), row(dataset="pet"))[0]))


def test_a_failure_before_the_name_was_known() -> None:
    """A run that could not be opened failed under its path; once a row of that checkpoint is there, the failure is that model's, and a
    later row of the cell outdates it. One with a label of the user's keeps it."""
    early = failure(model="runs/run", dataset="cifar10", date="2025-12-31T00:00:00+00:00")
    opened = row(details={"checkpoint": "runs/run"})
    (table,) = tables(opened, failures=(early,))
    assert not table.failures
    (table,) = tables(opened, failures=(failure(model="runs/run"),))
    assert [line.model for line in table.lines] == ["run"]
    (table,) = tables(opened, failures=(failure(model="mine"),))
    assert [line.model for line in table.lines] == ["run", "mine"]


def test_rows_are_found_with_their_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Files and folders that overlap, a folder with failures only, a torn line: every row once, with the folder it lies in."""
    append_row(tmp_path / "one" / "results.jsonl", row())
    with (tmp_path / "one" / "results.jsonl").open("a") as file:
        file.write('{"model": "to')
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "failures.jsonl").write_text(
        '{"model": "m", "checkpoint": "m", "dataset": "pet", "protocol": "knn", "subset": "100p", "reason": "r", '
        '"date": "2026-01-01"}\nnot json\n'
    )
    found = collect([tmp_path, tmp_path / "one" / "results.jsonl"])
    assert [(record.row.model, record.folder) for record in found.records] == [("run", tmp_path / "one" / "cell")]
    assert [each.model for each in found.failures] == ["m"]
    assert "not a row:" in capsys.readouterr().err
    assert markdown_tables(found).count("| --- |") == 2


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`bamboo report` with files and folders by position, to every format; published figures or none; wrong names are an error."""
    append_row(tmp_path / "one" / "results.jsonl", row())
    append_row(tmp_path / "two" / "results.jsonl", row(model="second"))
    assert main(["report", str(tmp_path / "one" / "results.jsonl"), str(tmp_path / "two"), "--published", "none"]) == 0
    assert "| second | cccccccc | 50.00 ± 0.50 |" in (text := capsys.readouterr().out).replace("**", "")
    assert "published" not in text
    begins = {".md": "**linear probe", ".html": "<!doctype html>", ".csv": "status,model", ".tex": "% needs"}
    for suffix, beginning in begins.items():
        assert main(["report", str(tmp_path), "--out", str(tmp_path / f"table{suffix}")]) == 0
        assert (tmp_path / f"table{suffix}").read_text().startswith(beginning)
    assert "2 cells, 1 tables" in capsys.readouterr().out
    assert "published, under other protocols" in (tmp_path / "table.md").read_text()
    assert main(["report", str(tmp_path / "three"), "--out", "table.pdf"]) == 2
    errors = capsys.readouterr().err
    assert "three: no such file" in errors
    assert "must end in .md, .csv, .tex or .html" in errors
    (tmp_path / "empty").mkdir()
    assert main(["report", str(tmp_path / "empty")]) == 2

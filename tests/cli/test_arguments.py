"""The command line made from settings, against the objects that each line should spell."""

from pathlib import Path
from typing import Any

import pydantic
import pytest

from bamboo.cli import arguments
from bamboo.cli.config import leaves, settings
from bamboo.cli.errors import UserError


@settings
class Optim:
    """A section."""

    learning_rate: float = 0.1
    """Step size, in 100% of cases."""
    momentum: float = 0.9
    """Memory."""


@settings
class Pack:
    """A verb with two words by position."""

    source: Path
    """Where from."""
    out: Path = Path("shards")
    """Where to."""
    samples_per_shard: int = 1000
    """How many."""
    overwrite: bool = False
    """Whether."""
    note: str | None = None
    """Free text."""
    sizes: tuple[int, ...] = (64,)
    """Pixels."""
    optim: Optim = Optim()
    """How."""


def parse(*argv: str, positional: tuple[str, ...] = ("source", "out")) -> Pack:
    return arguments.parse(Pack, argv, prog="bamboo pack", doc="Packs.", positional=positional)


BASE = Pack(source=Path("a"))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["a"], BASE),
        (["--source", "a"], BASE),
        (["--source=a"], BASE),
        (["a", "b"], Pack(source=Path("a"), out=Path("b"))),
        (["a", "--overwrite", "b"], Pack(source=Path("a"), out=Path("b"), overwrite=True)),
        (["--note", "n", "a", "--sizes", "[1, 2]", "b"], Pack(source=Path("a"), out=Path("b"), note="n", sizes=(1, 2))),
        (["a", "--sizes", "1", "2", "--note", "n"], Pack(source=Path("a"), sizes=(1, 2), note="n")),
        (["a", "--sizes", "3"], Pack(source=Path("a"), sizes=(3,))),
        (["--overwrite", "a"], Pack(source=Path("a"), overwrite=True)),
        (["a", "--overwrite"], Pack(source=Path("a"), overwrite=True)),
        (["a", "--overwrite", "false"], BASE),
        (["a", "--overwrite=false"], BASE),
        (["a", "--overwrite", "--note", "n"], Pack(source=Path("a"), overwrite=True, note="n")),
        (["a", "--samples-per-shard", "5"], Pack(source=Path("a"), samples_per_shard=5)),
        (["a", "--samples_per_shard", "5"], Pack(source=Path("a"), samples_per_shard=5)),
        (["a", "--samples-per_shard=5"], Pack(source=Path("a"), samples_per_shard=5)),
        (["a", "--optim.learning-rate", "1e-3"], Pack(source=Path("a"), optim=Optim(learning_rate=1e-3))),
        (["a", "--optim.learning-rate", "-1e-3"], Pack(source=Path("a"), optim=Optim(learning_rate=-1e-3))),
        (["a", "--note", "-x"], Pack(source=Path("a"), note="-x")),
        (["a", "--note=--x"], Pack(source=Path("a"), note="--x")),
        (["a", "--note="], Pack(source=Path("a"), note=None)),
        (["a", "--note", "b = c # d"], Pack(source=Path("a"), note="b = c # d")),
        (["--", "--help"], Pack(source=Path("--help"))),
        (["a", "--note", "1", "--note", "two"], Pack(source=Path("a"), note="two")),
    ],
)
def test_a_line_spells_settings(argv: list[str], expected: Pack) -> None:
    """Options, words by position and flags in every order."""
    assert parse(*argv) == expected


def test_options_override_the_file(tmp_path: Path) -> None:
    """--config first, wherever it stands."""
    file = tmp_path / "c.yaml"
    file.write_text("source: x\nsamples_per_shard: 7\noptim: {momentum: 0.5}\n")
    expected = Pack(source=Path("a"), samples_per_shard=7, optim=Optim(learning_rate=2.0, momentum=0.5))
    assert parse("a", "--optim.learning_rate", "2", "--config", str(file)) == expected
    assert parse("--config", str(file)).source == Path("x")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["a", "--samples-per-shrd", "5"], "unknown option --samples-per-shrd; did you mean 'samples_per_shard'?"),
        (["a", "--learning-rate", "5"], "unknown option --learning-rate; did you mean 'optim.learning_rate'?"),
        (["a", "--sample", "5"], "unknown option --sample"),
        (["a", "b", "c"], "unexpected argument 'c'; see bamboo pack --help"),
        (["a", "--note"], "--note: a value must follow; see bamboo pack --help"),
        (["a", "--note", "--overwrite"], "--note: a value must follow"),
        (["a", "--config"], "--config: a value must follow"),
        (["a", "--config", "none.yaml"], "--config=none.yaml: no such file"),
        (["a", "--source", "b"], "source is given twice: 'a' by position and --source=b"),
        (["a", "--overwrite=maybe"], "overwrite='maybe': input should be a valid boolean"),
        (["a", "--samples-per-shard", "many"], "samples_per_shard='many': input should be a valid integer"),
        (["a", "--sizes", "[1, x]"], "sizes.1='x': input should be a valid integer"),
        ([], "source: required, and not given"),
        (["-x"], "unknown option -x"),
    ],
)
def test_a_wrong_line_is_the_users_mistake(argv: list[str], said: str) -> None:
    """One mistake each, against the words that explain it."""
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert said in str(caught.value)


def test_several_wrong_values_are_said_at_once() -> None:
    """Three options, one message."""
    with pytest.raises(UserError) as caught:
        parse("a", "--sizes", "x", "--samples-per-shard", "y", "--optim.momentum", "z")
    assert str(caught.value).count("\n") == 3


def help_text(cls: type[Any], *argv: str, capsys: pytest.CaptureFixture[str], positional: tuple[str, ...] = ()) -> str:
    with pytest.raises(SystemExit) as caught:
        arguments.parse(cls, argv, prog="bamboo pack", doc="Packs 100% of it.", positional=positional)
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["a", "--note", "n", "--help"], ["--unknown", "--help"]])
def test_help_lists_every_setting_with_its_default(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Help of a small verb: usage with the positions, each option dashed, its text and default."""
    text = " ".join(help_text(Pack, *argv, capsys=capsys, positional=("source", "out")).split())
    assert text.startswith("usage: bamboo pack SOURCE [OUT] [--config FILE] [--setting VALUE …] Packs 100% of it.")
    for leaf in leaves(Pack):
        assert f"--{leaf.key.replace('_', '-')} " in text
    assert "Where from. (required)" in text
    assert "Step size, in 100% of cases. (default: 0.1)" in text


def many_settings(sections: int, fields: int) -> type[Any]:
    names = [f"a_long_setting_name_{i}" for i in range(fields)]
    section = type("Section", (), {"__annotations__": dict.fromkeys(names, int), **dict.fromkeys(names, 1), "__doc__": "Many."})
    made = settings(section)
    keys = {f"section_{i}": made for i in range(sections)}
    return settings(type("Many", (), {"__annotations__": keys, "__doc__": "Very many.", **{key: made() for key in keys}}))


@pytest.mark.parametrize(("sections", "fields"), [(1, 20), (2, 12), (8, 15), (10, 12)])
def test_help_of_many_settings_fits_a_screen(sections: int, fields: int, capsys: pytest.CaptureFixture[str]) -> None:
    """20 to 120 settings against 40 lines of 120 columns, with every setting named; --help-all has one line for each."""
    cls = many_settings(sections, fields)
    text = help_text(cls, "--help", capsys=capsys)
    assert text.count("\n") <= 40
    assert max(map(len, text.splitlines())) <= 120
    assert text.count("a_long_setting_name") + text.count("a-long-setting-name") == sections * fields
    full = help_text(cls, "--help-all", capsys=capsys)
    assert full.count("a-long-setting-name") == sections * fields


def test_options_are_what_the_golden_file_freezes() -> None:
    """One line a setting: its key and default, no default for None."""
    assert arguments.options(Pack) == [
        "--source required",
        "--out default: shards",
        "--samples_per_shard default: 1000",
        "--overwrite default: False",
        "--note",
        "--sizes default: 64",
        "--optim.learning_rate default: 0.1",
        "--optim.momentum default: 0.9",
    ]


def test_a_required_setting_with_a_bound_is_shown_as_required() -> None:
    """pydantic's Field without a default, against the word."""

    @settings
    class Bounded:
        """One bounded field."""

        rate: float = pydantic.Field(gt=0)
        """Positive."""

    assert arguments.options(Bounded) == ["--rate required"]


@settings
class Report:
    """A verb whose last words are a list."""

    title: str
    """First."""
    results: list[Path]
    """The rest."""


@pytest.mark.parametrize("argv", [["t", "a b", "c"], ["t", "[a b, c]"], ["t", "--results", "a b", "c"]])
def test_the_last_positional_list_takes_the_words_that_are_left(argv: list[str]) -> None:
    """Words, a YAML list and an option against the same list of two paths, one of them with a space."""
    read = arguments.parse(Report, argv, prog="bamboo report", doc="", positional=("title", "results"))
    assert read == Report(title="t", results=[Path("a b"), Path("c")])


@pytest.mark.parametrize(
    ("argv", "said"), [(["a", "--sizes", "1", "x"], "sizes"), (["a", "--sizes", "--note", "n"], "a value must follow")]
)
def test_a_wrong_word_in_a_list(argv: list[str], said: str) -> None:
    """A word that is no number, and no word at all: an error that names the option."""
    with pytest.raises(UserError, match=said):
        parse(*argv)

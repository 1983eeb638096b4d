"""Settings: YAML over defaults, overrides over YAML; each kind of mistake against the words that its message must hold."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bamboo.cli import arguments
from bamboo.cli.config import build, dump, leaves, load, settings, to_yaml
from bamboo.cli.errors import EXIT_USER, UserError


@settings
class Optim:
    """A section."""

    name: Literal["sgd", "adamw"] = "sgd"
    """Which."""
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 0.1
    """Step size."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Two of them."""


@settings
class Mixup:
    """A section that may be absent."""

    alpha: float = 0.2
    """Strength."""

    def problems(self) -> list[str]:
        """Returns what does not fit."""
        return [f"alpha={self.alpha}: use at most 1"] if self.alpha > 1 else []


@settings
class Run:
    """All kinds of fields."""

    out: Path
    """Where."""
    workers: Annotated[int, pydantic.Field(ge=0, le=8)] = 2
    """How many."""
    shards: int = 4
    """Of the data."""
    seed: int | None = None
    """Chance."""
    length: int | str = 10
    """Steps, or words such as 3 epochs."""
    sizes: tuple[int, ...] = (64,)
    """Pixels."""
    extra: dict[str, Any] = pydantic.Field(default_factory=dict)
    """Free."""
    resume: bool = False
    """Whether."""
    optim: Optim = Optim(learning_rate=0.5)
    """How."""
    mixup: Mixup | None = None
    """Whether and how."""

    def problems(self) -> list[str]:
        """Returns what does not fit."""
        if self.workers > self.shards:
            return [f"workers={self.workers}: {self.shards} shards cannot feed them; use workers<={self.shards}"]
        return []


def from_yaml(folder: Path, text: str, **overrides: object) -> Run:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return load(Run, file, {"out": "runs/a", **overrides})


def refusal(folder: Path, text: str, **overrides: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        from_yaml(folder, text, **overrides)
    assert caught.value.exit_code == EXIT_USER
    return str(caught.value).splitlines()


def test_yaml_over_defaults_and_overrides_over_yaml(tmp_path: Path) -> None:
    """Three layers, written out by hand."""
    run = from_yaml(tmp_path, "workers: 3\noptim:\n  name: adamw\n", workers=1, **{"optim.betas": [0.5, 0.9]})
    assert run == Run(out=Path("runs/a"), workers=1, optim=Optim(name="adamw", learning_rate=0.5, betas=(0.5, 0.9)))
    assert isinstance(run.out, Path)


def test_settings_are_frozen_and_keyword_only() -> None:
    """A settings object cannot be changed, nor made by position."""
    run = Run(out=Path("a"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.workers = 3  # type: ignore[misc]  # the assignment is what must fail
    with pytest.raises(pydantic.ValidationError):
        Run(Path("a"))  # type: ignore[misc]  # the position is what must fail


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    """Nothing, or comments alone."""
    assert from_yaml(tmp_path, "") == from_yaml(tmp_path, "# nothing\n") == Run(out=Path("runs/a"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("worker: 1", "worker: unknown setting; did you mean 'workers'?"),
        ("optim: {learning_rat: 1.0}", "optim.learning_rat: unknown setting; did you mean 'optim.learning_rate'?"),
        ("learning_rate: 1.0", "learning_rate: unknown setting; did you mean 'optim.learning_rate'?"),
        ("optimm: {}", "optimm: unknown setting; did you mean 'optim'?"),
        ("mixup: {alpa: 1}", "mixup.alpa: unknown setting; did you mean 'mixup.alpha'?"),
        ("zzz: 1", "zzz: unknown setting; the settings are: out, workers, shards,"),
        ("workers: two", "workers='two': input should be a valid integer"),
        ("workers: 1.5", "workers=1.5: input should be a valid integer"),
        ("workers: '2'", "workers='2': input should be a valid integer"),
        ("workers: true", "workers=True: input should be a valid integer"),
        ("workers: 9", "workers=9: input should be less than or equal to 8"),
        ("workers:", "workers=None: input should be a valid integer"),
        ("resume: 1", "resume=1: input should be a valid boolean"),
        ("out: [a]", "out=['a']: input should be a valid string"),
        ("sizes: 64", "sizes=64: input should be a valid array"),
        ("sizes: [64, x]", "sizes.1='x': input should be a valid integer"),
        ("length: [1]", "length=[1]: input should be a valid integer"),
        ("optim: 3", "optim=3: input should be an object"),
        ("optim: {name: adam}", "optim.name='adam': input should be 'sgd' or 'adamw'"),
        ("optim: {learning_rate: 0}", "optim.learning_rate=0: input should be greater than 0"),
        ("optim: {betas: [0.9]}", "optim.betas.1: required, and not given"),
        ("mixup: {alpha: 2}", "mixup.alpha=2.0: use at most 1"),
        ("shards: 1", "workers=2: 1 shards cannot feed them; use workers<=1"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(tmp_path: Path, text: str, line: str) -> None:
    """One mistake at a time against the line that explains it; a bad YAML value for `out` beats no override."""
    overrides = {} if text.startswith("out") else {"out": "a"}
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=re.escape(line)) as caught:
        load(Run, file, overrides)
    assert str(caught.value).startswith(f"{file} is not valid:\n  ")


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    """Four mistakes of four kinds in one message, each once."""
    lines = refusal(tmp_path, "worker: 1\nresume: 1\noptim: {name: adam, betas: [a, 1]}\n")
    assert len(lines) == 1 + 4
    for start in ("  worker: unknown", "  resume=1:", "  optim.name='adam':", "  optim.betas.0='a':"):
        assert sum(line.startswith(start) for line in lines) == 1, start


def test_problems_across_fields_are_said_at_once_with_their_section(tmp_path: Path) -> None:
    """The `problems` of the whole and of a section, together."""
    assert refusal(tmp_path, "shards: 1\nmixup: {alpha: 3}\n")[1:] == [
        "  mixup.alpha=3.0: use at most 1",
        "  workers=2: 1 shards cannot feed them; use workers<=1",
    ]


def test_what_is_required_must_be_given() -> None:
    """No file, no override: the missing setting is named."""
    with pytest.raises(UserError, match=r"settings is not valid:\n  out: required, and not given"):
        load(Run, None, {})


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E5", 1e5), ("+2.5e+1", 25.0), ("5e-4", 5e-4), (".5", 0.5), ("3", 3.0), ("1_0e1", 100)],
)
def test_numbers_are_read_as_everybody_means_them(tmp_path: Path, text: str, value: float) -> None:
    """Spellings of floats that YAML 1.1 takes for strings, against Python's float."""
    assert from_yaml(tmp_path, f"optim: {{learning_rate: {text}}}").optim.learning_rate == value


def test_a_date_is_text(tmp_path: Path) -> None:
    """YAML 1.1 would read 2024-1-1 as a date and give back 2024-01-01."""
    assert from_yaml(tmp_path, "length: 2024-1-1").length == "2024-1-1"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "holds a list, not a mapping of settings"),
        ("just words", "holds a str, not a mapping of settings"),
        ("a: [1\n", "not readable as YAML"),
        ("a:\n\t- 1\n", "not readable as YAML"),
        ("out: !!python/object/apply:os.getcwd []", "not readable as YAML"),
        ("workers: 1\nworkers: 2\n", "'workers' is given twice"),
        ("optim:\n  name: sgd\n  name: adamw\n", "'name' is given twice"),
        ("extra: &a {b: *a}\n", "not a plain tree of settings"),
        ("? [1, 2]\n: 3\n", "not readable as YAML"),
    ],
)
def test_a_file_that_is_no_tree_of_settings(tmp_path: Path, text: str, said: str) -> None:
    """Files that are not YAML, not a mapping, or say a thing twice."""
    (line,) = refusal(tmp_path, text)
    assert said in line
    assert str(tmp_path / "run.yaml") in line


def test_yaml_anchors_and_merges_are_no_repetition(tmp_path: Path) -> None:
    """A key that overrides a merged one is not given twice."""
    run = from_yaml(tmp_path, "extra:\n  base: &base {a: 1, b: 2}\n  other: {<<: *base, b: 3}\n")
    assert run.extra == {"base": {"a": 1, "b": 2}, "other": {"a": 1, "b": 3}}


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Missing, a folder, not UTF-8: each the user's mistake, named as --config."""
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("out: é".encode("latin-1"))
    for file, said in ((tmp_path / "none.yaml", "no such file"), (tmp_path, "cannot be read"), (latin, "cannot be read")):
        with pytest.raises(UserError, match=rf"--config={re.escape(str(file))}: {said}"):
            load(Run, file, {})


def test_a_section_that_may_be_absent(tmp_path: Path) -> None:
    """None by default and when written, made by its first override, over `null` in the file too."""
    assert from_yaml(tmp_path, "mixup: null").mixup is None
    assert from_yaml(tmp_path, "mixup: {}").mixup == Mixup()
    assert from_yaml(tmp_path, "", **{"mixup.alpha": 0.4}).mixup == Mixup(alpha=0.4)
    assert from_yaml(tmp_path, "mixup: null", **{"mixup.alpha": 0.4}).mixup == Mixup(alpha=0.4)


def test_an_override_does_not_hide_an_ill_typed_section(tmp_path: Path) -> None:
    """`optim: 3` in the file stays an error when --optim.name is given."""
    assert refusal(tmp_path, "optim: 3", **{"optim.name": "sgd"})[1:] == ["  optim=3: input should be an object"]


def test_a_section_keeps_the_defaults_of_its_owner(tmp_path: Path) -> None:
    """Run's own default learning rate, 0.5, holds when another setting of the section is given, and is what help shows."""
    assert from_yaml(tmp_path, "optim: {name: adamw}").optim == Optim(name="adamw", learning_rate=0.5)
    assert {leaf.key: leaf.default for leaf in leaves(Run)}["optim.learning_rate"] == 0.5


def test_leaves_are_in_the_order_of_declaration() -> None:
    """Keys, defaults of every kind (pydantic's Field, factories, required) and help texts."""
    found = {leaf.key: leaf for leaf in leaves(Run)}
    assert list(found)[:3] == ["out", "workers", "shards"]
    assert list(found)[-4:] == ["optim.name", "optim.learning_rate", "optim.betas", "mixup.alpha"]
    assert found["out"].default is dataclasses.MISSING
    assert found["extra"].default == {}
    assert found["optim.betas"].doc == "Two of them."


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("workers", "3", 3),
        ("optim.learning_rate", "1e-3", 1e-3),
        ("sizes", "[32, 64]", [32, 64]),
        ("resume", "yes", True),
        ("seed", "null", None),
        ("seed", "7", 7),
        ("length", "12", 12),
        ("length", "3 epochs", "3 epochs"),
        ("out", "run #2", "run #2"),
        ("out", "*.jpg", "*.jpg"),
        ("out", "[a", "[a"),
        ("out", "007", "007"),
        ("out", "2024-1-1", "2024-1-1"),
        ("out", "a: b", "a: b"),
        ("out", "null", "null"),
        ("out", "", ""),
        ("extra", "{a: 1}", {"a": 1}),
    ],
)
def test_a_text_is_read_by_the_type_of_its_setting(key: str, text: str, value: object) -> None:
    """What a word on the command line means for settings of each type."""
    assert {leaf.key: leaf for leaf in leaves(Run)}[key].parse(text) == value


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
optims = st.builds(
    Optim,
    name=st.sampled_from(["sgd", "adamw"]),
    learning_rate=st.floats(min_value=1e-300, max_value=1e300),
    betas=st.tuples(numbers, numbers),
)
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | numbers | texts
trees = st.dictionaries(texts, plain | st.lists(plain, max_size=2), max_size=3)
runs = st.builds(
    Run,
    out=texts.filter(lambda text: "\0" not in text).map(Path),
    workers=st.integers(0, 4),
    seed=st.none() | st.integers(0, 2**62),
    length=st.integers(-(2**62), 2**62) | texts,
    sizes=st.lists(st.integers(0, 999), max_size=3).map(tuple),
    extra=trees,
    resume=st.booleans(),
    optim=optims,
    mixup=st.none() | st.builds(Mixup, alpha=st.floats(0, 1)),
)


@given(run=runs)
@example(run=Run(out=Path("0E0"), workers=1, shards=4))
def test_yaml_round_trip_gives_an_equal_object(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`load` of `to_yaml`, and `build` of `dump`, against the object they came from."""
    file = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    file.write_text(to_yaml(run), encoding="utf-8")
    assert load(Run, file, {}) == run
    assert build(Run, dump(run), "settings") == run


@settings
class Circle:
    """A shape."""

    kind: Literal["circle"]
    """Round."""
    radius: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Half the width."""


@settings
class Box:
    """Another."""

    kind: Literal["box"]
    """Angular."""
    width: float
    """Across."""
    height: float = 1.0
    """Upright."""

    def problems(self) -> list[str]:
        """Returns what does not fit."""
        return [] if self.width > self.height else [f"width={self.width}: must be above height={self.height}"]


@settings
class Drawing:
    """Sections that the user names."""

    shapes: dict[str, Annotated[Circle | Box, pydantic.Field(discriminator="kind")]] = pydantic.Field(default_factory=dict)
    """By name."""


def test_sections_that_the_user_names(tmp_path: Path) -> None:
    """Named sections of two kinds: built, written as YAML that gives an equal object, and read from an option."""
    drawing = build(Drawing, {"shapes": {"wheel": {"kind": "circle", "radius": 2}, "door": {"kind": "box", "width": 3}}}, "settings")
    assert drawing == Drawing(shapes={"wheel": Circle(kind="circle", radius=2.0), "door": Box(kind="box", width=3.0)})
    (tmp_path / "a.yaml").write_text(to_yaml(drawing))
    assert load(Drawing, tmp_path / "a.yaml", {}) == drawing
    assert arguments.parse(Drawing, ["--shapes", "{wheel: {kind: circle}}"], prog="", doc="").shapes == {"wheel": Circle(kind="circle")}


def test_what_is_wrong_in_a_named_section_is_named_as_it_is_spelled() -> None:
    """Unknown keys, values and kinds, and problems across fields: the user's own names, and no name of pydantic's between them."""
    shapes = {
        "a": {"kind": "circle", "radus": 1},
        "b": {"kind": "box", "height": "tall"},
        "c": {"kind": "sphere"},
        "d": {"radius": 1},
        "e": 5,
    }
    with pytest.raises(UserError) as caught:
        build(Drawing, {"shapes": shapes}, "settings")
    assert sorted(str(caught.value).splitlines()[1:]) == [
        "  shapes.a.radus: unknown setting; did you mean 'shapes.a.radius'?",
        "  shapes.b.height='tall': input should be a valid number",
        "  shapes.b.width: required, and not given",
        "  shapes.c.kind=sphere: allowed are circle, box",
        "  shapes.d.kind is required, and not given: allowed are circle, box",
        "  shapes.e=5: input should be an object",
    ]
    with pytest.raises(UserError, match=r"\n  shapes.door.width=0.5: must be above height=1.0"):
        build(Drawing, {"shapes": {"door": {"kind": "box", "width": 0.5}}}, "settings")

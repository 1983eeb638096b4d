"""Every command that README.md and docs/ show: it parses as bash, its verb, target, options and configs exist; and the configs' headers."""

import importlib
import re
import shlex
import subprocess
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pydantic
import pytest

from bamboo.cli import arguments
from bamboo.cli.config import leaves, load
from bamboo.cli.errors import UserError
from bamboo.cli.main import VERBS

HEADER = ("expected", "hardware", "hours", "command", "date")
LAUNCHERS = {"python", "python3", "torchrun"}


def fenced(text: str) -> list[str]:
    """Returns the bodies of ```bash, ```sh and ```console blocks; of the last kind only the lines after `$ `."""
    blocks = re.findall(r"^( *)```(bash|sh|shell|console)\n(.*?)^ *```", text, flags=re.MULTILINE | re.DOTALL)
    bodies = []
    for _, language, body in blocks:
        lines = textwrap.dedent(body).splitlines()
        bodies.append("\n".join(line[2:] for line in lines if line.startswith("$ ")) if language == "console" else "\n".join(lines))
    return bodies


def indented(text: str) -> str:
    """Returns the indented lines that begin with a program of ours, of a Markdown text; those with an ellipsis are no whole commands."""
    lines = re.findall(r"^ {4}((?:bamboo|make|torchrun|python -m) .*)$", text, flags=re.MULTILINE)
    return "\n".join(line for line in lines if "…" not in line)


def commands(script: str) -> Iterator[list[str]]:
    """Yields the words of each simple command; variables set before a command are dropped."""
    joined = script.replace("\\\n", " ")
    for line in joined.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;()<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;()"):
                if words:
                    yield words
                words = []
            elif words or not re.fullmatch(r"\w+=.*", word):
                words.append(word)


def check(words: list[str], house: Any, verb_settings: dict[str, type]) -> str | None:
    """Returns what is wrong with one command of ours, or None; commands of others are not looked at."""
    program = Path(words[0]).name
    if program == "make":
        targets = set(re.findall(r"^([a-z][\w-]*):", house.text(Path("Makefile")), flags=re.MULTILINE))
        wanted = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
        return f"make has no target {sorted(wanted - targets)}" if wanted - targets else None
    if program in LAUNCHERS and "-m" in words and words[words.index("-m") + 1].split(".")[0] == "bamboo":
        return _check_module(words[words.index("-m") + 1], words[words.index("-m") + 2 :], house, verb_settings)
    if program == "bamboo":
        return _check_verb(words[1:], house, verb_settings)
    return None


def _check_module(module: str, argv: list[str], house: Any, verb_settings: dict[str, type]) -> str | None:
    runnable = any((house.root / Path(*module.split(".")[1:], name)).is_file() for name in ("__main__.py",))
    if not runnable and (find_spec(module) is None or find_spec(module).origin is None):  # type: ignore[union-attr]  # asked just before
        return f"no module {module} to run"
    if module == "bamboo.cli":
        return _check_verb(argv, house, verb_settings)
    for owner in (module, f"{module}.cli"):
        settings = getattr(importlib.import_module(owner), "SETTINGS", None) if find_spec(owner) else None
        if settings:
            return _check_options(settings[""], argv, house)
    return f"{module} declares no SETTINGS"


def _check_verb(argv: list[str], house: Any, verb_settings: dict[str, type]) -> str | None:
    if argv[:1] == ["--help"]:
        return None
    if not argv or argv[0] not in VERBS:
        return f"no verb {argv[:1]}"
    two, one = " ".join(argv[:2]), argv[0]
    if two in verb_settings:
        behind = argv[argv.index("--") + 1 :] if one == "slurm" and "--" in argv else []  # what stands there is pretraining's
        return _check_options(verb_settings[two], argv[2:], house) or (_check_options(verb_settings["pretrain"], behind, house))
    return _check_options(verb_settings[one], argv[1:], house) if one in verb_settings else f"no command {two}"


def _check_options(cls: type, argv: list[str], house: Any) -> str | None:
    known = {leaf.key: leaf for leaf in leaves(cls)}
    try:
        given, words = arguments.split([word for word in argv if word != "--help"], known, "bamboo")
        config = given.pop("config", None)
        overrides = {key: known[key].parse(text) for key, text in given.items()}
        for key, value in overrides.items():
            pydantic.TypeAdapter(known[key].annotation).validate_json(pydantic.TypeAdapter(Any).dump_json(value), strict=True)
        if len(words) > len(known) and "arguments" not in known:
            return f"too many words: {words}"
        if config is not None and "/" in config:  # FILE and the like stand for the reader's own
            if not (house.root / config).is_file():
                return f"no file {config}"
            load(cls, house.root / config, overrides)
    except (UserError, pydantic.ValidationError) as error:
        return str(error)
    return None


def test_every_command_of_the_readme_parses(house: Any, verb_settings: dict[str, type]) -> None:
    """`bash -n` on each block; make, bamboo, python -m and torchrun -m lines against targets, verbs, options and configs."""
    scripts = fenced(house.text(Path("README.md")))
    assert any("make demo" in script for script in scripts)
    assert any("make test" in script for script in scripts)
    wrong = []
    for script in scripts:
        checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
        wrong += [f"bash: {checked.stderr}\n{script}"] if checked.returncode else []
        for words in commands(script):
            if (problem := check(words, house, verb_settings)) is not None:
                wrong.append(f"{shlex.join(words)}\n  {problem}")
    assert not wrong, "\n".join(wrong)


def test_every_command_of_the_docs_parses(house: Any, verb_settings: dict[str, type]) -> None:
    """As above, for the indented and the fenced commands of every page of docs/."""
    wrong, found = [], 0
    for file in house.files:
        if file.parts[0] != "docs" or file.suffix != ".md":
            continue
        for script in (indented(house.text(file)), *fenced(house.text(file))):
            for words in commands(script):
                found += 1
                if (problem := check(words, house, verb_settings)) is not None:
                    wrong.append(f"{file}: {shlex.join(words)}\n  {problem}")
    assert found > 20
    assert not wrong, "\n".join(wrong)


def test_every_config_opens_with_its_provenance(house: Any) -> None:
    """The comment that opens each file of configs/: expected result, hardware, hours, command and date, in any order."""
    wrong = []
    for file in house.files:
        if file.parts[0] != "configs" or file.suffix != ".yaml":
            continue
        lines = house.text(file).splitlines()
        header = lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))]
        missing = [word for word in HEADER if not any(re.match(rf"# {word}: \S", line) for line in header)]
        wrong += [f"{file}: no line `# {word}: …`" for word in missing]
    assert not wrong, "\n".join(wrong)


def test_every_config_loads_and_its_command_names_it(house: Any, verb_settings: dict[str, type]) -> None:
    """Each file of configs/VERB/ against that verb's settings; the command in its header against the command line."""
    wrong = []
    for file in house.files:
        if file.parts[0] != "configs" or file.suffix != ".yaml":
            continue
        if file.parts[1] in verb_settings:
            try:
                load(verb_settings[file.parts[1]], house.root / file, {})
            except UserError as error:
                wrong.append(str(error))
        for command in re.findall(r"^# command: (.*)$", house.text(file), flags=re.MULTILINE):
            problems = [f"{file}: {problem}" for words in commands(command) if (problem := check(words, house, verb_settings))]
            wrong += problems if str(file) in command else [*problems, f"{file}: the command in its header does not name it"]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("make tset", "no target"),
        ("make demo && make test-slow", None),
        ("bamboo pretrian", "no verb"),
        ("bamboo --help", None),
        ("OMP_NUM_THREADS=1 bamboo pretrain --config configs/pretrain/none.yaml", "no file"),
        ("bamboo pretrain --config FILE --run.folderr x", "unknown option --run.folderr"),
        ("bamboo pretrain --data.workers two", "valid integer"),
        ("torchrun --nproc-per-node 2 -m bamboo.pretrain \\\n  --config FILE --data.workers 0", None),
        ("torchrun -m bamboo.pretraining --config FILE", "no module"),
        ("bamboo slurm submit --nodes 2 -- --config FILE --run.folder x", None),
        ("bamboo slurm submit --nodes 2 -- --config FILE --run.foldr x", "unknown option --run.foldr"),
        ("bamboo slurm submit --node_s 2 -- --config FILE", "unknown option --node_s"),
        ("cd elsewhere; ls -l | wc", None),
    ],
)
def test_the_check_finds_what_it_looks_for(line: str, said: str | None, house: Any, verb_settings: dict[str, type]) -> None:
    """Right and wrong commands, written by hand."""
    problems = [problem for words in commands(line) if (problem := check(words, house, verb_settings))]
    assert bool(problems) == bool(said), problems
    assert said is None or said in problems[0]


def test_indented_commands_are_found() -> None:
    """A command among other indented lines, and one that is not whole."""
    assert (
        indented("a\n\n    bamboo pretrain --config F  # go\n    run: start\n    bamboo slurm submit … -- …\nbamboo\n")
        == "bamboo pretrain --config F  # go"
    )


def test_fenced_blocks_are_found() -> None:
    """Indented and plain blocks, other languages left alone."""
    assert fenced("a\n```bash\nls\n```\n  ```console\n  $ pwd\n  /\n  ```\n```python\nx\n```\n") == ["ls", "pwd"]

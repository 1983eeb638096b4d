"""The frozen command line: verbs, options, exit codes and how fast `bamboo --help` answers."""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bamboo.cli import arguments
from bamboo.cli.config import leaves
from bamboo.cli.main import VERBS

GOLDEN = Path(__file__).parent / "golden" / "command_line.txt"
HELP_SECONDS = 0.3
HELP_LINES = 40


def bamboo(*words: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from bamboo.cli.main import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


def test_help_lists_every_verb_and_exit_code() -> None:
    """The text of `bamboo --help` against the table of verbs."""
    done = bamboo("--help")
    assert done.returncode == 0
    assert not done.stderr
    listed = [line.split()[0] for line in done.stdout.partition("verbs:\n")[2].partition("\n\n")[0].splitlines()]
    assert listed == list(VERBS)
    assert "0 done, 1 a failure, 2 your mistake, 75 stopped early" in done.stdout
    assert done.stdout.count("\n") <= HELP_LINES


def test_help_answers_at_once() -> None:
    """Five runs of the installed command against 0.3 s: the median in CPU seconds, the best on the wall clock."""
    command = Path(sys.executable).with_name("bamboo")
    assert command.exists(), "install the checkout first: make venv"

    def spent() -> tuple[float, float]:
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([command, "--help"], check=True, capture_output=True)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    walls, cpus = zip(*(spent() for _ in range(5)), strict=True)
    assert statistics.median(cpus) < HELP_SECONDS, cpus
    assert min(walls) < HELP_SECONDS, walls  # the best: what other work on the machine adds is not ours


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, ""),
        (("-h",), 0, ""),
        (("help",), 0, ""),
        (("pretrian",), 2, "bamboo: no verb 'pretrian'. Did you mean 'pretrain'?"),
        (("xyzzy",), 2, "bamboo: no verb 'xyzzy'. The verbs are: shards, sets, grow, pretrain,"),
        (("--verbose",), 2, "bamboo: no verb '--verbose'."),
    ],
)
def test_exit_codes_without_a_verb(words: tuple[str, ...], code: int, said: str) -> None:
    """Exit code and message of calls that reach no verb."""
    done = bamboo(*words)
    assert done.returncode == code
    assert done.stderr.startswith(said)
    assert bool(done.stderr) == bool(said)


def test_the_command_line_is_as_frozen(verb_settings: dict[str, type]) -> None:
    """Every option and default of every verb against tests/house/golden/command_line.txt: a new flag is a decision.

    After the decision: BAMBOO_UPDATE_GOLDEN=1 pytest tests/house/test_command_line.py, and a line in CHANGELOG.md.
    """
    sections = [f"bamboo {verb}\n" + "".join(f"  {line}\n" for line in arguments.options(cls)) for verb, cls in verb_settings.items()]
    now = "\n".join(sections)
    if os.environ.get("BAMBOO_UPDATE_GOLDEN") == "1":
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(now, encoding="utf-8")
    assert GOLDEN.exists(), "no golden file yet; set BAMBOO_UPDATE_GOLDEN=1 once"
    assert now == GOLDEN.read_text(encoding="utf-8")


def test_no_default_names_this_machine(verb_settings: dict[str, type]) -> None:
    """Defaults of path-like settings are relative: the same on every machine."""
    absolute = [f"{verb} {line}" for verb, cls in verb_settings.items() for line in arguments.options(cls) if "default: /" in line]
    assert not absolute


def test_every_setting_explains_itself(verb_settings: dict[str, type]) -> None:
    """Each option has a help text: the docstring of its field."""
    assert not [f"{verb} --{leaf.key}" for verb, cls in verb_settings.items() for leaf in leaves(cls) if not leaf.doc.strip()]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Calls the command line in this process → (exit code, standard output, standard error)."""
    from bamboo.cli.main import main

    def call(*words: str) -> tuple[int, str, str]:
        try:
            code = main(list(words))
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_every_verb_explains_itself_on_a_screen(verb_settings: dict[str, type], ask: Callable[..., tuple[int, str, str]]) -> None:
    """`bamboo VERB --help` exits 0 and fits 40 lines of 140 columns."""
    for command in [*VERBS, *verb_settings]:
        code, out, err = ask(*command.split(), "--help")
        assert (code, err) == (0, ""), command
        assert 3 < out.count("\n") <= HELP_LINES, f"{command}: {out.count(chr(10))} lines"
        assert max(map(len, out.splitlines())) <= 140, command


def test_a_mistyped_option_is_the_users_mistake(verb_settings: dict[str, type], ask: Callable[..., tuple[int, str, str]]) -> None:
    """An option with a typo in each command: exit code 2, one line, the nearest option named."""
    for command, cls in verb_settings.items():
        key = next((leaf.key for leaf in leaves(cls) if not leaf.is_flag and len(leaf.key) > 3), None)
        code, _, err = ask(*command.split(), f"--{key}q", "1")
        assert code == 2, f"{command}: {err}"
        assert f"unknown option --{key}q" in err
        assert key is None or f"--{key}q; did you mean" in err  # a command without settings has none to name
        assert err.count("\n") == 1

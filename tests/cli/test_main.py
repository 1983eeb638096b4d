"""`bamboo VERB`: what a verb raises against the exit code and the words on standard error."""

import errno
import sys
import types
from collections.abc import Callable, Sequence

import pytest

from bamboo.cli import main
from bamboo.cli.errors import EXIT_RESUMABLE, BambooError, DataError, UserError, missing_extra

Verb = Callable[[Callable[[Sequence[str]], int]], None]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Verb:
    """Installs a function as the verb `stub`."""

    def install(function: Callable[[Sequence[str]], int]) -> None:
        module = types.ModuleType("bamboo_stub_verb")
        module.main = function  # type: ignore[attr-defined]  # a module made by hand
        monkeypatch.setitem(sys.modules, "bamboo_stub_verb", module)
        monkeypatch.setitem(main.VERBS, "stub", ("bamboo_stub_verb", "a stub"))

    return install


def raising(error: BaseException) -> Callable[[Sequence[str]], int]:
    def entry(_argv: Sequence[str]) -> int:
        raise error

    return entry


@pytest.mark.parametrize("code", [0, 1, EXIT_RESUMABLE])
def test_a_verbs_exit_code_is_the_commands(verb: Verb, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Codes pass through, and the verb gets the words after its name."""
    seen: list[str] = []

    def entry(argv: Sequence[str]) -> int:
        seen.extend(argv)
        return code

    verb(entry)
    assert main.main(["stub", "--a", "b"]) == code
    assert seen == ["--a", "b"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("workers=9: use workers<=8"), 2, "bamboo stub: workers=9: use workers<=8\n"),
        (missing_extra("wandb", "wandb"), 2, "bamboo stub: wandb is not installed: pip install 'bamboo-vision[wandb]'\n"),
        (DataError("a.tar: truncated"), 1, "bamboo stub: a.tar: truncated\n"),
        (BambooError("no luck"), 1, "bamboo stub: no luck\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a.tar"), 1, "bamboo stub: [Errno 28] No space left on device: 'a.tar'\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "bamboo stub: [Errno 28] No space left on device\n"),
        (PermissionError(errno.EACCES, "Permission denied", "b"), 1, "bamboo stub: [Errno 13] Permission denied: 'b'\n"),
        (KeyboardInterrupt(), 130, "bamboo stub: interrupted\n"),
    ],
)
def test_an_explained_error_ends_without_a_traceback(
    verb: Verb, error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code and the whole of standard error."""
    verb(raising(error))
    assert main.main(["stub"]) == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "Broken pipe"), OSError("who knows")])
def test_an_error_that_names_no_file_shows_where_it_was_raised(verb: Verb, error: OSError, capsys: pytest.CaptureFixture[str]) -> None:
    """The traceback first, the one line last."""
    verb(raising(error))
    assert main.main(["stub"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.splitlines()[-1] == f"bamboo stub: {error}"


def test_a_defect_of_ours_keeps_its_traceback(verb: Verb) -> None:
    """What nobody foresaw is not dressed up as an explanation."""
    verb(raising(AssertionError("ours")))
    with pytest.raises(AssertionError, match="ours"):
        main.main(["stub"])


def test_an_interrupt_while_the_verb_is_loading(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C during the seconds in which torch is imported."""
    monkeypatch.setitem(main.VERBS, "stub", ("bamboo_stub_verb", "a stub"))
    monkeypatch.setattr(main.importlib, "import_module", raising(KeyboardInterrupt()))
    assert main.main(["stub"]) == 130
    assert capsys.readouterr().err == "bamboo stub: interrupted\n"


def test_the_arguments_are_those_of_the_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a list, sys.argv after the command's name."""
    monkeypatch.setattr(sys, "argv", ["bamboo", "--help"])
    assert main.main() == 0
    assert capsys.readouterr().out == main.usage()

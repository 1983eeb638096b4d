"""Verbs with sub-commands, `bamboo VERB COMMAND …`: a table says what each command takes and which function runs it."""

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .arguments import parse
from .config import nearest
from .errors import EXIT_DONE, EXIT_USER, UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """One sub-command."""

    settings: type[Any]
    """Its settings class, whose docstring opens its help."""
    run: str
    """Dotted name of the function that carries it out, settings → exit code; imported only then."""
    line: str
    """What it does, in a line."""
    positional: tuple[str, ...] = ()


def settings_of(commands: Mapping[str, Command]) -> dict[str, type[Any]]:
    """Returns the settings class of every command."""
    return {name: command.settings for name, command in commands.items()}


def run_command(verb: str, commands: Mapping[str, Command], argv: Sequence[str], *, start: str) -> int:
    """Runs one of the commands, or prints the verb's help, and returns the exit code.

    Args:
        start: the command line to begin with, for the help.

    Raises:
        UserError: for an unknown command, naming the nearest.
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(_usage(verb, commands, start))
        return EXIT_DONE if argv else EXIT_USER
    name, arguments = argv[0], argv[1:]
    if name not in commands:
        raise UserError(f"no command {name!r}{nearest(name, list(commands))}; see bamboo {verb} --help")
    command = commands[name]
    doc = inspect.getdoc(command.settings) or ""
    config = parse(command.settings, arguments, prog=f"bamboo {verb} {name}", doc=doc, positional=command.positional)
    module, _, function = command.run.rpartition(".")
    code: int = getattr(importlib.import_module(module), function)(config)
    return code


def _usage(verb: str, commands: Mapping[str, Command], start: str) -> str:
    width = max(map(len, commands)) + 2
    lines = "\n".join(f"  {name:<{width}}{command.line}" for name, command in commands.items())
    return f"usage: bamboo {verb} COMMAND [--help] …\n\ncommands:\n{lines}\n\nStart here: {start}\n"

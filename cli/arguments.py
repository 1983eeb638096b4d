"""Command lines made from settings: every field is an option, its docstring the help text."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from .config import Leaf, leaves, load, nearest
from .errors import UserError

T = TypeVar("T")

_SCREEN_LINES = 24  # above this many options `--help` lists them by section, and `--help-all` one by one


def parse(cls: type[T], argv: Sequence[str], *, prog: str, doc: str, positional: Sequence[str] = ()) -> T:
    """Returns the settings of type `cls` that a command line spells.

    Every setting is `--dotted.key VALUE` (dashes and underscores alike); those named in `positional` are also taken by
    position; `--config FILE` is read first.

    Raises:
        UserError: for an unknown option or a wrong value, naming the nearest valid one.
        SystemExit: 0 after `--help`.
    """
    known = {leaf.key: leaf for leaf in leaves(cls)}
    parser = _parser(known, prog, doc, positional)
    arguments = list(argv)
    if "--help-all" in arguments:
        sys.stdout.write(parser.format_help())
        raise SystemExit(0)
    if "--help" in arguments or "-h" in arguments:
        sys.stdout.write(parser.format_help() if len(known) <= _SCREEN_LINES else _sections(known, prog, doc))
        raise SystemExit(0)
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        name = unknown[0].split("=", 1)[0]
        if not name.startswith("-"):
            raise UserError(f"unexpected argument {name!r}; see {prog} --help")
        raise UserError(f"unknown option {name}{nearest(name.lstrip('-').replace('-', '_'), list(known))}")
    values = {key: text for key, text in vars(namespace).items() if key != "config" and text is not None}
    overrides = {key: known[key].parse(text) for key, text in values.items()}
    return load(cls, namespace.config, overrides)


def options(cls: type[Any]) -> list[str]:
    """Returns every option with its default, one a line: what the golden test of the command line compares."""
    return [f"--{leaf.key} {_show(leaf)}".rstrip() for leaf in leaves(cls)]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{message}; see {self.prog} --help")


def _parser(known: dict[str, Leaf], prog: str, doc: str, positional: Sequence[str]) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, add_help=False)
    for key in positional:
        parser.add_argument(key, nargs="?", metavar=key.upper(), help=_help(known[key]), default=None)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file of settings; options override it")
    for key, leaf in known.items():
        names = {f"--{key}", f"--{key.replace('_', '-')}"}
        flag: dict[str, Any] = {"nargs": "?", "const": "true"} if leaf.is_flag else {}
        shown = "" if key in positional else _help(leaf)
        spelled = sorted(names, key=lambda name: "_" in name)  # dashes first: the form that help shows
        parser.add_argument(*spelled, dest=key, metavar="VALUE", help=shown or argparse.SUPPRESS, default=argparse.SUPPRESS, **flag)
    return parser


def _help(leaf: Leaf) -> str:
    doc = " ".join(leaf.doc.split()).replace("%", "%%")
    return f"{doc} ({_show(leaf).replace('%', '%%')})" if _show(leaf) else doc


def _show(leaf: Leaf) -> str:
    if leaf.default is dataclasses.MISSING:
        return "required"
    return "" if leaf.default is None else f"default: {leaf.default}"


def _sections(known: dict[str, Leaf], prog: str, doc: str) -> str:
    sections: dict[str, list[str]] = {}
    for key in known:
        section, _, name = key.rpartition(".")
        sections.setdefault(section, []).append(name)
    width = max(map(len, sections)) + 2
    lines = [f"usage: {prog} --config FILE [--section.key VALUE …]", "", doc.strip(), "", "settings (--help-all explains each):"]
    for section, names in sections.items():
        text, row = [], ""
        for name in names:
            if len(row) + len(name) > 110 - width:
                text.append(row)
                row = ""
            row += name + " "
        text.append(row)
        lines += [f"  {(section + '.') if section and i == 0 else '':<{width}}{row.rstrip()}" for i, row in enumerate(text)]
    return "\n".join(lines) + "\n"

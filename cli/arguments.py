"""Command lines made from settings: every field is an option, its docstring the help text."""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .config import Leaf, leaves, load, nearest
from .errors import UserError

T = TypeVar("T")

_SCREEN_LINES = 40  # a longer `--help` lists the settings by section, and `--help-all` one by one
_TEXT_WIDTH = 110
_TRUTHS = ("true", "false", "yes", "no", "on", "off")  # what YAML reads as a truth value


def parse(cls: type[T], argv: Sequence[str], *, prog: str, doc: str, positional: Sequence[str] = ()) -> T:
    """Returns the settings of type `cls` that a command line spells.

    Every setting is `--dotted.key VALUE` or `--dotted.key=VALUE` (dashes and underscores alike; the last one counts); those
    named in `positional` are also taken by position; a bare `--flag` means true; `--config FILE` is read first. A list is
    `--key A B C`, up to the next option, or YAML's `--key [A, B]`; as the last positional setting it takes all words that are left.

    Raises:
        UserError: for an unknown option or a wrong value, naming the nearest valid one.
        SystemExit: 0 after `--help`.
    """
    known = {leaf.key: leaf for leaf in leaves(cls)}
    options_given = argv[: list(argv).index("--")] if "--" in argv else argv
    if {"--help", "-h", "--help-all"} & set(options_given):
        sys.stdout.write(_help(known, prog, doc, positional, in_full="--help-all" in options_given))
        raise SystemExit(0)
    texts, words = split(argv, known, prog)
    if positional and known[positional[-1]].is_list and len(words) >= len(positional):
        first = len(positional) - 1
        words[first:] = [known[positional[-1]].gather(words[first:])]
    if len(words) > len(positional):
        raise UserError(f"unexpected argument {words[len(positional)]!r}; see {prog} --help")
    for key, word in zip(positional, words, strict=False):
        if key in texts:
            raise UserError(f"{key} is given twice: {word!r} by position and --{key}={texts[key]}")
        texts[key] = word
    file = texts.pop("config", None)
    overrides = {key: known[key].parse(text) for key, text in texts.items()}
    return load(cls, None if file is None else Path(file), overrides)


def split(argv: Sequence[str], known: Mapping[str, Leaf], prog: str) -> tuple[dict[str, str], list[str]]:
    """Returns the texts given to options (key → text, `config` among them) and the words that belong to no option.

    The word after an option is its value unless it begins with two dashes; a flag takes only a truth value as its own, a list all
    words up to the next option. What follows `--` is no option.

    Raises:
        UserError: for an option that is not in `known`, naming the nearest, and for an option without its value.
    """
    texts: dict[str, str] = {}
    words: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            return texts, words + rest
        if not word.startswith("-") or word == "-":
            words.append(word)
            continue
        option, equals, text = word.partition("=")
        key = option.removeprefix("--").replace("-", "_")
        if key not in known and key != "config":
            raise UserError(f"unknown option {option}{nearest(key, list(known))}")
        if not equals:
            is_flag = key in known and known[key].is_flag
            if is_flag and not (rest and rest[0].lower() in _TRUTHS):
                text = "true"
            elif not rest or rest[0].startswith("--"):
                raise UserError(f"{option}: a value must follow; see {prog} --help")
            elif key in known and known[key].is_list and not rest[0].startswith("["):
                count = next((at for at, value in enumerate(rest) if value.startswith("--")), len(rest))
                text = known[key].gather(rest[:count])
                del rest[:count]
            else:
                text = rest.pop(0)
        texts[key] = text
    return texts, words


def options(cls: type[Any]) -> list[str]:
    """Returns every option with its default, one a line: what the golden test of the command line compares."""
    return [f"--{leaf.key} {_show(leaf)}".rstrip() for leaf in leaves(cls)]


def _help(known: Mapping[str, Leaf], prog: str, doc: str, positional: Sequence[str], *, in_full: bool) -> str:
    named = ((key, f"{key.upper()}…" if known[key].is_list else key.upper()) for key in positional)
    words = "".join(f" {name}" if known[key].default is dataclasses.MISSING else f" [{name}]" for key, name in named)
    usage = f"{prog}{words} [--config FILE] [--setting VALUE …]"
    full = _one_by_one(known, usage, doc)
    return full if in_full or full.count("\n") <= _SCREEN_LINES else _by_section(known, usage, doc)


def _one_by_one(known: Mapping[str, Leaf], usage: str, doc: str) -> str:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(usage=usage.replace("%", "%%"), description=doc, formatter_class=formatter, add_help=False)
    group = parser.add_argument_group("settings")
    group.add_argument("--config", metavar="FILE", help="YAML file of settings; options override it")
    for key, leaf in known.items():
        text = " ".join(leaf.doc.split())
        shown = f"{text} ({_show(leaf)})" if _show(leaf) else text
        nargs = "?" if leaf.is_flag else "+" if leaf.is_list else None
        group.add_argument(f"--{key.replace('_', '-')}", metavar="VALUE", nargs=nargs, help=shown.replace("%", "%%"))
    return parser.format_help()


def _by_section(known: Mapping[str, Leaf], usage: str, doc: str) -> str:
    sections: dict[str, list[str]] = {}
    for key in known:
        section, _, name = key.rpartition(".")
        sections.setdefault(section, []).append(name)
    width = max(map(len, sections)) + 2
    lines = [f"usage: {usage}", "", doc.strip(), "", "settings (--help-all explains each):"]
    for section, names in sections.items():
        rows = [""]
        for name in names:
            if len(rows[-1]) + len(name) > _TEXT_WIDTH - width:
                rows.append("")
            rows[-1] += name + " "
        lines += [f"  {section + '.' if section and i == 0 else '':<{width}}{row.rstrip()}" for i, row in enumerate(rows)]
    return "\n".join(lines) + "\n"


def _show(leaf: Leaf) -> str:
    if leaf.default is dataclasses.MISSING:
        return "required"
    if leaf.is_list and leaf.default is not None:
        return f"default: {' '.join(map(str, leaf.default))}" if leaf.default else ""
    return "" if leaf.default is None else f"default: {leaf.default}"

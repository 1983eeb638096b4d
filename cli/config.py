"""Configuration: frozen dataclasses, a YAML file over their defaults, command-line overrides over both.

A verb's settings are one dataclass made with `@settings`; its fields' docstrings are the help texts. Values are checked by
pydantic in strict mode, all at once, before the verb touches anything. An unknown key names the nearest valid one.
"""

import dataclasses
import difflib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, cast, dataclass_transform, get_args, get_origin, get_type_hints

import pydantic
import yaml
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as pydantic_dataclass

from .errors import UserError

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(dataclasses.field, pydantic.Field))
def settings(cls: type[T]) -> type[T]:
    """Makes `cls` a frozen, keyword-only, validated dataclass.

    Checks across fields go into a method `problems(self) -> list[str]`, which `load` calls on every nested settings object.
    """
    config = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)
    return cast(type[T], pydantic_dataclass(cls, frozen=True, kw_only=True, config=config))


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One setting: its dotted key, type annotation, default (or `dataclasses.MISSING`) and docstring."""

    key: str
    annotation: Any
    default: Any
    doc: str

    @property
    def is_flag(self) -> bool:
        """Whether the bare option `--key` means true."""
        return self.annotation is bool

    def parse(self, text: str) -> Any:
        """Returns the value that `text` spells for this setting: YAML where that fits the type, else the text itself."""
        adapter = TypeAdapter(self.annotation)
        spelled = _yaml_value(text, f"--{self.key}")
        for value in (spelled, text):
            try:
                adapter.validate_json(json.dumps(value, default=str), strict=True)
            except (pydantic.ValidationError, TypeError):
                continue
            return value
        return spelled


def leaves(cls: type[Any], prefix: str = "") -> Iterator[Leaf]:
    """Yields every setting of a settings class, depth first, in the order of declaration."""
    hints = get_type_hints(cls, include_extras=True)
    described = cls.__pydantic_fields__
    for field in dataclasses.fields(cls):
        annotation, key = hints[field.name], prefix + field.name
        nested = _nested(annotation)
        if nested is not None:
            yield from leaves(nested, key + ".")
        else:
            yield Leaf(key, annotation, _default(field), described[field.name].description or "")


def load(cls: type[T], file: Path | None, overrides: Mapping[str, Any]) -> T:
    """Returns the settings of type `cls`: defaults, then `file` (YAML), then `overrides` (dotted key → value).

    Raises:
        UserError: naming every wrong key and value at once.
    """
    tree: dict[str, Any] = {} if file is None else _read_yaml(file)
    for key, value in overrides.items():
        _assign(tree, key.split("."), value)
    return build(cls, tree, str(file) if file is not None else "settings")


def build(cls: type[T], tree: Mapping[str, Any], source: str) -> T:
    """Returns `cls` made from a nested mapping; `source` is named in the error."""
    try:
        # JSON mode is strict about types yet turns a list into a tuple and a string into a Path.
        built: T = TypeAdapter(cls).validate_json(json.dumps(tree, default=str), strict=True)
    except pydantic.ValidationError as error:
        raise UserError("\n".join([f"{source} is not valid:", *_explain(error, cls)])) from None
    problems = list(_problems(built, ""))
    if problems:
        raise UserError("\n".join([f"{source} is not valid:", *(f"  {line}" for line in problems)]))
    return built


def dump(config: Any) -> dict[str, Any]:
    """Returns the settings as nested plain data (JSON types only)."""
    plain: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return plain


def to_yaml(config: Any) -> str:
    """Returns the settings as YAML that `load` reads back to an equal object."""
    text: str = yaml.safe_dump(dump(config), sort_keys=False)
    return text


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-3` as a string; this loader reads it as the number that everybody means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d+)(?:[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def _yaml_value(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not readable as YAML: {' '.join(str(error).split())}") from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"--config={file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config={file}: cannot be read: {error}") from None
    tree = _yaml_value(text, str(file))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"--config={file}: holds a {type(tree).__name__}, not a mapping of settings")
    return tree


def _assign(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        child = tree.get(part)
        if not isinstance(child, dict):
            child = tree[part] = {}
        tree = child
    tree[path[-1]] = value


def _nested(annotation: Any) -> type[Any] | None:
    """Returns the settings class that `annotation` holds (`C` or `C | None`), else None."""
    candidates = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _default(field: Any) -> Any:
    if field.default is not dataclasses.MISSING:
        value = field.default
        return value.default if isinstance(value, pydantic.fields.FieldInfo) else value
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else dataclasses.MISSING


def _explain(error: pydantic.ValidationError, cls: type[Any]) -> Iterator[str]:
    known = [leaf.key for leaf in leaves(cls)]
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            yield f"  {key}: unknown setting{nearest(key, known)}"
        elif item["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            yield f"  {key}: required, and not given"
        else:
            yield f"  {key}={item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"


def nearest(key: str, known: Sequence[str]) -> str:
    """Returns `; did you mean …?` for the known key that `key` most resembles, or the list of keys where that is short."""
    section, _, name = key.rpartition(".")
    sections = {known_key.rpartition(".")[0] for known_key in known} - {""}

    def likeness(candidate: str) -> float:
        candidate_section, _, candidate_name = candidate.rpartition(".")
        ratio = difflib.SequenceMatcher(None, name, candidate_name).ratio()
        return ratio + (0.01 if candidate_section == section else 0.0)

    best = max([*known, *sections], key=likeness, default="")
    if best and likeness(best) >= 0.6:
        return f"; did you mean {best!r}?"
    return f"; the settings are: {', '.join(known)}" if len(known) < 16 else ""


def _problems(config: Any, prefix: str) -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _problems(value, f"{prefix}{field.name}.")
    if hasattr(config, "problems"):
        yield from (prefix + line for line in config.problems())

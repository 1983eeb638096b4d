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
from typing import Annotated, Any, TypeVar, Union, cast, dataclass_transform, get_args, get_origin, get_type_hints

import pydantic
import yaml
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as pydantic_dataclass

from .errors import UserError

T = TypeVar("T")

_TAG = "kind"  # the setting that says which class a section of the user's naming is of


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

    @property
    def is_list(self) -> bool:
        """Whether the option takes several words, `--key A B`, besides YAML's `--key [A, B]`."""
        return _list_type(self.annotation) is not None

    def gather(self, words: Sequence[str]) -> str:
        """Returns the YAML list of several words, each read as a value of the list; a single `[A, B]` is one already."""
        if len(words) == 1 and words[0].startswith("["):
            return words[0]
        item = dataclasses.replace(self, annotation=get_args(_list_type(self.annotation))[0])
        return json.dumps([item.parse(word) for word in words], default=str)

    def parse(self, text: str) -> Any:
        """Returns the value that `text` spells for this setting: YAML where that fits the type, else the text itself."""
        adapter = TypeAdapter(self.annotation)
        try:
            spelled = yaml.load(text, _Loader)
        except yaml.YAMLError:  # `*.jpg`, `[a`: text that is no YAML is just text
            spelled = text
        # Where YAML sees a string, the text is meant as it stands: `run #2` is no comment on a command line.
        spelled = text if isinstance(spelled, str) else spelled
        for value in (spelled, text):
            try:
                adapter.validate_json(json.dumps(value, default=str), strict=True)
            except (pydantic.ValidationError, TypeError):
                continue
            return value
        return spelled


def leaves(cls: type[Any], prefix: str = "", base: Any = None) -> Iterator[Leaf]:
    """Yields every setting of a settings class, depth first, in the order of declaration.

    Where an object `base` of that class is the default of a whole section, its values are the defaults.
    """
    described = [vars(parent)["__pydantic_fields__"] for parent in cls.__mro__ if "__pydantic_fields__" in vars(parent)]
    for name, annotation, default in _fields(cls, base):
        nested = _nested(annotation)
        if nested is not None:
            yield from leaves(nested, f"{prefix}{name}.", default)
        else:
            # pydantic gathers docstrings of a class's own fields only: an inherited field has its text where it was declared
            docs = [fields[name].description for fields in described if name in fields]
            yield Leaf(prefix + name, annotation, default, next((doc for doc in docs if doc), ""))


def load(cls: type[T], file: Path | None, overrides: Mapping[str, Any]) -> T:
    """Returns the settings of type `cls`: defaults, then `file` (YAML), then `overrides` (dotted key → value).

    Raises:
        UserError: naming every wrong key and value at once.
    """
    tree: dict[str, Any] = {} if file is None else _read_settings(file)
    for key, value in overrides.items():
        _assign(tree, key.split("."), value)
    return build(cls, tree, str(file) if file is not None else "settings")


def build(cls: type[T], tree: Mapping[str, Any], source: str) -> T:
    """Returns `cls` made from a nested mapping; `source` is named in the error."""
    try:
        text = json.dumps(_over_defaults(cls, tree), default=str)
    except (TypeError, ValueError, RecursionError) as error:  # a YAML anchor inside itself, a key that is a list
        raise UserError(f"{source}: not a plain tree of settings: {error}") from None
    try:
        # JSON mode is strict about types yet turns a list into a tuple and a string into a Path.
        built: T = TypeAdapter(cls).validate_json(text, strict=True)
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
    text: str = yaml.dump(dump(config), Dumper=_Dumper, sort_keys=False)
    return text


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but for three things: `1e-3` is a number, there are no dates, and a key given twice is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Returns the node of a mapping.

        Raises:
            ConstructorError: for a key given twice, of which YAML would drop the first in silence.
        """
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(problem=f"{key.value!r} is given twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as a number: the text `0e0`."""


for _reader_or_writer in (_Loader, _Dumper):
    _reader_or_writer.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:\d[\d_]*\.?[\d_]*|\.\d+)(?:[eE][-+]?\d+)$"),
        list("-+0123456789."),
    )


def _yaml_value(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not readable as YAML: {' '.join(str(error).split())}") from None


def read_yaml(file: Path, option: str) -> Any:
    """Returns what a YAML file holds, read as every config is; `option` is the one that named it.

    Raises:
        UserError: for a file that is not there, or is no YAML.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"--{option}={file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--{option}={file}: cannot be read: {error}") from None
    return _yaml_value(text, str(file))


def _read_settings(file: Path) -> dict[str, Any]:
    tree = read_yaml(file, "config")
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"--config={file}: holds a {type(tree).__name__}, not a mapping of settings")
    return tree


def _assign(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        if tree.get(part) is None:
            tree[part] = {}
        if not isinstance(tree[part], dict):
            return  # the file holds a value where a section belongs: `build` reports that
        tree = tree[part]
    tree[path[-1]] = value


def _nested(annotation: Any) -> type[Any] | None:
    """Returns the settings class that `annotation` holds (`C` or `C | None`), else None."""
    candidates = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and dataclasses.is_dataclass(candidate):
            return candidate
    return None


def _list_type(annotation: Any) -> Any:
    """Returns the list or tuple type that `annotation` is, or is beside None, else None."""
    plain = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    candidates = get_args(plain) if get_origin(plain) in (Union, types.UnionType) else (plain,)
    lists = [candidate for candidate in candidates if get_origin(candidate) in (list, tuple)]
    return lists[0] if len(lists) == 1 and set(candidates) <= {lists[0], type(None)} else None


def _default(field: Any) -> Any:
    value = field.default
    if isinstance(value, pydantic.fields.FieldInfo):
        return dataclasses.MISSING if value.is_required() else value.get_default(call_default_factory=True, validated_data={})
    if value is not dataclasses.MISSING:
        return value
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else dataclasses.MISSING


def _fields(cls: type[Any], base: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yields (name, annotation, default) of each field; where `base` is an object of the class, it holds the defaults."""
    hints = get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        default = getattr(base, field.name) if dataclasses.is_dataclass(base) else _default(field)
        yield field.name, hints[field.name], default


def _over_defaults(cls: type[Any], tree: Mapping[str, Any], base: Any = None) -> dict[str, Any]:
    """Returns `tree` with what its sections leave out taken from the section's default object, as help says, not from its class."""
    filled = dict(tree)
    plain = dump(base) if dataclasses.is_dataclass(base) else {}
    for name, annotation, default in _fields(cls, base):
        nested = _nested(annotation)
        if name not in filled and name in plain:
            filled[name] = plain[name]
        elif nested is not None and isinstance(filled.get(name), Mapping):
            filled[name] = _over_defaults(nested, filled[name], default)
    return filled


def _explain(error: pydantic.ValidationError, cls: type[Any]) -> list[str]:
    known = {leaf.key: leaf for leaf in leaves(cls)}
    lines: dict[str, None] = {}
    for item in error.errors(include_url=False):
        path = [str(part) for part in item["loc"]]
        # Of a setting of several types pydantic names the one it tried, after the key: that is no part of the key.
        union = next((i for i in range(len(path)) if _is_union(known.get(".".join(path[:i])))), len(path))
        path, choices = _in_named_section(path[:union], known)
        key = ".".join(path)
        if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            line = f"  {key}: unknown setting{nearest(key, choices)}"
        elif item["type"] in ("union_tag_not_found", "union_tag_invalid"):  # of a named section
            tag = f"={item['ctx']['tag']}" if "tag" in item.get("ctx", {}) else " is required, and not given"
            line = f"  {key}.{_TAG}{tag}: allowed are {', '.join(_by_tag(known[path[0]].annotation))}"
        elif item["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
            line = f"  {key}: required, and not given"
        else:
            line = f"  {key}={item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
        lines[line] = None
    return list(lines)


def _in_named_section(path: list[str], known: Mapping[str, Leaf]) -> tuple[list[str], list[str]]:
    """Returns a place as the user spelled it, and the keys that are valid around it.

    Inside a section that the user named, `evaluators.mine.knn.k`, pydantic names the tag that it went by: that is no part of the key.
    """
    kinds = _by_tag(known[path[0]].annotation) if path[0] in known else {}
    if len(path) < 3 or path[2] not in kinds:
        return path, list(known)
    section = f"{path[0]}.{path[1]}."
    return [*path[:2], *path[3:]], [section + leaf.key for leaf in leaves(kinds[path[2]])]


def _by_tag(annotation: Any) -> dict[str, type[Any]]:
    """Returns the settings classes by `kind` of a setting of sections that the user names, `dict[str, A | B]`; of another, nothing."""
    values = get_args(annotation)[1:] if get_origin(annotation) is dict else ()
    members = [member for value in values for member in get_args(get_args(value)[0] if get_origin(value) is Annotated else value)]
    tagged = [member for member in members if dataclasses.is_dataclass(member)]
    return {get_args(get_type_hints(member)[_TAG])[0]: cast(type[Any], member) for member in tagged}


def _is_union(leaf: Leaf | None) -> bool:
    if leaf is None:
        return False
    plain = get_args(leaf.annotation)[0] if get_origin(leaf.annotation) is Annotated else leaf.annotation
    return get_origin(plain) in (Union, types.UnionType)


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
        for name, section in value.items() if _by_tag(field.type) else ():
            yield from _problems(section, f"{prefix}{field.name}.{name}.")
    if hasattr(config, "problems"):
        yield from (prefix + line for line in config.problems())

"""The ceilings and manners of the style guide, held on every Python file of the checkout."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
NAMELESS = {"util", "utils", "common", "helper", "helpers", "misc"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def comments(text: str) -> dict[int, str]:
    """Returns line number → comment."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def words(comment: str) -> int:
    """Returns how many words of prose a comment holds beside the marks that tools read."""
    prose = re.sub(r"noqa(: ?[A-Z0-9, ]+)?|type: ignore(\[[^]]*\])?|TODO", " ", comment)
    return len(re.findall(r"[^\W\d_]{2,}", prose))


def test_files_and_functions_stay_under_the_ceilings(house: Any) -> None:
    """Lines of each file (≤ 400) and of each function from `def` to its end (≤ 60)."""
    wrong = []
    for file in house.python():
        text = house.text(file)
        if (lines := text.count("\n")) > MAX_FILE_LINES:
            wrong.append(f"{file}: {lines} lines")
        lengths = {node: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions(ast.parse(text))}
        wrong += [f"{file}:{node.lineno}: {node.name}: {length} lines" for node, length in lengths.items() if length > MAX_FUNCTION_LINES]
    assert not wrong, "\n".join(wrong)


def test_modules_are_called_by_what_they_hold(house: Any) -> None:
    """Names of Python files and their folders against the names that say nothing."""
    assert not [str(file) for file in house.python() if NAMELESS & {part.lower().lstrip("_") for part in file.with_suffix("").parts}]


def test_what_is_public_has_a_docstring(house: Any) -> None:
    """Modules everywhere; in the packages also public classes, functions and methods."""
    missing = []
    for file in house.python():
        tree = ast.parse(house.text(file))
        found = [f"{file}: module"] if not ast.get_docstring(tree) else []
        if file.parts[0] in house.rooms:
            found += [f"{file}:{line}: {name}" for line, name in _undocumented(tree)]
        missing += found
    assert not missing, "\n".join(missing)


def _undocumented(scope: ast.Module | ast.ClassDef) -> Iterator[tuple[int, str]]:
    for node in scope.body:
        if not isinstance(node, ast.ClassDef | Function) or node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield node.lineno, node.name
        if isinstance(node, ast.ClassDef):
            yield from _undocumented(node)


def test_a_broad_except_says_why(house: Any) -> None:
    """`except Exception`, `except BaseException` and a bare `except` re-raise, or carry a reason there or on the line above."""
    wrong = []
    for file in house.python():
        text = house.text(file)
        remarks = comments(text)
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or bool({"Exception", "BaseException"} & set(re.findall(r"\w+", ast.unparse(node.type))))
            last = node.body[-1]
            reraises = isinstance(last, ast.Raise) and last.exc is None
            reason = words(remarks.get(node.lineno, "")) + words(remarks.get(node.lineno - 1, ""))
            if broad and not reraises and reason < 2:
                wrong.append(f"{file}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def test_nothing_prints_or_evaluates_text(house: Any) -> None:
    """No call of print, eval, exec, breakpoint or input in the packages."""
    wrong = []
    for file in house.python(packages_only=True):
        calls = [node for node in ast.walk(ast.parse(house.text(file))) if isinstance(node, ast.Call)]
        named = [(node.lineno, node.func.id) for node in calls if isinstance(node.func, ast.Name)]
        wrong += [f"{file}:{line}: {name}(" for line, name in named if name in ("print", "eval", "exec", "breakpoint", "input")]
    assert not wrong, "\n".join(wrong)


def test_every_survivor_has_its_reason_beside_it(house: Any) -> None:
    """A TODO says what and why; a `type: ignore` names its code and a reason, after it or in the comment above."""
    wrong = []
    for file in house.python():
        remarks = comments(house.text(file))
        for line, comment in remarks.items():
            above = remarks.get(line - 1, "")
            if re.search(r"\b(TODO|FIXME|XXX)\b", comment) and words(comment) < 3:
                wrong.append(f"{file}:{line}: {comment}")
            if "type: ignore" in comment and ("type: ignore[" not in comment or words(comment) + words(above) < 2):
                wrong.append(f"{file}:{line}: {comment}")
    assert not wrong, "\n".join(wrong)


def test_the_checks_above_find_what_they_look_for() -> None:
    """Hand-written offenders against the helpers of this file."""
    offender = "x = 1  # type: ignore[misc]\ny = 2  # TODO\nz = 3  # type: ignore[misc]  # pytest fills it in\n"
    assert {line: words(text) for line, text in comments(offender).items()} == {1: 0, 2: 0, 3: 4}
    tree = ast.parse("class A:\n    def b(self): ...\n    def _c(self): ...\ndef d(): 'doc'\n")
    assert [name for _, name in _undocumented(tree)] == ["A", "b"]
    assert Path("a/utils.py").stem in NAMELESS

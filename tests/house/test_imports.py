"""The import rule of the house, held on every module's syntax tree and on what `bamboo --help` really loads."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Room → the rooms it may import; they stand in a line, and imports run down it.
BELOW = {
    "cli": set(),
    "datasets": {"cli"},
    "slurm": {"cli"},
    "model_zoo": {"cli", "datasets"},
    "linear_probe": {"cli", "datasets", "slurm", "model_zoo"},
    "pretrain": {"cli", "datasets", "slurm", "model_zoo", "linear_probe"},
    "detection": {"cli", "datasets", "slurm", "model_zoo", "linear_probe", "pretrain"},
}


def module_name(file: Path) -> str:
    return ".".join(("bamboo", *file.with_suffix("").parts))


def imports(file: Path, tree: ast.AST) -> Iterator[tuple[int, str, bool]]:
    """Yields (line, absolute dotted target, was relative) of every import, wherever in the file it stands."""
    package = module_name(file).split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*parent, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}", bool(node.level)) for alias in node.names)


def parsed(house: Any, *, packages_only: bool) -> list[tuple[Path, ast.Module]]:
    return [(file, ast.parse(house.text(file), str(file))) for file in house.python(packages_only=packages_only)]


def test_every_room_has_its_place_in_the_line(house: Any) -> None:
    """The packages of pyproject.toml against the table above (configs holds no code)."""
    assert set(house.rooms) - {"configs"} <= set(BELOW)
    assert not [file for file in house.python() if file.parts[0] == "configs"]


def test_imports_run_down_the_line(house: Any) -> None:
    """Every import of ours, also inside functions, against the table of rooms."""
    wrong = []
    for file, tree in parsed(house, packages_only=True):
        room = file.parts[0]
        for line, target, _ in imports(file, tree):
            other = target.split(".")[1] if target.startswith("bamboo.") else room
            if other != room and other not in BELOW[room]:
                wrong.append(f"{file}:{line}: {room} must not import {other}")
    assert not wrong, "\n".join(wrong)


def test_imports_are_relative_inside_and_absolute_outside(house: Any) -> None:
    """Inside the packages ours are relative; elsewhere `bamboo.…`; nowhere by a top-level folder's name."""
    wrong = []
    for file, tree in parsed(house, packages_only=False):
        inside = file.parts[0] in house.rooms
        for line, target, relative in imports(file, tree):
            first = target.split(".")[0]
            if not relative and first in BELOW:
                wrong.append(f"{file}:{line}: `{first}` is a folder of ours; write bamboo.{first}")
            elif inside and not relative and first == "bamboo":
                wrong.append(f"{file}:{line}: write a relative import inside the packages")
            elif not inside and relative:
                wrong.append(f"{file}:{line}: write an absolute bamboo.… import outside the packages")
            elif relative and not target.startswith("bamboo."):
                wrong.append(f"{file}:{line}: climbs out of bamboo")
    assert not wrong, "\n".join(wrong)


def test_modules_import_in_no_circle(house: Any) -> None:
    """The graph of modules, imports inside functions counted, is sorted by graphlib."""
    trees = parsed(house, packages_only=True)
    modules = {module_name(file) for file, _ in trees}
    graph: dict[str, set[str]] = {}
    for file, tree in trees:
        name = module_name(file)
        targets = {target for _, target, _ in imports(file, tree)}
        graph[name] = {module for module in modules - {name} if any(t == module or t.rpartition(".")[0] == module for t in targets)}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")


def test_nothing_is_imported_by_name_behind_the_rule(house: Any) -> None:
    """`import_module` takes a module of ours only in cli/main.py and cli/commands.py, and elsewhere one of the same package (`.name`);
    what a `Command` is run by lies in the room that declares it."""
    wrong = []
    for file, tree in parsed(house, packages_only=True):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            if ast.unparse(node.func) == "Command":
                (runs,) = [ast.unparse(keyword.value).lstrip("f").strip("'\"") for keyword in node.keywords if keyword.arg == "run"]
                wrong += [] if runs.startswith(("{__name__}.", f"bamboo.{file.parts[0]}.")) else [f"{file}:{node.lineno}: {runs}"]
            if not ast.unparse(node.func).endswith("import_module"):
                continue
            target = ast.unparse(node.args[0]).lstrip("f").strip("'\"")
            written = isinstance(node.args[0], ast.Constant | ast.JoinedStr) and not target.startswith(("bamboo", "..", "{"))
            if file not in (Path("cli/main.py"), Path("cli/commands.py")) and not written:
                wrong.append(f"{file}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("arguments", [["--help"], [], ["shrads"]])
def test_the_bare_command_loads_nothing_heavy(arguments: list[str]) -> None:
    """sys.modules of a fresh interpreter after `bamboo --help` against the standard library's names."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "from bamboo.cli.main import main\n"
        f"main({arguments!r})\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "sys.stderr.write('LOADED ' + ' '.join(sorted(loaded - set(sys.stdlib_module_names) - {'bamboo'})))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.rpartition("LOADED")[2].split() == []

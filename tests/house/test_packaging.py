"""What the wheel holds, against the tree; and that `import datasets` in the checkout is never ours."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

SHIPPED = {".py", ".yaml", ".html", ".sh"}


def shipped(house: Any) -> set[str]:
    """Returns the files of the packages that a wheel must hold, named as in the tree."""
    folders = {package.removeprefix("bamboo.").replace(".", "/") for package in house.packages}
    files = (file for file in house.files if file.suffix in SHIPPED or file.name == "py.typed")
    return {file.as_posix() for file in files if file.parent.as_posix() in folders}


@pytest.fixture(scope="module")
def wheel(house: Any, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names inside the wheel that is built from a copy of the tree (a build in place would leave and reuse `build/lib`)."""
    copy, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for file in house.files:
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(house.root / file, copy / file)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (made,) = out.glob("*.whl")
    with zipfile.ZipFile(made) as archive:
        return set(archive.namelist())


def test_only_bamboo_stands_at_the_top_of_the_wheel(wheel: set[str]) -> None:
    """Top-level names of the built wheel."""
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"bamboo"}


def test_the_wheel_holds_the_packages_and_nothing_else(house: Any, wheel: set[str]) -> None:
    """Files under bamboo/ in the wheel against the .py, .yaml, .html, .sh and py.typed files of the tree."""
    inside = {name.removeprefix("bamboo/") for name in wheel if name.startswith("bamboo/")}
    assert inside == shipped(house)


def test_the_wheel_declares_the_command(wheel: set[str]) -> None:
    """The wheel has entry points."""
    assert any(name.endswith(".dist-info/entry_points.txt") for name in wheel)


def test_every_folder_of_ours_is_listed(house: Any) -> None:
    """Folders with code or configs in the rooms against `packages`: one that is not listed is missing from the wheel in silence."""
    outside = {"tests", "benchmarks", "docs", ".ci"}
    with_files = {file.parent for file in house.files if file.suffix in SHIPPED and file.parent != Path()}
    needed = {".".join(("bamboo", *folder.parts)) for folder in with_files if folder.parts[0] not in outside}
    assert needed - set(house.packages) == set()
    assert {package for package in house.packages if not (house.root / package.removeprefix("bamboo.").replace(".", "/")).is_dir()} == set()


def test_every_room_with_code_is_marked_as_typed(house: Any) -> None:
    """A py.typed beside the code of each package."""
    with_code = {file.parent for file in house.python(packages_only=True)}
    assert not [str(folder) for folder in with_code if not (house.root / folder / "py.typed").is_file()]


def test_no_folder_is_a_regular_package(house: Any) -> None:
    """No __init__.py anywhere: with one, `datasets/` would win `import datasets` in the checkout."""
    assert not [str(file) for file in house.files if file.name == "__init__.py"]


IMPORT_BOTH = (
    "import sys, bamboo.datasets.atomic\n"
    "try:\n    import datasets\nexcept ImportError:\n    print('none')\n"
    "else:\n    print(getattr(datasets, '__file__', None), getattr(datasets, 'STAND_IN', None))\n"
)


def run_in_checkout(house: Any, *command: str, path: str = "") -> str:
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, *command], cwd=house.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_datasets_in_the_checkout_is_never_ours(house: Any) -> None:
    """A fresh interpreter started in the checkout, whose folder comes first on its path."""
    file = run_in_checkout(house, "-c", IMPORT_BOTH).split(" ")[0]
    assert file in ("none", "None") or not Path(file).resolve().is_relative_to(house.root) or ".venv" in Path(file).parts


@pytest.mark.parametrize("as_module", [False, True])
def test_a_regular_datasets_package_wins(house: Any, tmp_path: Path, as_module: bool) -> None:
    """A stand-in for Hugging Face's package, later on the path than the checkout, under `python -c` and `python -m`."""
    stand_in = tmp_path / "datasets" / "__init__.py"
    stand_in.parent.mkdir()
    stand_in.write_text("STAND_IN = 'yes'\n")
    (tmp_path / "ask.py").write_text(IMPORT_BOTH)
    command = ("-m", "ask") if as_module else ("-c", IMPORT_BOTH)
    assert run_in_checkout(house, *command, path=str(tmp_path)) == f"{stand_in} yes"

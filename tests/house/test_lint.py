"""ruff over the checkout, and mypy in strict mode over every package, through the one-symlink view."""

import subprocess
import sys
from typing import Any


def run(*command: str, house: Any, **environment: str) -> None:
    environment["PATH"] = "/usr/bin:/bin"
    done = subprocess.run([sys.executable, "-m", *command], cwd=house.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing(house: Any) -> None:
    """`ruff check .` with the rules of pyproject.toml."""
    run("ruff", "check", "--quiet", ".", house=house)


def test_mypy_strict_finds_nothing(house: Any) -> None:
    """mypy sees `bamboo` as a folder (build/view/bamboo → the root), since type checkers run no import hooks."""
    view = house.root / "build" / "view" / "bamboo"
    if not view.is_symlink():
        view.parent.mkdir(parents=True, exist_ok=True)
        view.symlink_to("../..")
    with_code = {".".join(("bamboo", *file.parent.parts)) for file in house.python(packages_only=True)}
    assert with_code <= set(house.packages)
    rooms = {".".join(package.split(".")[:2]) for package in with_code}  # -p takes what lies below along
    packages = [word for room in sorted(rooms) for word in ("-p", room)]
    run("mypy", "--no-error-summary", *packages, house=house, MYPYPATH="build/view")

"""Job arrays: the rendered script read back by bash, and ranges against a plain expansion."""

import itertools
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bamboo.cli.config import build
from bamboo.cli.errors import UserError
from bamboo.slurm.array import TASK, ranges, render_array
from bamboo.slurm.settings import SlurmSettings


def render(tmp_path: Path, command: list[str], tasks: list[int] | None = None, **settings: object) -> str:
    return render_array("probe", tasks or [0, 1, 2, 5], command, tmp_path, tmp_path / "logs", build(SlurmSettings, settings, "test"))


def test_the_script_runs_its_command_with_the_number_of_the_task(tmp_path: Path) -> None:
    """The rendered script under bash, with hostile words in the command: each arrives as it was; setup lines run first."""
    words = ["two words", "$HOME", "it's", '"', "`id`", "--data=a b"]
    folder = tmp_path / "a folder"
    folder.mkdir()
    script = render_array(
        "probe", [7], ["printf", "%s\n", TASK, *words], folder, tmp_path, build(SlurmSettings, {"setup": ["echo first; pwd"]}, "test")
    )
    environment = {"PATH": "/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_JOB_ID": "1", "HOME": "/nowhere"}
    lines = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment).stdout.splitlines()
    assert lines[:2] == ["first", str(folder)]
    assert lines[3:] == ["7", *words]


def test_directives_say_what_the_settings_ask_for(tmp_path: Path) -> None:
    """Every setting as sbatch's option; those that are not given are left to the cluster."""
    script = render(tmp_path, ["true"], time="4:00:00", gpus=1, cpus=8, partition="gpu", max_running=3, extra=["--exclude=node7"])
    directives = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"--array=0-2,5%3", "--time=4:00:00", "--gpus-per-node=1", "--cpus-per-task=8", "--partition=gpu", "--exclude=node7"} <= set(
        directives
    )
    assert not [line for line in directives if line.startswith(("--account", "--qos", "--mem"))]
    assert "--gpus-per-node" not in render(tmp_path, ["true"])


def test_words_with_blanks_reach_sbatch_whole(tmp_path: Path) -> None:
    """A folder with a blank and a per cent sign, and a name with a blank: quoted, and % doubled, which would else be SLURM's own sign."""
    script = render_array("my name", [0], ["true"], tmp_path, tmp_path / "a b%j", SlurmSettings())
    assert '#SBATCH --job-name="my name"\n' in script
    assert f'#SBATCH --output="{tmp_path}/a b%%j/%A_%a.log"\n' in script


@given(st.sets(st.integers(0, 200), min_size=1))
def test_ranges_name_exactly_the_numbers(numbers: set[int]) -> None:
    """`0-3,7` expanded by hand against the set it was made of; no range could be joined to its neighbour."""
    spelled = [[int(end) for end in part.split("-")] for part in ranges(numbers).split(",")]
    assert sorted(number for part in spelled for number in range(part[0], part[-1] + 1)) == sorted(numbers)
    assert all(later[0] > earlier[-1] + 1 for earlier, later in itertools.pairwise(spelled))


@pytest.mark.parametrize(
    ("given_settings", "said"),
    [
        ({"partition": "two words"}, "partition='two words'"),
        ({"extra": ["exclude=node7"]}, "extra='exclude=node7'"),
        ({"setup": ["a\nb"]}, "setup: 'a.*line break"),
        ({"cpus": 0}, "cpus=0"),
        ({"partion": "gpu"}, "did you mean 'partition'"),
    ],
)
def test_wrong_settings_are_refused(given_settings: dict[str, object], said: str) -> None:
    """What would break the script, or be ignored by sbatch, is an error that names the setting."""
    with pytest.raises(UserError, match=said):
        build(SlurmSettings, given_settings, "test")


@pytest.mark.parametrize("tasks", [[], [-1, 0]])
def test_an_array_needs_tasks(tmp_path: Path, tasks: list[int]) -> None:
    """No task, and a negative number."""
    with pytest.raises(UserError, match="at least one task"):
        render_array("probe", tasks, ["true"], tmp_path, tmp_path, SlurmSettings())

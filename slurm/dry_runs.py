"""Tries the arguments of many runs by bamboo pretrain's own dry run, in one interpreter apart: `python -m bamboo.slurm.dry_runs`.

It reads a JSON list of lists of arguments and writes a line of JSON for each: exit code, and what was said. It knows nothing of pretraining
but the verb's name, as the command line does.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence

from ..cli.errors import EXIT_FAILURE, BambooError
from ..cli.main import run


def dry_run(arguments: Sequence[Sequence[str]]) -> list[str]:
    """Returns, for each list of arguments of bamboo pretrain, what is wrong with it; "" where it would run.

    Raises:
        BambooError: when the interpreter itself fails.
    """
    command = [sys.executable, "-m", "bamboo.slurm.dry_runs"]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}  # as in the job
    done = subprocess.run(command, input=json.dumps(arguments), capture_output=True, text=True, check=False, env=environment)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or len(answers) != len(arguments):
        raise BambooError(f"the arguments of bamboo pretrain cannot be tried: {done.stderr.strip() or 'its interpreter ended'}")
    return [(said.strip() or f"exit code {code}") if code else "" for code, said in answers]


def main() -> int:
    """Tries each list of arguments of standard input."""
    for arguments in json.load(sys.stdin):
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            code = _exit_code(arguments)
        sys.stdout.write(json.dumps([code, said.getvalue().rpartition("bamboo pretrain: ")[2]]) + "\n")
    return 0


def _exit_code(arguments: Sequence[str]) -> int:
    try:
        return run("pretrain", [*arguments, "--dry_run", "true"])
    except SystemExit as end:  # --help among the arguments
        return end.code if isinstance(end.code, int) else EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())

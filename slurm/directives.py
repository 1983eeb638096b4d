"""What every batch script has, made from the settings: the #SBATCH lines, and the shell lines before the command."""

import shlex
from collections.abc import Mapping, Sequence

from .settings import JobResources


def directives(resources: JobResources, options: Mapping[str, str | None]) -> str:
    """Returns the #SBATCH lines: `options` of sbatch by name, those without a value as "", without those that are None; then the
    resources. The user's further options come last, and win.
    """
    asked = {
        **options,
        "cpus-per-task": str(resources.cpus),
        "gpus-per-node": (f"{resources.gpu_type}:" if resources.gpu_type else "") + str(resources.gpus) if resources.gpus else None,
        "mem": resources.memory,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "time": resources.time,
        "constraint": resources.constraint,
    }
    lines = [f"--{option}={_quoted(value)}" if value else f"--{option}" for option, value in asked.items() if value is not None]
    return "\n".join(f"#SBATCH {line}" for line in [*lines, *map(_further, resources.extra)])


def setup_lines(lines: Sequence[str]) -> str:
    """Returns the user's setup as shell lines; the first that fails ends the script, by its function `fail`.

    Variables that are not set are allowed there: conda's and modules' scripts use them.
    """
    if not lines:
        return ""
    return "\n".join(["set +u", *(f"{{ {line}\n}} || fail {shlex.quote('setup failed: ' + line)}" for line in lines), "set -u"])


def _further(option: str) -> str:
    name, equals, value = option.partition("=")
    return f"{name}={_quoted(value)}" if equals and not any(map(str.isspace, name)) else option


def _quoted(value: str) -> str:
    """Returns a directive's value as sbatch reads it back: in double quotes where a blank or a # would end it, or a sign change it."""
    is_plain = not any(letter.isspace() or letter in "\"'\\#" for letter in value)
    return value if is_plain else '"{}"'.format(value.replace("\\", "\\\\").replace('"', '\\"'))

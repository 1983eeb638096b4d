"""The #SBATCH lines of a batch script, made from the settings."""

from collections.abc import Mapping

from .settings import JobResources


def directives(resources: JobResources, options: Mapping[str, str | None]) -> str:
    """Returns the #SBATCH lines: `options` of sbatch by name, without those that are None, then the resources."""
    asked = {
        **options,
        "cpus-per-task": str(resources.cpus),
        "gpus-per-node": str(resources.gpus) if resources.gpus else None,
        "mem": resources.memory,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "time": resources.time,
        "constraint": resources.constraint,
    }
    lines = [f"#SBATCH --{option}={_quoted(value)}" for option, value in asked.items() if value is not None]
    return "\n".join([*lines, *(f"#SBATCH {option}" for option in resources.extra)])


def _quoted(value: str) -> str:
    """Returns a directive's value as sbatch reads it back: in double quotes where a blank would end it."""
    return '"{}"'.format(value.replace("\\", "\\\\").replace('"', '\\"')) if any(map(str.isspace, value)) else value

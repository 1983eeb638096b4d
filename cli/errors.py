"""Errors that end a command, and the exit codes they end it with."""

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_USER = 2
EXIT_RESUMABLE = 75  # sysexits' EX_TEMPFAIL: stopped early on request, the same command goes on


class BambooError(Exception):
    """A failure that is explained by its message alone; the command line prints it without a traceback."""

    exit_code = EXIT_FAILURE


class UserError(BambooError, ValueError):
    """A mistake in a setting, an argument or an input that the user named; exit code 2.

    The message names the setting, its value, the allowed range and the remedy.
    """

    exit_code = EXIT_USER


class DataError(BambooError, RuntimeError):
    """Data that is not what it says it is (truncated, altered, unreadable); exit code 1."""


def missing_extra(package: str, extra: str) -> UserError:
    """Returns the error for an optional `package` that is not installed and comes with `extra`."""
    return UserError(f"{package} is not installed: pip install 'bamboo-vision[{extra}]'")

"""The `bamboo` command: `bamboo VERB …`; a verb's package is imported only when that verb is called."""

import errno
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence

from .errors import EXIT_FAILURE, EXIT_USER, BambooError

VERBS: dict[str, tuple[str, str]] = {
    "shards": ("bamboo.datasets.cli", "pack images into WebDataset shards; index, verify and show them"),
    "sets": ("bamboo.datasets.downstream.cli", "the downstream sets: list, check on disk, download"),
    "grow": ("bamboo.datasets.growth.cli", "what is new in data that has arrived, and how often training takes each sample"),
    "pretrain": ("bamboo.pretrain.cli", "pretrain a ResNet or ViT on shards (torchrun -m bamboo.pretrain for many processes)"),
    "slurm": ("bamboo.slurm.cli", "pretrain on a SLURM cluster: jobs and sweeps that save when they are stopped, come back and resume"),
    "zoo": ("bamboo.model_zoo.zoo_cli", "list, fetch, show and convert released checkpoints"),
    "features": ("bamboo.model_zoo.cli", "write a backbone's features of a dataset to a folder"),
    "probe": ("bamboo.linear_probe.cli", "score a backbone by a linear probe on a downstream set"),
    "multi_run": ("bamboo.linear_probe.multi_run", "score many backbones on many sets: one resumable matrix, here or on SLURM"),
    "report": ("bamboo.linear_probe.report.cli", "make the table of all results rows in a folder"),
    "demo": ("bamboo.pretrain.demo", "run the whole job on handwritten digits and write report.html"),
}


def usage() -> str:
    """Returns the text of `bamboo --help`."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in VERBS.items())
    return (
        "usage: bamboo VERB [--help] [--config FILE] [--setting value …]\n\n"
        "Turns a growing pool of images into a pretrained vision backbone, and proves how good it is.\n\n"
        f"verbs:\n{verbs}\n\n"
        "Start here: bamboo demo. Every verb explains itself: bamboo VERB --help.\n"
        "Exit codes: 0 done, 1 a failure, 2 your mistake, 75 stopped early on request and resumable.\n"
    )


def run(verb: str, argv: Sequence[str]) -> int:
    """Runs one verb and returns its exit code; an explained error is printed without a traceback."""
    try:
        entry: Callable[[Sequence[str]], int] = importlib.import_module(VERBS[verb][0]).main  # seconds, where it is torch
        return entry(argv)
    except BambooError as error:
        sys.stderr.write(f"bamboo {verb}: {error}\n")
        return error.exit_code
    except OSError as error:  # disk full, read-only, permission: the message names the file
        if error.filename is None and error.errno != errno.ENOSPC:
            traceback.print_exc()  # a broken pipe, a refused connection: the message alone does not say whose
        sys.stderr.write(f"bamboo {verb}: {error}\n")
        return EXIT_FAILURE
    except KeyboardInterrupt:
        sys.stderr.write(f"bamboo {verb}: interrupted\n")
        return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return 0 if arguments else EXIT_USER
    verb = arguments[0]
    if verb not in VERBS:
        import difflib  # only a mistyped verb pays for the import

        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        sys.stderr.write(f"bamboo: no verb {verb!r}.{hint} The verbs are: {', '.join(VERBS)}.\n")
        return EXIT_USER
    return run(verb, arguments[1:])

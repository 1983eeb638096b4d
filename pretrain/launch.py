"""torchrun that keeps exit code 75 and says who died: `python -m bamboo.pretrain.launch [torchrun's options] -m bamboo.pretrain …`.

torchrun ends with 1 whatever its ranks end with, and with a traceback when it was signalled itself. This ends with 75 when the ranks did:
when all that failed say so, or, after a signal that torchrun passed on, when rank 0's marker does (BAMBOO_ENDED_FILE names it). When a
rank dies it says which, how, where its log is, and what follows.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ..cli.errors import EXIT_DONE, EXIT_FAILURE, EXIT_RESUMABLE
from .marker import FINISHED, MARKER_VARIABLE, read_marker

# Restarted ranks must not read the dead ones' addresses from a store that outlives them, and hang: pytorch issues 135712, 167288.
_STORE_VARIABLE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


def main(argv: Sequence[str]) -> int:
    """Runs torchrun and returns the exit code: 0, 75, 128 + the signal that ended it, or 1."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from .agent import install

    os.environ.setdefault(_STORE_VARIABLE, "1")
    install(argv)
    try:
        run.main(list(argv))
    except SignalException as ended:
        reason = read_marker(Path(os.environ.get(MARKER_VARIABLE, ""))).get("reason")
        if reason == FINISHED:
            return EXIT_DONE
        return EXIT_RESUMABLE if reason else 128 + ended.sigval
    except ChildFailedError as failed:
        codes = {failure.exitcode for failure in failed.failures.values()}
        stopped = EXIT_RESUMABLE in codes and codes <= {EXIT_RESUMABLE, -signal.SIGTERM}  # torchrun ends those that are slower to end
        return EXIT_RESUMABLE if stopped else EXIT_FAILURE
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""torchrun that keeps exit code 75 and says who died: `python -m bamboo.pretrain.launch [torchrun's options] -m bamboo.pretrain …`.

torchrun ends with 1 whatever its ranks end with, and with a traceback when it was signalled itself. This ends with 75 when the ranks did:
when all that failed say so, or, after a signal that torchrun passed on (SIGUSR1, too, unless --signals-to-handle says otherwise), when the
marker does that rank 0 has left since (in the run folder, or where BAMBOO_ENDED_FILE says). When a rank dies it says which, how, where its
log is, and what follows.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ..cli.errors import EXIT_DONE, EXIT_FAILURE, EXIT_RESUMABLE
from .stopping.marker import FINISHED, Marker, read_marker

_DEFAULTS = {
    # Restarted ranks must not read the dead ones' addresses from a store that outlives them, and hang: pytorch issues 135712, 167288.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    "PET_SIGNALS_TO_HANDLE": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",  # torchrun's --signals-to-handle, which has no SIGUSR1
    "PET_SHUTDOWN_TIMEOUT": "240",  # its --shutdown-timeout, else 30 s: ranks that are told to stop may have much to save
}


def main(argv: Sequence[str]) -> int:
    """Runs torchrun and returns the exit code: 0, 75, 128 + the signal that ended it, or 1."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from .launcher.agent import install

    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    install(argv)
    ended_file = _ended_file(argv)
    before = read_marker(ended_file)
    try:
        run.main(list(argv))
    except SignalException as ended:
        found = read_marker(ended_file)
        reason = found.get("reason") if found != before else None
        if reason == FINISHED:
            return EXIT_DONE
        return EXIT_RESUMABLE if reason else 128 + ended.sigval
    except ChildFailedError as failed:
        codes = {failure.exitcode for failure in failed.failures.values()}
        stopped = EXIT_RESUMABLE in codes and codes <= {EXIT_RESUMABLE, -signal.SIGTERM}  # torchrun ends those that are slower to end
        return EXIT_RESUMABLE if stopped else EXIT_FAILURE
    return EXIT_DONE


def _ended_file(argv: Sequence[str]) -> Path:
    """Returns where rank 0 says how the run ended."""
    from .launcher.deaths import run_folder

    return Marker(run_folder(argv) or Path(os.devnull)).path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

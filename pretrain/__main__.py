"""`torchrun -m bamboo.pretrain --config FILE`: the verb `pretrain`, for launchers."""

import signal
import sys

from ..cli.errors import EXIT_RESUMABLE
from ..cli.main import run
from .stopping.signals import SIGNALS

code = run("pretrain", sys.argv[1:])
if code == EXIT_RESUMABLE:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # the launcher's to ranks that take longer to end than the first: their code is to be 75, too
sys.exit(code)

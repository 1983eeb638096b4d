"""`torchrun -m bamboo.pretrain --config FILE`: the verb `pretrain`, for launchers."""

import sys

from ..cli.main import run

sys.exit(run("pretrain", sys.argv[1:]))

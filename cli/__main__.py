"""`torchrun -m bamboo.cli VERB …`: any verb, for launchers."""

import sys

from .main import main

sys.exit(main())

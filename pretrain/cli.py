"""The verb `pretrain`.

One process:   bamboo pretrain --config configs/pretrain/tiny_imagenet_resnet18.yaml
One node:      torchrun --nproc-per-node 8 -m bamboo.pretrain --config FILE
Many nodes:    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29400 -m bamboo.pretrain --config FILE

The same command on the same run.folder resumes from the newest checkpoint, on any number of ranks. SIGTERM, SIGUSR1 or SIGINT (Ctrl-C)
ends the run with its state saved and exit code 75; a second one, five seconds later, at once. On SLURM: bamboo slurm submit --help.
"""

import sys
from collections.abc import Sequence

from ..cli.arguments import parse
from .settings.pretrain import PretrainSettings
from .stopping.signals import StopSignals

SETTINGS = {"": PretrainSettings}


def main(argv: Sequence[str]) -> int:
    """Runs `bamboo pretrain` and returns its exit code."""
    with StopSignals() as signals:
        return _run(parse(PretrainSettings, argv, prog="bamboo pretrain", doc=__doc__ or ""), signals)


def _run(config: PretrainSettings, signals: StopSignals) -> int:
    from ..datasets.ranks import start_ranks  # torch is imported only once the settings are known to be right
    from .engines.choice import check_engine
    from .evaluators.opened import open_evaluators
    from .phases import describe_run, plan_phases
    from .pool import open_pool
    from .run import Run

    check_engine(config)
    pool = open_pool(config)
    evaluators = open_evaluators(config)
    phases = plan_phases(config, pool.lengths)
    if config.dry_run:
        sys.stdout.write("\n".join(describe_run(config, pool, phases)) + "\n")
        for evaluator in evaluators:
            sys.stdout.write(f"evaluator {evaluator}\n")
        return 0
    ranks = start_ranks(config.run.device, config.health.collective_s)
    try:
        Run(config, pool, evaluators, ranks, signals).execute()
    finally:
        ranks.close()
    return 0

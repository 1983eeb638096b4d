"""DeepSpeed: ZeRO stages 0 to 3 around timm's optimiser.

Stage 0 shards nothing, 1 the optimiser's state, 2 the gradients too, 3 the weights too. Nothing is compiled by DeepSpeed. Tried with
0.19.8; what is used of its inside (flat partitions and their addresses) stands in `zero.py`.
"""

import atexit
import gc
import os
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...cli.errors import missing_extra
from ...datasets.ranks import Ranks
from ...model_zoo.tensor_files import Stored
from .engine import Engine, spare_of
from .group import close_group, open_group
from .held import Held, whole
from .portable import Moments
from .zero import Partitions, Slices, Stages


class DeepSpeedEngine(Engine):
    """A model and its optimiser in DeepSpeed's hands.

    Args:
        module: the whole model, equal on all ranks; it is sharded in place with stage 3.
        tree: DeepSpeed's settings, of `deepspeed_json`.
    """

    def __init__(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, ranks: Ranks, *, tree: dict[str, Any]) -> None:
        self._stage: int = tree["zero_optimization"]["stage"]
        spare = spare_of(module) if self._stage == 3 else None
        layout = next((p for p in module.parameters() if p.dim() == 4 and not p.is_contiguous()), None)
        self._layout = torch.contiguous_format if layout is None else torch.channels_last
        module = module.to(memory_format=torch.contiguous_format)  # DeepSpeed takes weights for bytes in a row
        super().__init__(module, optimizer, ranks)
        self._spare = spare
        self._parameters: dict[str, Any] = dict(module.named_parameters())
        self._own_group = open_group(ranks)
        deepspeed = _import_deepspeed(ranks)
        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)
        self._runner, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=tree, dist_init_required=False)
        self._zero = self._runner.optimizer
        self._clip_norm: float = tree["gradient_clipping"]
        self._stages: Stages | None = None
        if self._stage:
            self._stages = (Slices if self._stage == 3 else Partitions)(self._zero, self._parameters, self._names)
        if self._stage == 3:
            atexit.register(_settle)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns float32 logits."""
        logits: torch.Tensor = self._runner(images.contiguous(memory_format=self._layout))
        return logits.float()

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        """Accumulates gradients; after the last backward of a step they are averaged (with stages 2 and 3, after each)."""
        self._runner.set_gradient_accumulation_boundary(last)
        self._runner.backward(loss, scale_wrt_gas=False)

    def step(self, *, measure: bool, skip: bool = False) -> torch.Tensor | None:
        """Clips, updates and clears; stage 0 measures the norm when asked.

        Stages 1 to 3 know the norm in any case, look at it on the host, and leave a step out by themselves when it is not finite: then it
        is given as infinite.
        """
        if self._stage:
            self._step()
            return torch.as_tensor(self._runner.get_global_grad_norm(), dtype=torch.float32, device=self._ranks.device).detach()
        norm = None
        if measure or skip:
            norm = torch.nn.utils.get_total_norm([p.grad for p in self._parameters.values() if p.grad is not None], foreach=True)
        if skip and norm is not None and not bool(torch.isfinite(norm)):
            self._runner.zero_grad()
            self._runner.micro_steps += 1  # as its own step counts backward passes
        else:
            self._step()
        return norm if norm is None else norm.detach()

    def _step(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self._runner.step()

    @property
    def skip_waits(self) -> bool:
        """Stages 1 to 3 wait in any case, whether steps are left out or not."""
        return not self._stage

    def moments(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields (name, state), where it lies in the flat partitions."""
        if self._stages is not None:
            yield from self._stages.moments()
            return
        for name, parameter in self._parameters.items():
            if state := self.optimizer.state.get(parameter):
                yield name, {key: whole(value) if torch.is_tensor(value) else value for key, value in state.items()}

    def take_moments(self, moments: Moments) -> None:
        """Takes up the states, each rank its part of the flat partitions."""
        if self._stages is not None:
            self._stages.take(moments)
            return
        self.optimizer.state.clear()
        for name, state in moments.items():
            parameter = self._parameters[name]
            self.optimizer.state[parameter] = {key: _like(value, parameter) for key, value in state.items()}

    def shards(self) -> dict[str, torch.Tensor]:
        """Returns whole tensors; with stage 3, this rank's flat slices of the weights and whole buffers."""
        state = self.module.state_dict()
        return {name: self._flat(name, tensor) for name, tensor in state.items()} if self._stage == 3 else state

    def whole(self, name: str, shard: torch.Tensor) -> torch.Tensor:
        """Returns all ranks' slices, joined."""
        return self._stages.whole(name, shard) if isinstance(self._stages, Slices) and name in self._parameters else shard

    def place(self, name: str, shard: torch.Tensor) -> Held:
        """Returns this rank's slice, without its padding."""
        return self._stages.place(name, shard) if isinstance(self._stages, Slices) else whole(shard)

    @torch.no_grad()
    def take_weights(self, model: Mapping[str, Stored]) -> None:
        """Takes up weights, into the model and into ZeRO's own copies."""
        super().take_weights(model)
        if self._stages is not None:
            self._stages.take_weights(model)

    def close(self) -> None:
        """Lets go of DeepSpeed's engine, and of the process group that was opened for a single process."""
        self._runner = self._zero = self._stages = None
        gc.collect()
        if self._own_group:
            from deepspeed import comm

            comm.destroy_process_group()
            close_group()

    def _flat(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        parameter = self._parameters.get(name)
        flat: torch.Tensor = tensor if parameter is None else parameter.ds_tensor.data
        return flat


def _import_deepspeed(ranks: Ranks) -> Any:
    """Returns the package, told not to build anything nor to chat."""
    os.environ.setdefault("DS_ACCELERATOR", ranks.device.type)
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "error")
    os.environ.setdefault("LOCAL_RANK", str(ranks.local_rank))  # wanted even where nothing was launched
    try:
        import deepspeed
        from deepspeed.utils.logging import set_log_level_from_string
    except ImportError:
        raise missing_extra("deepspeed", "deepspeed") from None
    set_log_level_from_string("error")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else compiled for 20 s at the first collective of a CPU run
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"deepspeed\.|torch\.distributed")
    return deepspeed


def _like(value: Any, parameter: torch.Tensor) -> Any:
    if not isinstance(value, Stored):
        return value
    return value.whole().to(parameter.device) if value.shape == tuple(parameter.shape) else value.whole()


def _settle() -> None:
    """Lets gloo's threads drop what stage 3 left with them: else about one exit in three aborts, with all work done."""
    gc.collect()
    sys.stdout.flush()
    time.sleep(1)

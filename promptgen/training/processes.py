"""One training on several processes: `torchrun --standalone --nproc-per-node 2 -m promptgen train ...`.

Each process takes every n-th row of the same batch, gradients and counts are summed, so n processes take the steps that one would (up
to the order of sums; dropout is drawn by each for its own rows). gloo on CPUs, nccl on GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import distributed


class Processes:
    """This process among those of a run: `rank` of `count`. Without torchrun there is one."""

    def __init__(self) -> None:
        if distributed.is_torchelastic_launched() and not distributed.is_initialized():
            distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        joined = distributed.is_initialized()
        self.rank = distributed.get_rank() if joined else 0
        self.count = distributed.get_world_size() if joined else 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", self.rank % torch.cuda.device_count())

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replaces every gradient by its sum over the processes, in one message."""
        if self.count == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:  # this process had no row of the batch
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        for gradient, summed in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def sum(self, value: float) -> float:
        """The sum of a number over the processes."""
        if self.count == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64, device=self.device)
        distributed.all_reduce(box)
        return float(box)

    def wait(self) -> None:
        """Returns when all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Ends the group: what follows, the first process does alone."""
        if distributed.is_initialized():
            distributed.destroy_process_group()


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the machine multiplies in it, else float32: without such products casting only costs."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capabilities = torch.backends.cpu.get_cpu_capability()
    has_products = torch.ops.mkldnn._is_mkldnn_bf16_supported() and "AVX512" in capabilities
    return torch.bfloat16 if has_products and torch.cpu._is_avx512_bf16_supported() else torch.float32

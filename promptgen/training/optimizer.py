"""How weights move: Muon for the matrices inside the blocks, AdamW for embeddings and vectors, one schedule for both.

Muon (Jordan et al. 2024, torch.optim.Muon) orthogonalizes the momentum of a matrix. After a million tokens of the
shipped corpus the held-out loss was 3.47 with it and 4.63 with AdamW alone (bench/LOG.md); `optimizer = "adamw"` leaves it out. Its
rate is on AdamW's scale, so `matrix_rate` is that of the matrices with either; embeddings bear, and want, a higher one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from promptgen.training.shape import TrainConfig


class Optimizers:
    """The optimizers of one model, stepped together. `names` lists the parameters in the order of their state."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        matrices = [p for name, p in named if p.dim() == 2 and not _is_embedding(name)]
        embeddings = [p for name, p in named if p.dim() == 2 and _is_embedding(name)]
        vectors = [p for _, p in named if p.dim() < 2]
        self.names = {id(p): name for name, p in named}
        self._all: list[torch.optim.Optimizer] = []
        self._config = config
        self._parameters = [p for _, p in named]
        if config.optimizer == "muon":
            muon = torch.optim.Muon(
                matrices, lr=config.matrix_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
            )
            self._all.append(muon)
            matrices = []
        groups = [
            {"params": embeddings, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        if matrices:
            groups.append({"params": matrices, "weight_decay": config.weight_decay, "lr": config.matrix_rate})
        self._all.append(torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True))
        self._peaks = [group["lr"] for one in self._all for group in one.param_groups]

    @property
    def parts(self) -> tuple[torch.optim.Optimizer, ...]:
        """The torch optimizers: AdamW, and Muon before it where there is one."""
        return tuple(self._all)

    def step(self, scale: float) -> float:
        """Clips the gradients, moves the weights at `scale` times the peak rates, drops the gradients. Returns the gradients' norm.

        If the norm or `scale` is no number, nothing moves and nan is returned.
        """
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self._config.clip_norm))
        if not math.isfinite(norm * scale):
            self._drop_gradients()
            return math.nan
        groups = [group for one in self._all for group in one.param_groups]
        for group, peak in zip(groups, self._peaks, strict=True):
            group["lr"] = peak * scale
        for one in self._all:
            one.step()
        self._drop_gradients()
        return norm

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the optimizers' memory, named "parameter/key"."""
        tensors: dict[str, Tensor] = {}
        for one in self._all:
            for parameter, memory in one.state.items():
                for key, value in memory.items():
                    tensors[f"{self.names[id(parameter)]}/{key}"] = torch.as_tensor(value)
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Takes what `state` gave. Raises KeyError for a tensor of a parameter that is not here."""
        owners = {
            self.names[id(p)]: (one, p) for one in self._all for group in one.param_groups for p in group["params"]
        }
        for name, value in tensors.items():
            parameter_name, _, key = name.rpartition("/")
            one, parameter = owners[parameter_name]
            one.state[parameter][key] = value.to(parameter.device, copy=True)


def learning_rate_scale(step: int, num_steps: int, config: TrainConfig) -> float:
    """Share of the peak rate at a step: linear warm-up, then a line or a cosine down to a small share."""
    warmup = max(1, int(config.warmup_share * num_steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    falling = 1 - progress if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_learning_rate_share + (1 - config.final_learning_rate_share) * falling


def _is_embedding(name: str) -> bool:
    return "wte" in name or "wpe" in name or "lm_head" in name

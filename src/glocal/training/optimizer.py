"""The optimizer, and the learning rate of each step."""

import math

from torch import nn
from torch.optim import AdamW

from glocal.training.config import OptimizerConfig, TrainConfig


def build_optimizer(model: nn.Module, lr: float, config: OptimizerConfig) -> AdamW:
    """Return AdamW over the weights that are not frozen.

    Weight decay leaves out vectors (biases, norms) and what the model names in `no_weight_decay()` (tokens, positions).
    """
    undecayed: set[str] = getattr(model, "no_weight_decay", set)()
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    decayed = {name for name, weight in weights.items() if weight.ndim > 1 and name not in undecayed}
    groups = [
        {"params": [weights[name] for name in weights if name in decayed], "weight_decay": config.weight_decay},
        {"params": [weights[name] for name in weights if name not in decayed], "weight_decay": 0.0},
    ]
    fused = all(weight.device.type in ("cpu", "cuda") for weight in weights.values())
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, lr=lr, betas=config.betas, eps=config.eps, fused=fused)


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int, total: float) -> float:
    """Return the learning rate of a step, counted from 0, in a run of `total` steps, `steps_per_epoch` in an epoch.

    Where `total` is inf, a cosine stays at its peak.
    """
    schedule, peak = config.schedule, config.lr
    warmup = warmup_steps(config, steps_per_epoch)
    if step + 1 <= warmup:
        return peak * (step + 1) / warmup
    if schedule.kind == "inverse_sqrt":
        return peak * math.sqrt(warmup / (step + 1))
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return schedule.min_lr + (peak - schedule.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def warmup_steps(config: TrainConfig, steps_per_epoch: int) -> float:
    """Return the steps until the learning rate is at its highest."""
    return float(config.schedule.warmup_steps or config.schedule.warmup_epochs * steps_per_epoch)

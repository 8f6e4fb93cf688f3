"""Which weights move, how far, and which of them decay."""

import math

from torch import nn
from torch.optim import AdamW

from glocal.training.config import OptimizerConfig


def build_optimizer(model: nn.Module, lr: float, config: OptimizerConfig) -> AdamW:
    """AdamW over the weights that are not frozen.

    Vectors (biases, norms) do not decay, nor what the model names in `no_weight_decay()` (tokens, positions): they are
    few, and their size is not what overfits.
    """
    spared: set[str] = getattr(model, "no_weight_decay", set)()
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    decayed = {name for name, weight in weights.items() if weight.ndim > 1 and name not in spared}
    groups = [
        {"params": [weights[name] for name in weights if name in decayed], "weight_decay": config.weight_decay},
        {"params": [weights[name] for name in weights if name not in decayed], "weight_decay": 0.0},
    ]
    fused = all(weight.device.type in ("cpu", "cuda") for weight in weights.values())
    return AdamW([group for group in groups if group["params"]], lr=lr, betas=config.betas, fused=fused)


def learning_rate(step: int, total: float, warmup: float, peak: float, floor: float = 0.0) -> float:
    """Learning rate of a step, counted from 0: a linear rise over `warmup` steps, then half a cosine to step `total`.

    An endless run (`total` = inf) stays at the peak.
    """
    if step < warmup:
        return peak * (step + 1) / max(warmup, 1)
    progress = min((step - warmup) / max(total - warmup, 1), 1.0)
    return floor + (peak - floor) * (1 + math.cos(math.pi * progress)) / 2

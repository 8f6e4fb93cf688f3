import math

import pytest
import torch
from torch import nn

from glocal.training import OptimizerConfig
from glocal.training.optimizer import build_optimizer, learning_rate


def test_schedule_at_its_landmarks() -> None:
    def rate(step: int) -> float:
        return learning_rate(step, total=110.0, warmup=10.0, peak=1.0, floor=0.2)

    assert [rate(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert [rate(step) for step in (35, 60, 85, 110)] == pytest.approx(
        [0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6, 0.2 + 0.4 * (1 - math.sqrt(0.5)), 0.2]
    )


def test_schedule_without_warmup_or_end() -> None:
    assert learning_rate(0, total=10.0, warmup=0.0, peak=3.0) == 3.0
    assert learning_rate(10**6, total=math.inf, warmup=5.0, peak=3.0) == 3.0
    assert learning_rate(1, total=2.0, warmup=4.0, peak=1.0) == 0.5  # a run that ends while it warms up


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        return {"token"}


def test_only_matrices_decay() -> None:
    model = Model()
    optimizer = build_optimizer(model, 1e-3, OptimizerConfig(weight_decay=0.1))
    names = {id(weight): name for name, weight in model.named_parameters()}
    decay = {names[id(weight)]: group["weight_decay"] for group in optimizer.param_groups for weight in group["params"]}
    assert decay == {"linear.weight": 0.1, "token": 0.0, "linear.bias": 0.0, "norm.weight": 0.0, "norm.bias": 0.0}


def test_decay_moves_what_it_should() -> None:
    model = Model()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    optimizer = build_optimizer(model, 0.5, OptimizerConfig(weight_decay=0.1))
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    torch.testing.assert_close(model.linear.weight, before["linear.weight"] * (1 - 0.5 * 0.1))
    assert torch.equal(model.norm.weight, before["norm.weight"])
    assert torch.equal(model.frozen.weight, before["frozen.weight"])

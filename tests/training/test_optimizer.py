import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import nn

from glocal.errors import GlocalError
from glocal.training import OptimizerConfig, ScheduleConfig, TrainConfig
from glocal.training.optimizer import build_optimizer, learning_rate


def rates(steps: Iterable[int], total: float = math.inf, lr: float = 1.0, **schedule: Any) -> list[float]:
    """Learning rates of a run whose epochs have 10 steps."""
    config = TrainConfig(epochs=1, lr=lr, schedule=ScheduleConfig(**schedule))
    return [learning_rate(config, step, 10, total) for step in steps]


@pytest.mark.parametrize("warmup", [{"warmup_epochs": 1.0}, {"warmup_steps": 10}])
def test_cosine_at_its_landmarks(warmup: dict[str, Any]) -> None:
    def rate(step: int) -> float:
        return rates([step], total=110.0, min_lr=0.2, **warmup)[0]

    assert [rate(step) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert [rate(step) for step in (35, 60, 85, 110)] == pytest.approx(
        [0.2 + 0.4 * (1 + math.sqrt(0.5)), 0.6, 0.2 + 0.4 * (1 - math.sqrt(0.5)), 0.2]
    )


def test_cosine_without_warmup_or_end() -> None:
    assert rates([0], total=10.0, lr=3.0) == [3.0]
    assert rates([10**6], lr=3.0, warmup_steps=5) == [3.0]
    assert rates([1], total=2.0, warmup_steps=4) == [0.5]  # a run that ends while it warms up


def test_no_rate_exceeds_the_peak() -> None:
    for kind in ("cosine", "inverse_sqrt"):
        assert max(rates(range(20), total=20.0, kind=kind, warmup_epochs=0.55)) <= 1.0


def test_inverse_square_root_is_equation_3() -> None:
    """lrate = d_model^-0.5 · min(s^-0.5, s · w^-1.5) of Vaswani et al. 2017, whose steps count from 1."""
    d, w, steps = 512, 4000, [0, 1, 1999, 3998, 3999, 4000, 7999, 99_999]
    expected = [d**-0.5 * min((step + 1) ** -0.5, (step + 1) * w**-1.5) for step in steps]
    got = rates(steps, total=100_000.0, lr=(d * w) ** -0.5, kind="inverse_sqrt", warmup_steps=w)
    assert got == pytest.approx(expected, rel=1e-12)
    assert max(got) == got[4] == (d * w) ** -0.5
    assert rates([39], kind="inverse_sqrt", warmup_epochs=1.0) == [0.5]  # 10 steps an epoch


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup_epochs": 1.0, "warmup_steps": 5}, "both warmup_epochs=1 and warmup_steps=5"),
        ({"kind": "inverse_sqrt"}, "give warmup_epochs or warmup_steps"),
        ({"kind": "inverse_sqrt", "warmup_steps": 5, "min_lr": 1e-5}, "set min_lr to 0"),
    ],
)
def test_a_contradictory_schedule_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(GlocalError, match=message):
        TrainConfig(epochs=1, schedule=ScheduleConfig(**fields)).check()


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


def test_without_decay_it_is_the_papers_adam() -> None:
    config = OptimizerConfig(weight_decay=0.0, betas=(0.9, 0.98), eps=1e-9)
    model, twin = Model(), Model()
    twin.load_state_dict(model.state_dict())
    ours = build_optimizer(model, 0.01, config)
    papers = torch.optim.Adam([weight for weight in twin.parameters() if weight.requires_grad], 0.01, (0.9, 0.98), 1e-9)
    for size in (1e-9, 1e-8):  # so small that ε counts
        for weight in (*model.parameters(), *twin.parameters()):
            weight.grad = torch.full_like(weight, size)
        ours.step()
        papers.step()
    torch.testing.assert_close(dict(model.named_parameters()), dict(twin.named_parameters()))


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

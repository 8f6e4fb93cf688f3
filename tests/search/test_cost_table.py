"""Costs by table: those of the whole model to the last MAC; timed parts kept, added to, and refused elsewhere."""

import json
import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.errors import GlocalError
from glocal.layers.block import BlockConfig
from glocal.models import GLiT, StemConfig, ViTConfig
from glocal.models.cost import count
from glocal.models.glit import NAMED_CONFIGS
from glocal.search import latency
from glocal.search.budget import Budget
from glocal.search.cost import cost_table
from glocal.search.counts import CostTable
from glocal.search.latency import LatencyTable
from glocal.search.space import SpaceConfig, full_space

DIM, HEADS = 24, 3
BLOCK = BlockConfig(embed_dim=DIM, num_heads=HEADS)
BASE = ViTConfig(image_size=(32, 32), patch_size=8, num_classes=5, blocks=(BLOCK,))
CONFIGS = [
    BASE,
    replace(BASE, pool="mean", positions=False),
    replace(BASE, distilled=True, in_chans=1),
    replace(BASE, stem=StemConfig("conv", stride=2), patch_size=4),
]
TABLES = [{kind: cost_table(kind, GLiT(config)) for kind in ("macs", "parameters")} for config in CONFIGS]

blocks = st.builds(
    BlockConfig,
    embed_dim=st.just(DIM),
    num_heads=st.just(HEADS),
    local_heads=st.integers(0, HEADS),
    local=st.sampled_from(["conv1d", "conv2d", "window"]),
    kernel_size=st.sampled_from([1, 3, 7]),
    expand_ratio=st.sampled_from([1, 2, 4]),
    qkv_ratio=st.sampled_from([0.5, 1.0, 2.0]),
    mlp_ratio=st.sampled_from([2.0, 4.0, 6.0]),
    drop_path=st.sampled_from([0.0, 0.1]),
)
paths = st.lists(blocks, min_size=1, max_size=3).map(tuple)


@settings(deadline=None, max_examples=25)
@given(paths, st.integers(0, len(CONFIGS) - 1))
def test_a_path_costs_what_is_counted_in_the_whole_model(path, which):
    config = CONFIGS[which]
    with torch.device("meta"):
        model = GLiT(replace(config, blocks=path))
    counted = count(model, config.image_size, config.in_chans)
    assert TABLES[which]["macs"](path) == counted.macs
    assert TABLES[which]["parameters"](path) == counted.parameters == sum(p.numel() for p in model.parameters())


def test_glit_tiny_costs_what_it_should():
    model = GLiT(NAMED_CONFIGS["glit-tiny"])
    assert cost_table("macs", model)(model.config.blocks) == 1_472_873_280
    assert cost_table("parameters", model)(model.config.blocks) == 7_264_456


def test_a_mixed_block_by_hand():
    table = cost_table("macs", GLiT(BASE))
    mixed = replace(BLOCK, local_heads=2, kernel_size=7, expand_ratio=4, qkv_ratio=0.5, mlp_ratio=6.0)
    tokens, far, near, wide, hidden = 17, 8, 16, 4, 64
    attention = tokens * (3 * far * wide + wide * far) + 2 * tokens**2 * wide
    local = tokens * (near * 2 * hidden + 7 * hidden + hidden * near)
    assert table((mixed, mixed)) - table((mixed,)) == attention + local + tokens * 2 * 6 * DIM**2


def test_each_block_is_measured_once():
    asked = []

    class Counted(CostTable):
        def measure(self, parts):
            asked.extend(parts)
            return [1] * len(parts)

    table = Counted(GLiT(BASE))
    small, large = replace(BLOCK, mlp_ratio=2.0), replace(BLOCK, mlp_ratio=6.0, drop_path=0.1)
    assert table((small, large, small)) == 4
    assert table((replace(large, drop_path=0.2),)) == 2
    assert asked == [None, small, replace(large, drop_path=0.0)]


def test_a_budget_takes_a_table():
    space = full_space((BLOCK,) * 4, SpaceConfig(kernel_size=(3,), expand_ratio=(1, 2), mlp_ratio=(2.0, 4.0)))
    table = cost_table("macs", GLiT(BASE))
    middle = table((replace(BLOCK, local_heads=1),) * 4)
    budget = Budget(table, lower=0.99 * middle, upper=1.01 * middle)
    path = budget.draw(space, random.Random(0))
    assert budget.lower <= count(GLiT(replace(BASE, blocks=path)), (32, 32)).macs <= budget.upper


@pytest.fixture
def clock(monkeypatch):
    """A clock of its own: a call takes 1 ms a thousand weights, and in every third round ten times as long."""
    calls = []

    def clock(self, call):
        parts = 2
        slow = 10 if len(calls) // parts % 3 == 2 else 1
        calls.append(sum(parameter.numel() for parameter in call.function.parameters()))
        assert not call.function.training
        assert len(call.args[0]) == self.batch_size
        return slow * calls[-1] / 1000

    monkeypatch.setattr(LatencyTable, "clock", clock)
    return calls


def test_parts_take_turns_and_the_median_counts(clock):
    model = GLiT(replace(BASE, blocks=(BLOCK, BLOCK)))
    time = cost_table("milliseconds", model, batch_size=4, precision="float32")(model.config.blocks)
    assert time == pytest.approx(cost_table("parameters", model)(model.config.blocks) / 1000)
    assert clock == clock[:2] * latency.REPEATS


def test_a_table_is_kept_and_grows(clock, tmp_path):
    file = tmp_path / "tables" / "here.json"
    first = cost_table("milliseconds", GLiT(BASE), file=file)((BLOCK, BLOCK))
    clock.clear()
    again = cost_table("milliseconds", GLiT(BASE), file=file)
    assert again((BLOCK, BLOCK)) == first
    assert not clock
    other = replace(BLOCK, local_heads=1)
    both = again((BLOCK, other))
    assert len(clock) == latency.REPEATS  # the new block alone
    assert cost_table("milliseconds", GLiT(BASE), file=file)((BLOCK, other)) == both
    assert len(clock) == latency.REPEATS


@pytest.mark.parametrize(
    ("config", "setting", "word"),
    [
        (BASE, {"batch_size": 2}, "batch_size 1, and this is batch_size 2"),
        (BASE, {"precision": "bf16"}, "precision float32, and this is precision bf16"),
        (replace(BASE, image_size=(64, 64)), {}, "an image of 32×32, and this is example an image of 64×64"),
        (replace(BASE, num_classes=9), {}, "num_classes 5, and this is num_classes 9"),
    ],
)
def test_a_table_of_another_setting_is_refused(config, setting, word, clock, tmp_path):
    file = tmp_path / "table.json"
    cost_table("milliseconds", GLiT(BASE), file=file, precision="float32")((BLOCK,))
    with pytest.raises(GlocalError, match=word):
        cost_table("milliseconds", GLiT(config), file=file, **{"precision": "float32"} | setting)


def test_a_table_of_another_machine_is_refused(clock, tmp_path, monkeypatch):
    file = tmp_path / "table.json"
    cost_table("milliseconds", GLiT(BASE), file=file)((BLOCK,))
    monkeypatch.setattr(latency, "machine", lambda device: "abacus")
    with pytest.raises(GlocalError, match="this is machine abacus"):
        cost_table("milliseconds", GLiT(BASE), file=file)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"setting": {}, "parts": [{"block": {"width": 3}}]})])
def test_what_is_no_table_is_refused(content, tmp_path):
    file = tmp_path / "table.json"
    file.write_text(content)
    with pytest.raises(GlocalError, match="not a table of milliseconds"):
        cost_table("milliseconds", GLiT(BASE), file=file)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_real_time_passes_and_draws_no_random_number(precision):
    table = cost_table("milliseconds", GLiT(BASE), precision=precision, device=torch.device("cpu"))
    state = torch.random.get_rng_state()
    one, two = table((BLOCK,)), table((BLOCK, replace(BLOCK, local_heads=2)))
    assert 0 < one < two
    assert state.equal(torch.random.get_rng_state())

"""The supernet, its evaluator and its costs know no family: GPT, BERT and the Transformer are searched as a GLiT is."""

import random
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from glocal.errors import GlocalError
from glocal.layers.block import uniform_blocks
from glocal.models import BERT, GPT, BERTConfig, GPTConfig, Transformer, TransformerConfig
from glocal.models.config import blocks_of, split_into_stacks, stacks
from glocal.models.cost import count
from glocal.ops import IGNORED
from glocal.search.budget import random_path
from glocal.search.cost import cost_table
from glocal.search.evaluator import Evaluator
from glocal.search.space import SpaceConfig, full_space
from glocal.search.supernet import Supernet
from glocal.tasks.causal_lm import CausalLMObjective
from glocal.tasks.masked_lm import MaskedLMObjective
from glocal.tasks.translation import TranslationConfig, TranslationObjective
from glocal.training import evaluate

SIZE = {"embed_dim": 12, "num_heads": 3, "mlp_ratio": 2.0, "local_norm": "layer", "kernel_size": 3}
CHOICES = SpaceConfig(kernel_size=(3, 5), expand_ratio=(1, 2), qkv_ratio=(1.0, 2.0), mlp_ratio=(1.0, 2.0))


def gpt():
    blocks = uniform_blocks(3, causal=True, **SIZE)
    return GPT(GPTConfig(13, 9, blocks=blocks, dropout=0.0, pad_id=None, bos_id=None, eos_id=None))


def bert():
    return BERT(BERTConfig(vocab_size=13, max_length=9, blocks=uniform_blocks(3, norm="post", **SIZE), dropout=0.0))


def transformer():
    encoder = uniform_blocks(2, norm="post", **SIZE)
    decoder = uniform_blocks(1, norm="post", causal=True, cross=True, **SIZE)
    return Transformer(TransformerConfig(13, 9, encoder=encoder, decoder=decoder, dropout=0.0))


def batch_of(kind, size, seed):
    """Rows of several lengths, padded behind."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 13, (size, 7), generator=draw)
    real = torch.arange(7) < torch.randint(2, 8, (size, 1), generator=draw)
    labels = torch.randint(3, 13, (size, 7), generator=draw).where(real, IGNORED)
    if kind is gpt:
        return {"input_ids": ids, "labels": labels}
    if kind is bert:
        masked = labels.where(torch.arange(7) % 2 == 0, IGNORED)
        segments = {"next_sentence_label": torch.randint(0, 2, (size,), generator=draw)}
        return {"input_ids": ids, "attention_mask": real, "labels": masked} | segments
    return {"input_ids": ids, "attention_mask": real, "decoder_input_ids": ids.flip(1), "labels": labels}


TASKS = {gpt: CausalLMObjective(), bert: MaskedLMObjective(), transformer: TranslationObjective(TranslationConfig())}


class Texts:
    def __init__(self, kind):
        self.kind = kind

    def train_batches(self, batch_size, epoch, start=0, rank=0, world_size=1):
        return [batch_of(self.kind, batch_size, seed) for seed in range(2)]

    def eval_batches(self, split, batch_size, rank=0, world_size=1):
        return [batch_of(self.kind, batch_size, 10 + seed) for seed in range(4)]


def supernet_of(kind, sharing="entangled", local="conv1d"):
    model = kind()
    start = [replace(block, local=local) for block in blocks_of(model.config)]
    space = full_space(tuple(start), CHOICES)
    return Supernet(model, space, sharing), space


@pytest.mark.parametrize(
    ("sharing", "local"), [("entangled", "conv1d"), ("entangled", "window"), ("separate", "conv1d")]
)
@pytest.mark.parametrize("kind", TASKS)
def test_a_path_is_the_plain_model_of_its_blocks_and_learns_as_it_does(kind, sharing, local):
    supernet, space = supernet_of(kind, sharing, local)
    task, batch = TASKS[kind], batch_of(kind, 4, 0)
    for seed in range(3):
        path = random_path(space, random.Random(seed))
        model = supernet.extract_subnet(path)
        assert blocks_of(model.config) == path
        supernet.zero_grad()
        loss, expected = (task.loss(each, batch).sum() for each in (supernet.subnet(path), model))
        torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
        loss.backward()
        expected.backward()
        moved = sum(p.grad.square().sum() for p in supernet.parameters() if p.grad is not None)
        torch.testing.assert_close(moved, sum(p.grad.square().sum() for p in model.parameters() if p.grad is not None))


@pytest.mark.parametrize("kind", TASKS)
def test_a_blocks_fresh_weights_are_drawn_as_the_familys(kind):
    torch.manual_seed(0)
    supernet, space = supernet_of(kind)
    largest = tuple(
        max(options, key=lambda option: (-option.local_heads, option.mlp_ratio, option.qkv_ratio)) for options in space
    )
    within = dict(supernet.extract_subnet(largest).named_parameters())
    plain = dict(
        type(supernet.frame)(replace(supernet.config, **split_into_stacks(supernet.config, largest))).named_parameters()
    )
    for name, weight in plain.items():
        if weight.ndim > 1 and name.split(".")[0] in stacks(type(supernet.config)):
            assert within[name].std().item() == pytest.approx(weight.std().item(), rel=0.35), name


@pytest.mark.parametrize("kind", TASKS)
def test_a_fitness_is_the_tasks_score(kind):
    supernet, space = supernet_of(kind)
    accelerator, data = Accelerator(cpu=True), Texts(kind)
    paths = [random_path(space, random.Random(seed)) for seed in range(5)]
    records = Evaluator(supernet, TASKS[kind], data, "val", accelerator, batch_size=6)(paths)
    assert len({record["fitness"] for record in records}) == len(set(paths))
    for path, record in zip(paths, records, strict=True):
        metrics = evaluate(supernet.extract_subnet(path), TASKS[kind], data.eval_batches("val", 6), accelerator)
        tolerance = 0.05 if kind is bert else 1e-5  # BERT's rows count alike, whatever their number of masked words
        assert record["fitness"] == pytest.approx(TASKS[kind].score(metrics), rel=tolerance)
        assert record["examples"] == 24


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("measure", ["macs", "parameters"])
def test_a_path_costs_what_is_counted_in_the_whole_model(kind, measure):
    model = kind()
    space = full_space(blocks_of(model.config), CHOICES)
    table = cost_table(measure, model, tokens=8)
    for seed in range(4):
        path = random_path(space, random.Random(seed))
        with torch.device("meta"):
            plain = type(model)(replace(model.config, **split_into_stacks(model.config, path)))
        assert table(path) == getattr(count(plain, 8), measure)


def test_milliseconds_are_timed_block_by_block_in_every_stack():
    model = transformer()
    table = cost_table("milliseconds", model, tokens=8, precision="float32", device=torch.device("cpu"))
    assert table(blocks_of(model.config)) > sum(map(table.of_block, blocks_of(model.config))) > 0


def test_a_generated_token_is_timed_by_the_blocks_that_generate():
    model = transformer()
    setting = {"tokens": 8, "precision": "float32", "device": torch.device("cpu")}
    table = cost_table("milliseconds_per_token", model, **setting)
    blocks = blocks_of(model.config)
    assert all((table.of_block(block) > 0) == block.causal for block in blocks)
    assert table(blocks) >= sum(map(table.of_block, blocks))
    mixed = replace(blocks[-1], local_heads=1)
    assert table.of_block(mixed) > 0
    with pytest.raises(GlocalError, match="generates no text"):
        cost_table("milliseconds_per_token", bert(), **setting)

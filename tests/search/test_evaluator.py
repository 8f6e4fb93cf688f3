"""The evaluation of a generation: as a tree and as a race, beside each path alone."""

import json
import multiprocessing
import os
import random
import socket

import numpy as np
import pytest
import torch
from accelerate import Accelerator, PartialState

from glocal.layers.block import uniform_blocks
from glocal.models import GLiT, ViTConfig
from glocal.search.budget import random_path
from glocal.search.evaluator import Evaluator, is_eliminated
from glocal.search.space import SpaceConfig, full_space
from glocal.search.supernet import SharedBlock, Supernet
from glocal.tasks.classification import ClassificationConfig, ClassificationObjective
from glocal.training import open_accelerator

START = uniform_blocks(3, embed_dim=12, num_heads=3)
CONFIG = ViTConfig(image_size=(16, 16), num_classes=4, patch_size=4, blocks=START)
TASK = ClassificationObjective(ClassificationConfig(), 4)
SPACE = full_space(START, SpaceConfig(kernel_size=(3, 5), expand_ratio=(1, 2), qkv_ratio=(1.0,), mlp_ratio=(1.0, 2.0)))


class Noise:
    """Labelled images without meaning, the same at every call."""

    def train_batches(self, batch_size, epoch, start=0, rank=0, world_size=1):
        return [self.batch(batch_size, seed) for seed in range(3)]

    def eval_batches(self, split, batch_size, rank=0, world_size=1):
        assert split == "val"
        return [self.batch(batch_size, 10 + seed) for seed in range(8)]

    def batch(self, size, seed):
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randn(size, 3, 16, 16, generator=generator)
        return {"pixel_values": pixels, "labels": torch.randint(0, 4, (size,), generator=generator)}


@pytest.fixture
def supernet():
    supernet = Supernet(GLiT(CONFIG), SPACE)
    torch.nn.init.normal_(supernet.frame.head.classifier.weight)
    return supernet


def evaluator_of(supernet, **options):
    return Evaluator(supernet, TASK, Noise(), "val", Accelerator(cpu=True), calibration=20, batch_size=10, **options)


def generation(count=12):
    paths = [random_path(SPACE, random.Random(seed)) for seed in range(count)]
    return paths + [(*paths[0][:2], option) for option in SPACE[2] if option != paths[0][2]]  # many that begin alike


def test_a_tree_gives_each_path_what_it_gets_alone_and_computes_shared_blocks_once(supernet, monkeypatch):
    paths = generation(4)
    together = evaluator_of(supernet)(paths)
    assert together == [record for path in paths for record in evaluator_of(supernet)([path])]
    assert len({record["fitness"] for record in together}) > 5
    assert {record["examples"] for record in together} == {80}

    calls = []
    plain_forward = SharedBlock.forward
    monkeypatch.setattr(
        SharedBlock, "forward", lambda *args, **inputs: calls.append(1) or plain_forward(*args, **inputs)
    )
    evaluator_of(supernet)(paths)
    assert len(calls) == 8 * len({path[: depth + 1] for path in paths for depth in range(3)})


def test_an_evaluated_path_is_the_plain_model_with_its_calibrated_statistics(supernet):
    path = next(path for path in generation() if all(option.local_heads for option in path))
    evaluator = evaluator_of(supernet)
    with torch.no_grad():
        statistics = evaluator.calibrate([path])
        model = supernet.extract_subnet(path, [statistics[path[: depth + 1]] for depth in range(3)]).eval()
        right = [
            model(batch["pixel_values"]).argmax(-1) == batch["labels"] for batch in Noise().eval_batches("val", 10)
        ]
    assert evaluator([path])[0]["fitness"] == pytest.approx(torch.cat(right).float().mean().item())
    assert model.blocks[0].mixer.local.norm.running_mean.any()


def test_those_that_fell_behind_saw_fewer_images_and_rank_below(supernet):
    records = evaluator_of(supernet, survivors=3)(generation(30))
    whole, left = ([record for record in records if (record["examples"] == 80) == full] for full in (True, False))
    assert len(whole) >= 3
    for record in left:
        assert record["fitness"] < min(each["fitness"] for each in whole)


def rank_main(rank, port, folder, supernet):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState._reset_state()
    evaluator = Evaluator(supernet, TASK, Noise(), "val", open_accelerator("float32"), 20, 10, survivors=3)
    assert evaluator.accelerator.num_processes == 2
    (folder / f"{rank}.json").write_text(json.dumps(evaluator(generation(30))))
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_two_processes_share_a_generation_and_agree_with_one(supernet, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=rank_main, args=(rank, port, tmp_path, supernet)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    alone = evaluator_of(supernet, survivors=3)(generation(30))
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)] == [alone, alone]


def test_a_race_keeps_the_ten_best_and_saves_a_third():
    rng, same, shares = np.random.default_rng(0), 0, []
    for _ in range(40):
        skill = rng.normal(0, 0.03, 50)  # so that accuracies differ by 1.4 percent, which is their standard deviation
        difficulty = rng.normal(0.6, 0.35, 5000)
        hits = rng.normal(0, 0.25, (50, 5000)) < (difficulty[None] + skill[:, None])
        running, cost = np.arange(50), 0
        for seen in range(250, 5000, 250):
            cost += 250 * len(running)
            running = running[~is_eliminated(hits[running, :seen], seen / 5000, 10)]
        shares.append((cost + 250 * len(running)) / hits.size)
        accuracy = hits.mean(axis=1)
        same += np.array_equal(np.sort(accuracy[running])[-10:], np.sort(accuracy)[-10:])
    assert same >= 38
    assert np.mean(shares) < 0.67


def test_a_race_weighs_examples_by_their_labels():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20, 1)) * 0.1 + rng.normal(size=(20, 400))
    weights = rng.integers(1, 9, size=400).astype(float)
    lost = is_eliminated(scores, 0.5, 3, weights=weights)
    assert lost.any()
    assert np.array_equal(lost, is_eliminated(scores, 0.5, 3, weights=7 * weights))
    assert np.array_equal(is_eliminated(scores, 0.5, 3), is_eliminated(scores, 0.5, 3, weights=np.ones(400)))
    means = (scores * weights).sum(axis=1) / weights.sum()
    assert not lost[np.argsort(-means)[:3]].any()
    silent = np.where(np.arange(400) < 200, weights, 1e-9)  # examples without weight say nothing
    assert np.array_equal(
        is_eliminated(scores, 0.5, 3, weights=silent),
        is_eliminated(scores[:, :200], 0.5, 3, weights=weights[:200]),
    )

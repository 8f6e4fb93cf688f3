"""Ranks and accumulated batches change nothing: for every task, the same loss and the same first step."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from test_distributed import free_port
from torch import Tensor, nn

from glocal.models import create_model
from glocal.ops import IGNORED
from glocal.tasks.causal_lm import CausalLMObjective
from glocal.tasks.classification import ClassificationConfig, ClassificationObjective
from glocal.tasks.masked_lm import MaskedLMObjective
from glocal.tasks.question_answering import QuestionAnsweringObjective
from glocal.tasks.token_classification import TokenClassificationObjective
from glocal.tasks.translation import TranslationConfig, TranslationObjective
from glocal.training import OptimizerConfig, RunFolder, TrainConfig, fit
from glocal.training.checkpoint import read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

Batch = dict[str, Tensor]
Made = tuple[nn.Module, Any, Batch]
"""A model, its task, and a batch."""
ROWS, TOKENS, VOCAB, FIRST = 5, 8, 40, 2
"""A step's batch, and how many of its rows the first rank, or the first of two batches, has: the fewer."""
SIZE: dict[str, Any] = {"depth": 1, "embed_dim": 24, "num_heads": 2, "dropout": 0.0, "attn_drop": 0.0}
TAGS = ["O", "B-PER", "I-PER"]


class Halves:
    """One step's batch, in as many parts as there are ranks, or batches to accumulate."""

    def __init__(self, batch: Batch, parts: int) -> None:
        rows = [slice(FIRST), slice(FIRST, None)] if parts == 2 else [slice(None)]
        self.parts = [{name: tensor[some] for name, tensor in batch.items()} for some in rows]

    def train_batches(
        self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> list[Batch]:
        return (self.parts[rank : rank + 1] if world_size == 2 else self.parts)[start:]

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
        """The same rows, and where images are mixed the class that has the largest share."""
        batches = self.train_batches(batch_size, 0, rank=rank, world_size=world_size)
        mixed = batches[0]["labels"].is_floating_point()
        return [batch | {"labels": batch["labels"].argmax(dim=-1)} for batch in batches] if mixed else batches


def texts() -> Batch:
    """Rows of unequal length, so that the two parts have unequal numbers of labels."""
    lengths = torch.tensor([3, 8, 5, 8, 4])
    ids = torch.randint(5, VOCAB, (ROWS, TOKENS))
    return {"input_ids": ids, "attention_mask": torch.arange(TOKENS) < lengths[:, None]}


def labelled(batch: Batch, classes: int, share: float) -> Tensor:
    """A class for a share of each row's tokens, and for its first one."""
    chosen = (torch.rand(ROWS, TOKENS) < share) & batch["attention_mask"]
    chosen[:, 0] = True
    return torch.randint(classes, (ROWS, TOKENS)).masked_fill(~chosen, -100)


def bert(head: str, num_classes: int = 2) -> nn.Module:
    return create_model("bert-tiny", **SIZE, vocab_size=VOCAB, max_length=TOKENS, head=head, num_classes=num_classes)


def vit() -> nn.Module:
    return create_model("vit-tiny", **SIZE, image_size=8, patch_size=4, num_classes=3)


def images() -> tuple[nn.Module, Any, Batch]:
    batch = {"pixel_values": torch.randn(ROWS, 3, 8, 8), "labels": torch.rand(ROWS, 3).softmax(dim=-1)}
    return vit(), ClassificationObjective(ClassificationConfig(), 3), batch | {"labels": torch.arange(ROWS) % 3}


def mixed_images() -> tuple[nn.Module, Any, Batch]:
    batch = images()[2] | {"labels": torch.rand(ROWS, 3).softmax(dim=-1)}
    teacher = vit()
    config = ClassificationConfig(label_smoothing=0.1, distillation="soft", teacher="given")
    return vit(), ClassificationObjective(config, 3, teacher), batch


def sentences() -> tuple[nn.Module, Any, Batch]:
    batch = texts() | {"labels": torch.arange(ROWS) % 3}
    return bert("classification", 3), ClassificationObjective(ClassificationConfig("text-classification"), 3), batch


def tags() -> tuple[nn.Module, Any, Batch]:
    batch = texts()
    return (
        bert("tagging", len(TAGS)),
        TokenClassificationObjective(TAGS),
        batch | {"labels": labelled(batch, len(TAGS), 0.7)},
    )


def questions() -> tuple[nn.Module, Any, Batch]:
    return bert("spans"), QuestionAnsweringObjective(), texts() | {"labels": torch.randint(0, 3, (ROWS, 2))}


def masked() -> tuple[nn.Module, Any, Batch]:
    batch = texts()
    batch |= {"labels": labelled(batch, VOCAB, 0.3), "next_sentence_label": torch.arange(ROWS) % 2}
    return bert("pretraining"), MaskedLMObjective(), batch


def causal() -> tuple[nn.Module, Any, Batch]:
    batch = texts()
    special = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "vocab_size": VOCAB, "max_length": TOKENS}
    return (
        create_model("gpt-tiny", **SIZE, **special),
        CausalLMObjective(),
        batch | {"labels": labelled(batch, VOCAB, 0.6)},
    )


def translation() -> tuple[nn.Module, Any, Batch]:
    batch = texts()
    model = create_model("transformer-tiny", **SIZE, vocab_size=VOCAB, max_length=TOKENS, pad_id=0, bos_id=1, eos_id=2)
    labels = labelled(batch, VOCAB, 0.8)
    batch |= {"decoder_input_ids": torch.randint(5, VOCAB, (ROWS, TOKENS)), "labels": labels}
    return model, TranslationObjective(TranslationConfig()), batch


def without_labels_at_first(make: Callable[[], Made]) -> Callable[[], Made]:
    """The same, but that the first part, a rank's or a batch's, has no label that counts."""

    def made() -> Made:
        model, task, batch = make()
        batch["labels"][:FIRST] = IGNORED
        return model, task, batch

    made.__name__ = f"{make.__name__}_some_unlabelled"
    return made


OF_TOKENS: list[Callable[[], Made]] = [tags, questions, masked, causal, translation]
TASKS: list[Callable[[], Made]] = [
    images, mixed_images, sentences, *OF_TOKENS, *map(without_labels_at_first, OF_TOKENS)
]  # fmt: skip


def train(make: Callable[[], Made], folder: Path, parts: int, accumulate: int = 1) -> None:
    """Take one step. The large ε makes Adam's step follow the gradient's size and not its sign alone."""
    torch.manual_seed(0)
    model, task, batch = make()
    for weight in model.parameters():  # a head of zeros would hide all that is before it
        weight.data.add_(0.1 * torch.randn_like(weight))
    optimizer = OptimizerConfig(eps=1.0, clip_norm=0.5)
    config = TrainConfig(steps=1, lr=1.0, accumulate=accumulate, precision="float32", optimizer=optimizer)
    fit(model, task, Halves(batch, parts), config, RunFolder.create(folder, ""))


def train_rank(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState._reset_state()
    for make in TASKS:
        train(make, folder / make.__name__, parts=2)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every task on two ranks."""
    folder, port, fork = tmp_path_factory.mktemp("ranks"), free_port(), multiprocessing.get_context("fork")
    started = [fork.Process(target=train_rank, args=(rank, port, folder)) for rank in range(2)]
    for rank in started:
        rank.start()
    for rank in started:
        rank.join(240)
    assert {rank.exitcode for rank in started} == {0}
    return folder


@pytest.mark.parametrize("make", TASKS, ids=[make.__name__ for make in TASKS])
def test_one_rank_two_ranks_and_two_accumulated_batches_take_the_same_step(
    ranks: Path, tmp_path: Path, make: Callable[[], Made]
) -> None:
    train(make, tmp_path / "one", parts=1)
    train(make, tmp_path / "accumulated", parts=2, accumulate=2)
    one = RunFolder(tmp_path / "one")
    for other in (RunFolder(tmp_path / "accumulated"), RunFolder(ranks / make.__name__)):
        expected, got = read_checkpoint(one.last), read_checkpoint(other.last)
        assert got["progress"]["step"] == 1
        for name, weight in expected["model"].items():
            torch.testing.assert_close(got["model"][name], weight, rtol=0, atol=1e-6)
        (row,), (their) = one.history(), other.history()[0]
        for name in row.keys() & {"train_loss", *(name for name in row if name.startswith("val_"))}:
            assert their[name] == pytest.approx(row[name], abs=1e-6)


@pytest.mark.parametrize("make", OF_TOKENS, ids=[make.__name__ for make in OF_TOKENS])
def test_a_step_without_a_label_that_counts_is_no_error(tmp_path: Path, make: Callable[[], Made]) -> None:
    def unlabelled() -> Made:
        model, task, batch = make()
        batch["labels"][:] = IGNORED
        return model, task, batch

    train(unlabelled, tmp_path, parts=1)
    run = RunFolder(tmp_path)
    assert run.history()[0]["train_loss"] == 0
    assert all(weight.isfinite().all() for weight in read_checkpoint(run.last)["model"].values())

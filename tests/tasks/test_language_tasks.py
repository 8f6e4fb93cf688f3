"""Causal and masked language models, as objectives."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glocal.tasks.causal_lm import CausalLMObjective
from glocal.tasks.masked_lm import MaskedLMObjective

VOCAB, DIM = 11, 6


class Speaker(nn.Module):
    """Tokens without context; it notes what it was asked to answer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.answer, self.follows = nn.Embedding(VOCAB, DIM), nn.Linear(DIM, VOCAB), nn.Linear(DIM, 2)
        self.segment = nn.Embedding(2, DIM)
        self.asked: list[tuple[int, ...]] = []

    def forward_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        x = self.embed(input_ids)
        if token_type_ids is not None:
            x = x + self.segment(token_type_ids)
        return x if attention_mask is None else x * attention_mask[..., None]

    def logits(self, x: Tensor) -> Tensor:
        self.asked.append(tuple(x.shape))
        return self.answer(x)

    mlm_logits = logits

    def nsp_logits(self, x: Tensor) -> Tensor:
        return self.follows(x[:, 0])


def losses(logits: Tensor, labels: Tensor) -> np.ndarray:
    """-log p of each label, in double precision."""
    z = logits.detach().double().numpy()
    log_p = z - np.log(np.exp(z).sum(axis=-1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels.numpy()]


def masked_batch(rows: int = 5, sentences: bool = True, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    batch = {
        "input_ids": torch.randint(VOCAB, (rows, 8), generator=generator),
        "attention_mask": torch.arange(8) < torch.randint(4, 9, (rows, 1), generator=generator),
        "token_type_ids": torch.randint(2, (rows, 8), generator=generator),
        "labels": torch.full((rows, 8), -100),
    }
    hidden = batch["attention_mask"] & (torch.rand(rows, 8, generator=generator) < 0.3)
    hidden[:, 1] = True
    batch["labels"][hidden] = torch.randint(VOCAB, (int(hidden.sum()),), generator=generator)
    if sentences:
        batch["next_sentence_label"] = torch.randint(2, (rows,), generator=generator)
    return batch


def completion_batch() -> dict[str, Tensor]:
    """Two prompts with completions of two and three tokens, the first padded."""
    return {
        "input_ids": torch.tensor([[1, 2, 3, 4, 0], [5, 6, 7, 8, 9]]),
        "labels": torch.tensor([[-100, 3, 4, -100, -100], [-100, -100, 8, 9, 10]]),
    }


def measured(task: Any, model: nn.Module, *batches: dict[str, Tensor]) -> dict[str, float]:
    metrics = task.metrics()
    for batch in batches:
        metrics.update(*task.predictions_and_targets(model, batch))
    return {name: value.item() for name, value in metrics.compute().items()}


def test_a_language_model_answers_where_there_is_a_label() -> None:
    model, batch, task = Speaker(), completion_batch(), CausalLMObjective()
    loss = task.loss(model, batch)
    assert model.asked == [(5, DIM)]  # no product with the vocabulary for a prompt or padding
    assert task.size(batch) == 5
    logits = model.answer(model.embed(torch.tensor([2, 3, 7, 8, 9])))
    assert loss.item() == pytest.approx(losses(logits, torch.tensor([3, 4, 8, 9, 10])).mean(), abs=1e-6)
    loss.backward()
    assert not model.embed.weight.grad[[1, 4, 0, 5, 6]].any()


def test_a_language_models_metrics_are_over_tokens() -> None:
    model, batch, task = Speaker(), completion_batch(), CausalLMObjective()
    parts = [{name: tensor[row : row + 1] for name, tensor in batch.items()} for row in (0, 1)]
    labels = torch.tensor([3, 4, 8, 9, 10])
    logits = model.answer(model.embed(torch.tensor([2, 3, 7, 8, 9])))
    loss, right = losses(logits, labels).mean(), (logits.argmax(dim=1) == labels).float().mean().item()
    got = measured(task, model, *parts)
    assert got == pytest.approx({"loss": loss, "perplexity": math.exp(loss), "accuracy": right}, abs=1e-5)
    assert task.score(got) == -got["loss"]


def test_packed_rows_count_whole() -> None:
    ids = torch.randint(VOCAB, (3, 9))
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    model, task = Speaker(), CausalLMObjective()
    assert task.size(batch) == 24
    expected = losses(model.answer(model.embed(ids[:, :-1])).flatten(0, 1), ids[:, 1:].flatten()).mean()
    assert task.loss(model, batch).item() == pytest.approx(expected, abs=1e-6)


def parts_of(model: Speaker, batch: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Each masked word's loss, and each pair's."""
    x = model.forward_features(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    hidden = batch["labels"] != -100
    words = losses(model.answer(x[hidden]), batch["labels"][hidden])
    return words, losses(model.follows(x[:, 0]), batch["next_sentence_label"])


def test_masked_words_and_next_sentence_are_added() -> None:
    model, batch, task = Speaker(), masked_batch(), MaskedLMObjective()
    words, sentences = parts_of(model, batch)
    loss = task.loss(model, batch)
    assert model.asked == [(len(words), DIM)]
    assert loss.tolist() == pytest.approx([words.mean(), sentences.mean()], abs=1e-6)
    assert task.size(batch) == (len(words), len(sentences))
    loss.sum().backward()
    assert model.follows.weight.grad.any()
    assert model.segment.weight.grad.any()


def test_masked_words_alone() -> None:
    model, batch, task = Speaker(), masked_batch(), MaskedLMObjective()
    words, _ = parts_of(model, batch)
    del batch["next_sentence_label"]
    assert task.loss(model, batch).item() == pytest.approx(words.mean(), abs=1e-6)
    got = measured(task, model, batch)
    assert set(got) == {"loss", "masked_loss", "accuracy"}
    assert got["loss"] == got["masked_loss"] == pytest.approx(words.mean(), abs=1e-5)


def test_pre_training_is_measured_by_word_and_by_sentence() -> None:
    """Over batches with more and fewer of them."""
    model, task = Speaker(), MaskedLMObjective()
    batches = [masked_batch(rows=2, seed=1), masked_batch(rows=7, seed=2)]
    words, sentences = (np.concatenate(parts) for parts in zip(*(parts_of(model, b) for b in batches), strict=True))
    found = [
        answers.argmax(dim=1) == labels
        for b in batches
        for answers, labels in [task.predictions_and_targets(model, b)[:2]]
    ]
    told = [
        answers.argmax(dim=1) == labels
        for b in batches
        for answers, labels in [task.predictions_and_targets(model, b)[2:]]
    ]
    expected = {
        "masked_loss": words.mean(),
        "accuracy": torch.cat(found).float().mean().item(),
        "next_loss": sentences.mean(),
        "next_accuracy": torch.cat(told).float().mean().item(),
        "loss": words.mean() + sentences.mean(),
    }
    got = measured(task, model, *batches)
    assert got == pytest.approx(expected, abs=1e-5)
    assert 0 < got["next_accuracy"] < 1
    assert task.score(got) == -got["loss"]


@pytest.mark.parametrize(
    ("task", "batch"), [(CausalLMObjective(), completion_batch()), (MaskedLMObjective(), masked_batch())]
)
def test_losses_are_taken_in_float32(task: Any, batch: dict[str, Tensor]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert task.loss(Speaker(), batch).dtype == torch.float32

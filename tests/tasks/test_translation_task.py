import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.tasks.translation import TranslationConfig, TranslationObjective, bleu_chrf
from glocal.training import OptimizerConfig, RunFolder, ScheduleConfig, TrainConfig, fit
from glocal.training.checkpoint import read_checkpoint

VOCAB = 7
GOLDEN_LOSS = 3.206889
GOLDEN_TRAINING = [3.175847, 2.901755, 2.479352, 2.178604, 1.972153, 1.821451]
GOLDEN_VALIDATION = 1.701293
SENTENCES = [[3, 4], [5], [6, 3, 4, 5], [4, 6, 5], [3], [6, 5]]
"""A target is its source backwards; 0 is padding, 1 begins and 2 ends a sentence."""


class Writer(nn.Module):
    """Answers from the last token and the mean of the source; the same weights whatever generator torch has."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.answer = nn.Embedding(VOCAB, 5), nn.Linear(10, VOCAB)
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(torch.sin(torch.arange(weight.numel()) * 1.7).view_as(weight))

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        source = (self.embed(input_ids) * attention_mask[..., None]).sum(dim=1) / attention_mask.sum(dim=1)[:, None]
        target = self.embed(decoder_input_ids)
        return self.answer(torch.cat([target, source[:, None].expand_as(target)], dim=-1))


class Answers(nn.Module):
    """Says what it was told to."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.logits


def batch_of(sentences: list[list[int]], longer: int = 0) -> dict[str, Tensor]:
    """A batch, padded to its longest sentence or `longer` still."""
    length = max(map(len, sentences)) + 1 + longer

    def padded(rows: list[list[int]], filler: int) -> Tensor:
        return torch.tensor([row + [filler] * (length - len(row)) for row in rows])

    source = padded([[*ids, 2] for ids in sentences], 0)
    return {
        "input_ids": source,
        "attention_mask": source != 0,
        "decoder_input_ids": padded([[1, *reversed(ids)] for ids in sentences], 0),
        "labels": padded([[*reversed(ids), 2] for ids in sentences], -100),
    }


def smoothed(logits: Tensor, labels: Tensor, share: float) -> float:
    """-Σ q log p with q = (1 - ε) [k = y] + ε/K, mean over real tokens, in double precision."""
    exponent = np.exp(logits.detach().double().numpy())
    log_p = np.log(exponent / exponent.sum(axis=-1, keepdims=True))
    sentence, place = np.nonzero(labels.numpy() >= 0)
    truth = log_p[sentence, place, labels.numpy()[sentence, place]]
    return float(-((1 - share) * truth + share * log_p[sentence, place].mean(axis=-1)).mean())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.4])
def test_loss_is_smoothed_over_real_tokens(share: float) -> None:
    model, batch = Writer(), batch_of(SENTENCES)
    task = TranslationObjective(TranslationConfig(label_smoothing=share))
    expected = smoothed(*task.predictions_and_targets(model, batch), share)
    assert task.loss(model, batch).item() == pytest.approx(expected, abs=1e-6)


def test_golden_loss() -> None:
    task = TranslationObjective(TranslationConfig())
    assert task.loss(Writer(), batch_of(SENTENCES)).item() == pytest.approx(GOLDEN_LOSS, abs=1e-5)


def measured(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, float]:
    task = TranslationObjective(TranslationConfig())
    metrics = task.metrics()
    metrics.update(*task.predictions_and_targets(model, batch))
    return {name: value.item() for name, value in metrics.compute().items()}


def test_padding_counts_nowhere() -> None:
    model, task = Writer(), TranslationObjective(TranslationConfig())
    short, long = batch_of(SENTENCES), batch_of(SENTENCES, longer=3)
    assert task.size(short) == task.size(long) == sum(len(ids) + 1 for ids in SENTENCES)
    assert task.loss(model, long).item() == pytest.approx(task.loss(model, short).item(), abs=1e-6)
    assert measured(model, long) == pytest.approx(measured(model, short), abs=1e-6)


def test_size_is_what_the_loss_is_a_mean_over() -> None:
    model, task = Writer(), TranslationObjective(TranslationConfig())
    parts = [batch_of(SENTENCES[:2]), batch_of(SENTENCES[2:])]
    total = sum(task.size(part) * task.loss(model, part) for part in parts)
    whole = batch_of(SENTENCES)
    torch.testing.assert_close(total / task.size(whole), task.loss(model, whole))


def test_loss_is_taken_in_float32() -> None:
    batch = batch_of(SENTENCES)
    logits = Writer()(batch["input_ids"], batch["decoder_input_ids"], batch["attention_mask"]).bfloat16()
    loss = TranslationObjective(TranslationConfig()).loss(Answers(logits), batch)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(smoothed(logits.float(), batch["labels"], 0.1), abs=1e-6)


def test_metrics_are_over_tokens_and_not_smoothed() -> None:
    """Over batches with more and fewer of them."""
    labels, metrics = (
        batch_of(SENTENCES)["labels"],
        TranslationObjective(TranslationConfig(label_smoothing=0.3)).metrics(),
    )
    logits = torch.randn(*labels.shape, VOCAB, generator=torch.Generator().manual_seed(1))
    for part in (slice(0, 1), slice(1, None)):
        metrics.update(logits[part], labels[part])
    got = {name: value.item() for name, value in metrics.compute().items()}
    loss, right = smoothed(logits, labels, 0.0), (logits.argmax(dim=-1) == labels).sum().item()
    assert 0 < right < 19
    assert got == pytest.approx({"loss": loss, "perplexity": math.exp(loss), "accuracy": right / 19}, abs=1e-5)


def test_an_even_guess_has_the_perplexity_of_the_vocabulary() -> None:
    batch = batch_of(SENTENCES)
    got = measured(Answers(torch.zeros(*batch["labels"].shape, VOCAB)), batch)
    assert got["perplexity"] == pytest.approx(VOCAB, abs=1e-5)


def test_a_lower_loss_is_better() -> None:
    task = TranslationObjective(TranslationConfig())
    assert task.score({"loss": 1.0, "accuracy": 0.1}) > task.score({"loss": 2.0, "accuracy": 0.9})


class Backwards:
    """Sentences and their reversal; `batch_size` counts sentences here."""

    def __init__(self, batch_size: int) -> None:
        self.parts = [SENTENCES[first : first + batch_size] for first in range(0, len(SENTENCES), batch_size)]

    def train_batches(
        self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> "Backwards":
        return Backwards(batch_size)

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> "Backwards":
        return Backwards(batch_size)

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        yield from map(batch_of, self.parts)


def trained(folder: Path, **fields: Any) -> tuple[Writer, RunFolder]:
    """As the paper trains."""
    config = TrainConfig(
        epochs=6,
        lr=0.05,
        schedule=ScheduleConfig(kind="inverse_sqrt", warmup_steps=4),
        optimizer=OptimizerConfig(weight_decay=0.0, betas=(0.9, 0.98), eps=1e-9),
        average=2,
        precision="float32",
        **fields,
    )
    model, run = Writer(), RunFolder.create(folder, "")
    fit(model, TranslationObjective(TranslationConfig()), Backwards(1), config, run)
    return model, run


def test_golden_training(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", batch_size=3)[1]
    rows = run.history()
    assert [row["train_loss"] for row in rows] == pytest.approx(GOLDEN_TRAINING, abs=1e-4)
    assert rows[-1]["val_loss"] == pytest.approx(GOLDEN_VALIDATION, abs=1e-4)


def test_accumulated_batches_weigh_their_tokens(tmp_path: Path) -> None:
    big, big_run = trained(tmp_path / "big", batch_size=3)
    small, small_run = trained(tmp_path / "small", batch_size=1, accumulate=3)
    for weight, other in zip(big.parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=5e-6)
    for row, other in zip(big_run.history(), small_run.history(), strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
    assert read_checkpoint(big_run.last)["progress"]["step"] == 12


def test_bleu_by_hand() -> None:
    """Matches of 1 to 4 words: 5 of 6, 3 of 5, 2 of 4, 1 of 3 in one sentence, all of 4, 3, 2, 1 in the other."""
    translations = ["the cat sat on the mat", "a dog ran home"]
    references = ["the cat sat on a mat", "a dog ran home"]
    scores = bleu_chrf(translations, references)
    assert scores["bleu"] == pytest.approx(100 * (9 / 10 * 6 / 8 * 4 / 6 * 2 / 4) ** 0.25)
    assert scores["exact"] == 0.5
    assert 50 < scores["chrf"] < 100


def chrf(translation: str, reference: str) -> float:
    """Popović 2015, equation 1 with β = 2 over 1 to 6 characters, spaces left out."""
    precisions, recalls = [], []
    for n in range(1, 7):
        counts: list[dict[str, int]] = [{}, {}]
        for text, count in zip((translation.replace(" ", ""), reference.replace(" ", "")), counts, strict=True):
            for i in range(len(text) - n + 1):
                count[text[i : i + n]] = count.get(text[i : i + n], 0) + 1
        matches = sum(min(value, counts[1].get(gram, 0)) for gram, value in counts[0].items())
        precisions.append(matches / sum(counts[0].values()))
        recalls.append(matches / sum(counts[1].values()))
    precision, recall = np.mean(precisions), np.mean(recalls)
    return float(100 * 5 * precision * recall / (4 * precision + recall))


def test_chrf_by_hand() -> None:
    translation, reference = "hai mươi mốt nghìn", "hai mươi tư nghìn ba"
    assert bleu_chrf([translation], [reference])["chrf"] == pytest.approx(chrf(translation, reference), abs=1e-6)


def test_the_same_text_is_perfect_and_signed() -> None:
    scores = bleu_chrf(["Một con mèo đen ngủ."] * 3, ["Một con mèo đen ngủ."] * 3)
    assert (scores["bleu"], scores["chrf"], scores["exact"]) == (pytest.approx(100), pytest.approx(100), 1.0)
    assert "nrefs:1" in scores["bleu_signature"]
    assert "tok:13a" in scores["bleu_signature"]
    assert "nc:6" in scores["chrf_signature"]


@pytest.mark.parametrize(("count", "expected"), [(2, "2 translations against 1 references"), (0, "0 trans")])
def test_text_that_does_not_pair_up_is_refused(count: int, expected: str) -> None:
    with pytest.raises(GlocalError, match=expected):
        bleu_chrf(["a"] * count, ["a"] * (count // 2))

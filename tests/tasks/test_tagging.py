import random
from typing import Any

import pytest
import seqeval.metrics
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glocal.tasks.token_classification import TokenClassificationObjective

IOB2 = ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]
BIOES = [*IOB2, "E-LOC", "E-PER", "S-LOC", "S-PER"]
IOB1 = ["B-NP", "I-NP", "I-VP", "O"]


class Tagger(nn.Module):
    """Answers with what it was given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.logits


def batch_of(labels: Tensor) -> dict[str, Tensor]:
    return {"input_ids": labels, "attention_mask": labels != -7, "labels": labels}


def sentences(tags: list[str], count: int, seed: int) -> tuple[Tensor, Tensor, list[list[str]], list[list[str]]]:
    """Logits and labels of random sentences whose words are of one or more tokens, and the tags as words."""
    dice = random.Random(seed)
    labels = torch.full((count, 30), -100)
    told = torch.zeros(count, 30, dtype=torch.long)
    right, answers = [], []
    for row in range(count):
        places = sorted(dice.sample(range(30), dice.randint(0, 14)))
        truth = [dice.randrange(len(tags)) for _ in places]
        answer = [tag if dice.random() < 0.7 else dice.randrange(len(tags)) for tag in truth]
        labels[row, places], told[row] = torch.tensor(truth, dtype=torch.long), dice.randrange(len(tags))
        told[row, places] = torch.tensor(answer, dtype=torch.long)
        right.append([tags[tag] for tag in truth])
        answers.append([tags[tag] for tag in answer])
    return F.one_hot(told, len(tags)).float(), labels, right, answers


def measured(task: TokenClassificationObjective, logits: Tensor, labels: Tensor, parts: list[int]) -> dict[str, Any]:
    metrics = task.metrics()
    for some, truth in zip(logits.split(parts), labels.split(parts), strict=True):
        metrics.update(*task.predictions_and_targets(Tagger(some), batch_of(truth)))
    return {name: value.tolist() for name, value in metrics.compute().items()}


@pytest.mark.parametrize("tags", [IOB1, IOB2, BIOES, ["O", "B", "I"]], ids=["IOB1", "IOB2", "BIOES", "of no kind"])
def test_entities_are_seqevals(tags: list[str]) -> None:
    logits, labels, right, answers = sentences(tags, 60, seed=len(tags))
    task = TokenClassificationObjective(tags)
    got = measured(task, logits, labels, [7, 30, 23])
    assert got["precision"] == pytest.approx(seqeval.metrics.precision_score(right, answers))
    assert got["recall"] == pytest.approx(seqeval.metrics.recall_score(right, answers))
    assert got["f1"] == pytest.approx(seqeval.metrics.f1_score(right, answers))
    assert got["accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(right, answers))
    report = seqeval.metrics.classification_report(right, answers, output_dict=True)
    for kind, row in zip(task.types, got["by_type"], strict=True):
        assert row == pytest.approx([report[kind][name] for name in ("precision", "recall", "f1-score")])
    assert 0 < got["f1"] < 1
    assert task.score(got) == got["f1"]


def test_entities_by_hand() -> None:
    """One of two people is found whole, a place is told where there is none, and an entity ends with its sentence."""
    right = [["B-PER", "I-PER", "O", "B-PER"], ["I-PER", "O", "O", "O"]]
    told = [["B-PER", "I-PER", "O", "B-LOC"], ["I-PER", "I-PER", "O", "O"]]
    labels, answers = (torch.tensor([[IOB2.index(tag) for tag in row] for row in rows]) for rows in (right, told))
    got = measured(TokenClassificationObjective(IOB2), F.one_hot(answers, 5).float(), labels, [2])
    assert got["by_type"] == [[0, 0, 0], [0.5, pytest.approx(1 / 3), pytest.approx(0.4)]]
    assert [got[name] for name in ("precision", "recall", "f1")] == pytest.approx([1 / 3] * 3)
    assert got["accuracy"] == 6 / 8


def test_nothing_told_is_no_error() -> None:
    labels = torch.tensor([[1, 3, -100, 0]])
    got = measured(TokenClassificationObjective(IOB2), F.one_hot(torch.zeros_like(labels), 5).float(), labels, [1])
    assert (got["precision"], got["recall"], got["f1"]) == (0, 0, 0)


def test_tags_that_spell_no_entities_are_judged_by_word() -> None:
    tags = ["DT", "NN", "O", "VB"]
    logits, labels, right, answers = sentences(tags, 20, seed=3)
    task = TokenClassificationObjective(tags)
    got = measured(task, logits, labels, [20])
    assert set(got) == {"loss", "accuracy"}
    assert task.score(got) == got["accuracy"] == pytest.approx(seqeval.metrics.accuracy_score(right, answers))


def test_loss_is_over_words() -> None:
    logits, labels = torch.randn(4, 9, 5, requires_grad=True), torch.randint(5, (4, 9))
    labels[:, ::2] = -100
    task, model = TokenClassificationObjective(IOB2), Tagger(logits)
    loss = task.loss(model, batch_of(labels))
    assert task.size(batch_of(labels)) == 16
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, 1::2].flatten(0, 1), labels[:, 1::2].flatten()))
    loss.backward()
    assert not model.logits.grad[:, ::2].any()
    assert measured(task, logits, labels, [1, 3])["loss"] == pytest.approx(loss.item(), abs=1e-6)

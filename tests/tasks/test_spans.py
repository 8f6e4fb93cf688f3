import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.tasks.question_answering import QuestionAnsweringObjective, squad_scores


class Reader(nn.Module):
    """Answers with what it was given."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.logits


def batch_of(labels: list[list[int]], lengths: list[int], longer: int = 0) -> dict[str, Tensor]:
    tokens = max(lengths) + longer
    mask = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    truth = torch.tensor(labels)
    starts, ends = truth.unbind(dim=1)
    return {
        "input_ids": torch.zeros(len(labels), tokens, dtype=torch.long),
        "attention_mask": mask,
        "start_positions": starts,
        "end_positions": ends,
        "labels": truth,
    }


def test_loss_is_the_mean_of_both_ends_over_real_tokens() -> None:
    logits = torch.randn(2, 6, 2)
    batch = batch_of([[1, 3], [0, 5]], [4, 6])
    expected = [
        F.cross_entropy(logits[row, :length, end], batch["labels"][row, end])
        for row, length in enumerate([4, 6])
        for end in (0, 1)
    ]
    model, task = Reader(logits), QuestionAnsweringObjective()
    loss = task.loss(model, batch)
    assert loss.item() == pytest.approx(sum(expected).item() / 4, abs=1e-6)
    loss.backward()
    assert model.logits.grad.isfinite().all()
    assert not model.logits.grad[0, 4:].any()


def test_a_window_without_the_answer_may_be_left_out() -> None:
    logits = torch.randn(2, 5, 2)
    both = batch_of([[1, 2], [-100, -100]], [5, 5])
    alone = batch_of([[1, 2]], [5])
    task = QuestionAnsweringObjective()
    assert (task.size(both), task.size(alone)) == (2, 2)
    torch.testing.assert_close(task.loss(Reader(logits), both), task.loss(Reader(logits[:1]), alone))


def test_metrics_count_spans_whole() -> None:
    """Right at both ends, at one, at none, and right only because padding is no answer."""
    told = torch.tensor([[1, 3], [1, 2], [0, 0], [2, 2]])
    labels = [[1, 3], [1, 3], [1, 3], [2, 2]]
    logits = 3 * F.one_hot(told, 6).float().mT
    logits[3, 5] = 9
    batch, task = batch_of(labels, [6, 6, 6, 4]), QuestionAnsweringObjective()
    metrics = task.metrics()
    for part in (slice(0, 1), slice(1, 4)):
        metrics.update(
            *task.predictions_and_targets(Reader(logits[part]), {name: tensor[part] for name, tensor in batch.items()})
        )
    got = {name: value.item() for name, value in metrics.compute().items()}
    assert got["accuracy"] == 0.5
    assert got["loss"] == pytest.approx(task.loss(Reader(logits), batch).item(), abs=1e-6)
    assert task.score(got) == 0.5


def test_text_is_judged_as_squads_script_does() -> None:
    """Case, punctuation, articles and spaces aside; the nearest reference; no answer where there is none."""
    scores = squad_scores(
        ["The  Eiffel tower!", "in 1889, Paris", "a guess", "", "Hà Nội"],
        [["eiffel Tower"], ["1889", "1889 Paris"], [], [], ["thành phố Hà Nội"]],
    )
    second, last = 2 * (2 / 3 * 1) / (2 / 3 + 1), 2 * (1 * 2 / 4) / (1 + 2 / 4)
    assert scores == {
        "exact_match": pytest.approx(100 * 2 / 5),
        "f1": pytest.approx(100 * (1 + second + 0 + 1 + last) / 5, abs=1e-4),
    }


@pytest.mark.parametrize("count", [0, 2])
def test_answers_that_do_not_pair_up_are_refused(count: int) -> None:
    with pytest.raises(GlocalError, match=f"{count} answers against {count // 2} questions"):
        squad_scores(["a"] * count, [["a"]] * (count // 2))

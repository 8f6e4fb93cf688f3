import numpy as np
import pytest
import sklearn.metrics
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.tasks.classification import ClassificationConfig, ClassificationObjective

B, K = 6, 4
IMAGES = torch.zeros(B, 1, 2, 2)


class Student(nn.Module):
    """Answers with fixed logits of one or two heads."""

    def __init__(self, heads: int = 2) -> None:
        super().__init__()
        self.answers = nn.Parameter(torch.randn(B, heads, K, generator=torch.Generator().manual_seed(1)))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.forward_classifiers(pixel_values).mean(dim=1)

    def forward_classifiers(self, pixel_values: Tensor) -> Tensor:
        return self.answers


class Teacher(nn.Module):
    def __init__(self, classes: int = K) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.randn(B, classes, generator=torch.Generator().manual_seed(2)))
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, pixel_values: Tensor) -> Tensor:
        self.modes.append((self.training, torch.is_grad_enabled()))
        return self.answer


def batch() -> dict[str, Tensor]:
    return {"pixel_values": IMAGES, "labels": torch.arange(B) % K}


def softmax(logits: Tensor, tau: float = 1.0) -> np.ndarray:
    exponent = np.exp(logits.detach().double().numpy() / tau)
    return exponent / exponent.sum(axis=-1, keepdims=True)


def cross_entropy(logits: Tensor, targets: np.ndarray) -> float:
    return float(-(targets * np.log(softmax(logits))).sum(axis=-1).mean())


def one_hot(labels: Tensor) -> np.ndarray:
    return np.eye(K)[labels.numpy()]


def test_hard_labels() -> None:
    student = Student(heads=1)
    loss = ClassificationObjective(ClassificationConfig(), K).loss(student, batch())
    assert loss.item() == pytest.approx(cross_entropy(student.answers[:, 0], one_hot(batch()["labels"])), abs=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_smoothing_spreads_a_share_over_all_classes(soft: bool) -> None:
    """Mixed labels are smoothed as well, which equals mixing smoothed labels."""
    student, inputs = Student(heads=1), batch()
    targets = one_hot(inputs["labels"])
    if soft:
        targets = 0.3 * targets + 0.7 * targets[::-1]
        inputs["labels"] = torch.from_numpy(targets.copy()).float()
    loss = ClassificationObjective(ClassificationConfig(label_smoothing=0.1), K).loss(student, inputs)
    assert loss.item() == pytest.approx(cross_entropy(student.answers[:, 0], 0.9 * targets + 0.1 / K), abs=1e-6)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(("alpha", "expected_alpha"), [(None, 0.1), (0.7, 0.7)])
def test_soft_distillation_is_equation_2(heads: int, alpha: float | None, expected_alpha: float) -> None:
    student, teacher, tau = Student(heads), Teacher(), 2.0
    config = ClassificationConfig(distillation="soft", teacher="given", temperature=tau, alpha=alpha)
    loss = ClassificationObjective(config, K, teacher).loss(student, batch())
    ours, theirs = softmax(student.answers[:, -1], tau), softmax(teacher.answer, tau)
    divergence = (theirs * np.log(theirs / ours)).sum(axis=-1).mean()
    truth = cross_entropy(student.answers[:, 0], one_hot(batch()["labels"]))
    assert loss.item() == pytest.approx((1 - expected_alpha) * truth + expected_alpha * tau**2 * divergence, abs=1e-6)


@pytest.mark.parametrize("heads", [1, 2])
def test_hard_distillation_is_equation_3(heads: int) -> None:
    student, teacher = Student(heads), Teacher()
    config = ClassificationConfig(distillation="hard", teacher="given")
    loss = ClassificationObjective(config, K, teacher).loss(student, batch())
    truth = cross_entropy(student.answers[:, 0], one_hot(batch()["labels"]))
    imitation = cross_entropy(student.answers[:, -1], one_hot(teacher.answer.argmax(dim=-1)))
    assert loss.item() == pytest.approx(truth / 2 + imitation / 2, abs=1e-6)


def test_the_teacher_only_answers() -> None:
    teacher = Teacher()
    task = ClassificationObjective(ClassificationConfig(distillation="soft", teacher="given"), K, teacher.train())
    student = Student()
    task.loss(student, batch()).backward()
    assert teacher.modes == [(False, False)]  # in eval mode, without gradient
    assert teacher.answer.grad is None
    assert (student.answers.grad != 0).all()


class Reader(nn.Module):
    """Answers from the words that are no padding, in one head or two."""

    def __init__(self, seed: int, heads: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.words = nn.Parameter(torch.randn(9, heads * K, generator=generator))
        self.heads = heads

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        return self.forward_classifiers(input_ids, attention_mask, token_type_ids).mean(dim=1)

    def forward_classifiers(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        x = self.words[input_ids] * attention_mask[..., None] * (1 + token_type_ids[..., None])
        return x.sum(dim=1).unflatten(1, (self.heads, K))


def texts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        "input_ids": torch.randint(9, (B, 5), generator=generator),
        "attention_mask": torch.arange(5) < torch.randint(1, 6, (B, 1), generator=generator),
        "token_type_ids": torch.randint(2, (B, 5), generator=generator),
        "labels": torch.arange(B) % K,
    }


def test_texts_are_classified_as_images_are() -> None:
    model, task, batch = Reader(seed=5), ClassificationObjective(ClassificationConfig(), K), texts()
    logits = model(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
    expected = cross_entropy(logits, one_hot(batch["labels"]))
    assert task.loss(model, batch).item() == pytest.approx(expected, abs=1e-6)
    answers, labels = task.predictions_and_targets(model, batch)
    assert torch.equal(answers, logits)
    assert torch.equal(labels, batch["labels"])


def test_a_teacher_reads_the_students_texts() -> None:
    student, teacher, batch = Reader(seed=5, heads=2), Reader(seed=6), texts()
    config = ClassificationConfig(distillation="hard", teacher="given")
    loss = ClassificationObjective(config, K, teacher).loss(student, batch)
    inputs = batch["input_ids"], batch["attention_mask"], batch["token_type_ids"]
    heads, decided = student.forward_classifiers(*inputs), teacher(*inputs).argmax(dim=-1)
    expected = (cross_entropy(heads[:, 0], one_hot(batch["labels"])) + cross_entropy(heads[:, 1], one_hot(decided))) / 2
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_a_distilled_student_learns_nothing_where_it_agrees() -> None:
    student, teacher = Student(heads=1), Teacher()
    with torch.no_grad():
        student.answers[:, 0] = teacher.answer
    config = ClassificationConfig(distillation="soft", teacher="given", alpha=1.0)
    assert ClassificationObjective(config, K, teacher).loss(student, batch()).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("config", "teacher"),
    [
        (ClassificationConfig(distillation="hard", teacher="timm:x"), None),
        (ClassificationConfig(), Teacher()),
        (ClassificationConfig(distillation="soft"), None),
    ],
)
def test_half_a_distillation_is_refused(config: ClassificationConfig, teacher: nn.Module | None) -> None:
    with pytest.raises(GlocalError, match=r"task\.distillation is"):
        ClassificationObjective(config, K, teacher)


def test_a_teacher_of_other_classes_is_refused() -> None:
    task = ClassificationObjective(
        ClassificationConfig(distillation="hard", teacher="given"), K, Teacher(classes=K + 1)
    )
    with pytest.raises(GlocalError, match="teacher has 5 classes and the student 4"):
        task.loss(Student(), batch())


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 40])
def test_metrics_are_scikit_learns(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(90, classes, generator=generator)
    labels = torch.randint(classes - (classes == 40), (90,), generator=generator)  # one class of the 40 never comes
    task = ClassificationObjective(ClassificationConfig(label_smoothing=0.3), classes)
    metrics = task.metrics()
    for part in torch.arange(90).split(32):
        metrics.update(logits[part], labels[part])
    got = {name: value.tolist() for name, value in metrics.compute().items()}

    everything = list(range(classes))
    answers = logits.argmax(dim=1)
    precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
        labels, answers, labels=everything, zero_division=0
    )
    assert got["precision"] == pytest.approx(precision, abs=1e-6)
    assert got["recall"] == pytest.approx(recall, abs=1e-6)
    assert got["f1"] == pytest.approx(f1, abs=1e-6)
    assert got["confusion"] == sklearn.metrics.confusion_matrix(labels, answers, labels=everything).tolist()
    assert got["top1"] == pytest.approx(sklearn.metrics.accuracy_score(labels, answers), abs=1e-6)
    probabilities = softmax(logits)
    assert got["loss"] == pytest.approx(sklearn.metrics.log_loss(labels, probabilities, labels=everything), abs=1e-5)
    assert got["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(labels, answers, average="macro"), abs=1e-6)
    assert got["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(labels, answers), abs=1e-6)
    assert ("top5" in got) == (classes > 5)
    if classes > 5:
        expected = sklearn.metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=everything)
        assert got["top5"] == pytest.approx(expected, abs=1e-6)
    assert task.score(got) == got["top1"]


@pytest.mark.filterwarnings("ignore:A single label was found")  # by scikit-learn
@pytest.mark.parametrize(
    ("told", "true"),
    [
        ([1] * 8, [1] * 5 + [0] * 3),
        ([0] * 100, [0] * 90 + [1] * 10),
        ([0] * 8, [1] * 8),
        ([1] * 8, [1] * 8),
        ([0, 1], [0, 1]),
    ],
)
def test_answers_of_one_class_and_perfect_ones_are_scikit_learns(told: list[int], true: list[int]) -> None:
    metrics = ClassificationObjective(ClassificationConfig(), 2).metrics()
    metrics.update(F.one_hot(torch.tensor(told), 2).float(), torch.tensor(true))
    got = {name: value.tolist() for name, value in metrics.compute().items()}
    assert got["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(true, told))
    assert got["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(true, told, average="macro"))
    assert all(type(got[name]) is float for name in ("loss", "top1", "macro_f1", "matthews"))


def test_top1_and_top5_stay_apart_after_a_perfect_first_batch() -> None:
    metrics = ClassificationObjective(ClassificationConfig(), 7).metrics()
    metrics.update(F.one_hot(torch.arange(7)).float(), torch.arange(7))
    metrics.update(F.one_hot((torch.arange(7) + 1) % 7).float() + F.one_hot(torch.arange(7)) * 0.5, torch.arange(7))
    result = metrics.compute()
    assert (result["top1"].item(), result["top5"].item()) == (0.5, 1.0)


def test_loss_is_taken_in_float32() -> None:
    student = Student(heads=1)
    loss = ClassificationObjective(ClassificationConfig(), K).cross_entropy(
        student.answers[:, 0].bfloat16(), batch()["labels"]
    )
    assert loss.dtype == torch.float32

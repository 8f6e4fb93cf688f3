"""What only a device can show: that it computes, trains, decodes, resumes and is fed as the CPU is.

`make test-gpu` runs these checks on a CUDA device; the fast tests run the same ones, smaller, on the CPU.
"""

import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, wake
from one_process import Shuffled, image_batch, image_task, train
from PIL import Image
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from glocal.data import DataConfig, DocumentsConfig, TokenizerConfig, open_images
from glocal.data.config import LIGHT
from glocal.generation import DecodingConfig, generate
from glocal.layers.attention import MultiHeadAttention
from glocal.layers.dropout import DropPath
from glocal.models import create_model
from glocal.tasks.causal_lm import CausalLMObjective
from glocal.tasks.causal_lm import open_data as open_documents
from glocal.tasks.classification import ClassificationConfig, ClassificationObjective
from glocal.tasks.masked_lm import MaskedLMObjective
from glocal.tasks.question_answering import QuestionAnsweringObjective
from glocal.tasks.token_classification import TokenClassificationObjective
from glocal.tasks.translation import TranslationConfig, TranslationObjective
from glocal.training import RunFolder, TrainConfig, fit
from glocal.training.checkpoint import read_checkpoint
from glocal.training.devices import choose_precision
from glocal.training.evaluation import move
from glocal.training.interfaces import Batch, Objective

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it, cuBLAS may sum in another order each time

pytestmark = [  # torch.compile's own
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch"),
]

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(
                not torch.cuda.is_available(), reason="no CUDA device: torch.cuda.is_available() is False"
            ),
        ],
    ),
]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def _no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute convolutions and LSTMs in float32, as matrix products are; cuDNN's default is ten bits of mantissa."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


on_cuda = pytest.mark.parametrize("device", DEVICES[1:], indirect=True)


@dataclass
class Case:
    """A small model, its task, and a batch."""

    model: Any
    task: Objective
    batch: Batch


WORDS = 60
TEXT = {"vocab_size": WORDS, "depth": 2, "embed_dim": 24, "num_heads": 3}
GPT = TEXT | {"pad_id": 0, "bos_id": 0, "eos_id": 0}
GLIT = {name: value for name, value in TINY.items() if name != "depth"} | {"kernel_size": 3}


def texts() -> Batch:
    """Three texts of 12 tokens and fewer, padded behind, with segments."""
    mask = torch.arange(12) < torch.tensor([[12], [7], [9]])
    ids = torch.randint(3, WORDS, mask.shape).masked_fill(~mask, 0)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": (torch.arange(36).view(3, 12) % 2) * mask}


def image_case(name: str, **fields: Any) -> Case:
    return Case(create_model(name, **fields), image_task(), image_batch(8))


def distilled_case() -> Case:
    teacher = wake(create_model("vit-tiny", **TINY))
    task = ClassificationObjective(ClassificationConfig(distillation="hard"), 5, teacher)
    return Case(create_model("deit-tiny-distilled", **TINY), task, image_batch(8))


def translation_case(name: str, **fields: Any) -> Case:
    target = torch.randint(3, WORDS, (3, 10))
    batch = texts() | {"decoder_input_ids": target, "labels": target.roll(-1, 1).masked_fill(target % 7 == 0, -100)}
    del batch["token_type_ids"]
    return Case(create_model(name, **fields), TranslationObjective(TranslationConfig()), batch)


def bert_case(head: str) -> Case:
    batch = texts()
    ids, mask = batch["input_ids"], batch["attention_mask"]
    masked = mask & (torch.rand(mask.shape) < 0.4)
    masked[:, 0] = True
    kinds: dict[str, tuple[Objective, Batch]] = {
        "pretraining": (
            MaskedLMObjective(),
            {"labels": ids.masked_fill(~masked, -100), "next_sentence_label": torch.tensor([0, 1, 1])},
        ),
        "classification": (image_task(), {"labels": torch.tensor([4, 0, 2])}),
        "tagging": (
            TokenClassificationObjective(["O", "B-A", "I-A", "B-B", "I-B"]),
            {"labels": (ids % 5).masked_fill(~mask, -100)},
        ),
        "spans": (QuestionAnsweringObjective(), {"labels": torch.tensor([[1, 3], [2, 2], [4, 8]])}),
    }
    task, labels = kinds[head]
    classes = {"num_classes": 5} if head in ("classification", "tagging") else {}
    return Case(create_model("bert-tiny", **TEXT, head=head, **classes), task, batch | labels)


def gpt_case(head: str) -> Case:
    batch = texts()
    del batch["token_type_ids"]
    if head == "classification":
        model = create_model("gpt-tiny", **GPT, head=head, num_classes=5)
        return Case(model, image_task(), batch | {"labels": torch.tensor([4, 0, 2])})
    labels = batch["input_ids"].roll(-1, 1).masked_fill(~batch["attention_mask"], -100)
    return Case(create_model("gpt-tiny", **GPT), CausalLMObjective(), batch | {"labels": labels})


CASES = {
    "vit": lambda: image_case("vit-tiny", **TINY),
    "vit, window": lambda: image_case("vit-tiny", **TINY, local_heads=1, local="window", kernel_size=3),
    "deit, distilled": distilled_case,
    "glit": lambda: image_case("glit-tiny", **GLIT),
    "glit, 2-D": lambda: image_case("glit-tiny", **GLIT, local="conv2d"),
    "transformer": lambda: translation_case("transformer-tiny", **TEXT),
    "lstm": lambda: translation_case("lstm-tiny", vocab_size=WORDS, depth=2, embed_dim=24, hidden_dim=12),
    **{
        f"bert, {head}": lambda head=head: bert_case(head)
        for head in ("pretraining", "classification", "tagging", "spans")
    },
    **{f"gpt, {head}": lambda head=head: gpt_case(head) for head in ("language", "classification")},
}


def without_draws(model: nn.Module) -> nn.Module:
    """Turn off dropout and stochastic depth, whose draws differ between devices."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, DropPath):
            module.rate = 0.0
        elif isinstance(module, MultiHeadAttention | nn.LSTM):
            module.dropout = 0.0
    return model


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_float64_on_the_cpu(device: torch.device, name: str) -> None:
    case = CASES[name]()
    model = without_draws(wake(case.model)).train()
    exact = copy.deepcopy(model).double()
    double = {key: t.double() if t.is_floating_point() else t for key, t in case.batch.items()}
    teacher = getattr(case.task, "teacher", None)
    if teacher is not None:
        teacher.double()
    expected = case.task.loss(exact, double).sum()
    expected.backward()
    if teacher is not None:
        teacher.float()

    case.task.to(device)
    loss = case.task.loss(model.to(device), move(case.batch, device)).sum()
    loss.backward()
    assert loss.device.type == device.type
    torch.testing.assert_close(loss.detach().cpu().double(), expected.detach().double(), rtol=1e-4, atol=1e-5)
    largest = max(weight.grad.norm().item() for weight in exact.parameters() if weight.grad is not None)
    for (key, weight), reference in zip(model.named_parameters(), exact.parameters(), strict=True):
        if reference.grad is None:
            assert weight.grad is None, key
            continue
        assert weight.grad is not None, key
        error = (weight.grad.cpu().double() - reference.grad).norm().item()
        assert error < 1e-3 * reference.grad.norm().item() + 1e-5 * largest, key


class Repeated:
    """The same batch again and again."""

    def __init__(self, batch: Batch, steps: int) -> None:
        self.batch, self.steps = batch, steps

    def train_batches(
        self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> list[Batch]:
        return [self.batch] * (self.steps - start)

    def eval_batches(self, split: str, batch_size: int, rank: int = 0, world_size: int = 1) -> list[Batch]:
        return [self.batch]


def assert_learns(case: Case, folder: Path, device: torch.device, precision: Any, compile: Any = "never") -> None:
    """The loss falls over three epochs and stays finite; `fit` itself raises where it or a weight does not."""
    run = RunFolder.create(folder, "")
    config = TrainConfig(epochs=3, lr=3e-3, precision=precision, compile=compile)
    history = fit(case.model, case.task, Repeated(case.batch, steps=12), config, run)
    first, *_, last = (row["train_loss"] for row in history if "val_loss" in row)
    assert last < 0.95 * first
    report = run.read_report()
    assert device.type in ("cpu", report["device"])  # where there is a GPU, training takes it
    assert (report["precision"], report["compiled"]) == (precision, compile == "always")
    assert {weight.dtype for weight in case.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", CASES)
def test_steps_in_bf16_lower_the_loss(device: torch.device, tmp_path: Path, name: str) -> None:
    precision = "bf16" if device.type == "cuda" else choose_precision(device)  # a CPU may have no LSTM in bf16
    assert_learns(CASES[name](), tmp_path / "run", device, precision)


@on_cuda
@pytest.mark.parametrize("name", ["glit", "transformer", "gpt, language"])
def test_steps_in_fp16_lower_the_loss(device: torch.device, tmp_path: Path, name: str) -> None:
    assert_learns(CASES[name](), tmp_path / "run", device, "fp16")


@on_cuda
@pytest.mark.parametrize("name", ["bert, pretraining", "gpt, language"])
def test_compiled_steps_lower_the_loss(
    device: torch.device, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)  # torch.compile cannot look through its checks
    assert_learns(CASES[name](), tmp_path / "run", device, "bf16", compile="always")


DECODINGS = {
    "greedy": DecodingConfig(beams=1, extra_length=12),
    "beam": DecodingConfig(beams=4, nbest=2, extra_length=12),
    "sampled": DecodingConfig(temperature=0.9, nbest=2, extra_length=12),
    "top-k": DecodingConfig(temperature=0.9, top_k=8, extra_length=12),
    "top-p": DecodingConfig(temperature=0.9, top_p=0.8, repetition_penalty=1.2, extra_length=12),
}


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("name", ["transformer", "lstm", "gpt, language"])
def test_decoding_writes_what_the_cpu_writes(device: torch.device, name: str, decoding: str) -> None:
    """Three inputs in one batch, on the device; each by itself, on the CPU."""
    model = wake(CASES[name]().model).eval()
    rows = [torch.randint(3, WORDS, (length,)) for length in (9, 4, 6)]
    config = DECODINGS[decoding]
    expected = [generate(model, row[None], torch.ones(1, len(row), dtype=torch.bool), config)[0] for row in rows]

    side = "left" if model.is_decoder_only else "right"
    ids = pad_sequence(rows, batch_first=True, padding_side=side)
    mask = pad_sequence([torch.ones_like(row, dtype=torch.bool) for row in rows], True, padding_side=side)
    written = generate(model.to(device), ids.to(device), mask.to(device), config)
    for hypotheses, others in zip(written, expected, strict=True):
        assert [hypothesis.ids for hypothesis in hypotheses] == [other.ids for other in others]
        assert [hypothesis.score for hypothesis in hypotheses] == pytest.approx([o.score for o in others], abs=1e-3)


@contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Let CUDA sum in the same order each time: attention's gradient is else another in its last bit."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class Stopped(BaseException):
    pass


class Stopping(Shuffled):
    """Stops in the middle of the second epoch."""

    def train_batches(self, batch_size: int, epoch: int, *args: Any, **kwargs: Any) -> Any:
        batches = super().train_batches(batch_size, epoch, *args, **kwargs)
        return Ending(batches) if epoch == 1 else batches


class Ending(list[Batch]):
    def __iter__(self) -> Iterator[Batch]:
        yield from self[:3]
        raise Stopped


def assert_same_weights(one: RunFolder, other: RunFolder) -> None:
    for kind in ("model", "average"):
        expected, found = read_checkpoint(one.last)[kind], read_checkpoint(other.last)[kind]
        assert expected.keys() == found.keys()
        for name, weight in expected.items():
            assert torch.equal(weight, found[name]), f"{kind}: {name}"


@pytest.mark.parametrize("choice", ["never", pytest.param("always", marks=pytest.mark.slow)])
def test_a_stopped_run_resumes_to_the_same_weights(
    device: torch.device, tmp_path: Path, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if choice == "always":
        monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with deterministic_kernels():
        whole = train(tmp_path / "whole", compile=choice)
        with pytest.raises(Stopped):
            train(tmp_path / "stopped", Stopping(), compile=choice)
        resumed = train(tmp_path / "stopped", resume=True, compile=choice)
    assert device.type in ("cpu", whole.read_report()["device"])
    assert_same_weights(whole, resumed)


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), DEVICES[1]], indirect=True)
def test_one_process_under_torchrun_is_a_run_without_it(device: torch.device, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    command = [*torchrun, str(Path(__file__).with_name("one_process.py")), str(tmp_path / "ddp")]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with deterministic_kernels():
        alone = train(tmp_path / "alone")
    assert_same_weights(alone, RunFolder.open(tmp_path / "ddp"))


def seconds(step: Any, batches: Iterable[Batch], device: torch.device) -> float:
    """Time the steps of some batches, after two that are not counted."""
    iterator = iter(batches)
    start = 0.0
    for number, batch in enumerate(iterator):
        if number == 2:
            synchronize(device)
            start = time.perf_counter()
        step(move(batch, device))
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def assert_keeps_up(
    model: nn.Module, task: Objective, batches: list[Batch] | Any, device: torch.device, capsys: Any, what: str
) -> None:
    """With the loader, steps take no more than a fifth longer than those on one batch that stays on the device."""
    optimizer = torch.optim.AdamW(model.to(device).train().parameters(), lr=1e-4, fused=True)

    def step(batch: Batch) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = task.loss(model, batch).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    held = move(next(iter(batches)), device)
    alone = min(seconds(step, [held] * len(batches), device) for _ in range(2))
    loaded = min(seconds(step, batches, device) for _ in range(2))
    with capsys.disabled():
        print(f"\n{what}: steps with the loader take {loaded / alone:.2f} × the time of those without")
    if device.type == "cuda":
        assert loaded < 1.2 * alone, f"{what}: {loaded:.2f} s with the loader, {alone:.2f} s without"


def test_the_image_loader_keeps_up(device: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = device.type == "cuda"
    workers = os.cpu_count() or 1
    if large and workers < 8:
        pytest.skip(f"{workers} processors; 8 or more are expected to feed a GPU with images")
    count, side = (2048, 224) if large else (32, 32)
    for label in ("cat", "dog"):
        folder = tmp_path / "train" / label
        folder.mkdir(parents=True)
        for number in range(count // 2):
            picture = torch.randint(256, (side, side, 3), dtype=torch.uint8) if number < 64 else picture
            Image.fromarray(picture.numpy()).save(folder / f"{number}.jpg")
    images = open_images(DataConfig(str(tmp_path), side, augment=LIGHT, workers=min(workers, 16) if large else 0))
    name, fields = ("deit-small", {}) if large else ("vit-tiny", TINY)
    model = create_model(name, **fields | {"num_classes": 2})
    batches = images.train_batches(128 if large else 8, 0)
    assert_keeps_up(model, ClassificationObjective(ClassificationConfig(), 2), batches, device, capsys, "images")


def test_the_text_loader_keeps_up(device: torch.device, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = device.type == "cuda"
    rows, length = (8, 1024) if large else (2, 64)
    for split, count in (("train", 400 if large else 2), ("val", 1), ("test", 1)):
        documents = (
            f"{split} {number}: " + "the quick brown fox jumps over the lazy dog " * 40 for number in range(count)
        )
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    packed = open_documents(DocumentsConfig(str(tmp_path), max_length=length, tokenizer=TokenizerConfig("characters")))
    fields = (
        {"depth": 12, "embed_dim": 768, "num_heads": 12} if large else {"depth": 1, "embed_dim": 24, "num_heads": 3}
    )
    special = {"pad_id": 0, "bos_id": 0, "eos_id": 0, "max_length": length}
    model = create_model("gpt2", **fields, **special, vocab_size=packed.tokenizer.vocab_size)
    assert_keeps_up(model, CausalLMObjective(), packed.train_batches(rows, 0), device, capsys, "tokens")

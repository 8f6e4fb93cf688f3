"""What one run of the loop does to weights, files and the terminal."""

import errno
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from toys import CLASSES, ToyBatches, ToyData, ToyModel, toy_config, toy_task, train_toy

from glocal.errors import GlocalError
from glocal.tasks.classification import ClassificationObjective
from glocal.training import LoRAConfig, OptimizerConfig, RunFolder, ScheduleConfig, evaluate, fit, open_accelerator
from glocal.training.checkpoint import read_checkpoint
from glocal.training.devices import choose_precision
from glocal.training.optimizer import learning_rate


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def fitted(folder: Path, data: ToyData | None = None, **fields: Any) -> tuple[ToyModel, RunFolder]:
    """A model without dropout or batch norm, trained from the same start."""
    torch.manual_seed(0)
    model, run = ToyModel(dropout=0.0, norm=False), RunFolder.create(folder, "")
    fit(model, toy_task(), data or ToyData(), toy_config(**fields), run)
    return model, run


@pytest.mark.parametrize("size", [96, 100, 89])
def test_accumulated_batches_are_one_big_batch(tmp_path: Path, size: int) -> None:
    """Also where the last group has fewer batches, and the last batch fewer examples."""
    big = fitted(tmp_path / "big", ToyData(size), batch_size=24, epochs=2)[1]
    small = fitted(tmp_path / "small", ToyData(size), batch_size=8, accumulate=3, epochs=2)[1]
    one, other = read_checkpoint(big.last), read_checkpoint(small.last)
    assert one["progress"]["step"] == other["progress"]["step"]
    for name in one["model"]:
        torch.testing.assert_close(one["model"][name], other["model"][name], rtol=0, atol=2e-6)


def test_a_step_is_adamw_on_the_clipped_mean_gradient(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, data = ToyModel(dropout=0.0, norm=False), ToyData(8)
    (batch,) = data.train_batches(8, 0)
    optimizer = torch.optim.AdamW(
        [
            {"params": [weight for weight in model.parameters() if weight.ndim > 1], "weight_decay": 0.05},
            {"params": [weight for weight in model.parameters() if weight.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.01,
    )
    toy_task().loss(model, batch).backward()
    assert torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1) > 0.2
    optimizer.step()
    run = fitted(tmp_path / "run", data, epochs=1, ema=0.0, optimizer=OptimizerConfig(clip_norm=0.1))[1]
    saved = read_checkpoint(run.last)
    for name, weight in saved["model"].items():
        torch.testing.assert_close(weight, model.state_dict()[name], rtol=0, atol=1e-7)
    for number, state in optimizer.state_dict()["state"].items():  # AdamW's step hides the gradient's scale, this not
        torch.testing.assert_close(saved["optimizer"]["state"][number]["exp_avg"], state["exp_avg"])


def test_ema_is_the_recurrence(tmp_path: Path) -> None:
    """average ← d·average + (1 - d)·weights, with d rising as 1 - (1 + n)^(-2/3) to the decay asked for."""
    decay, average = 0.6, dict[str, Tensor]()
    history: list[dict[str, Tensor]] = []  # the weights after each epoch, which is one step

    class Spying(ToyData):
        def eval_batches(self, *args: Any, **kwargs: Any) -> ToyBatches:
            history.append(weights(model))
            return super().eval_batches(*args, **kwargs)

    torch.manual_seed(0)
    model = ToyModel(dropout=0.0, norm=False)
    run = RunFolder.create(tmp_path / "spied", "")
    fit(model, toy_task(), Spying(8), toy_config(epochs=5, ema=decay, lr=0.02), run)
    for step, current in enumerate(history[1:], start=1):  # the first call is before training
        d = 0.0 if step == 1 else min(decay, 1 - step ** (-2 / 3))
        average = {name: d * average.get(name, weight) + (1 - d) * weight for name, weight in current.items()}
    saved = read_checkpoint(run.last)["average"]
    for name, weight in average.items():
        torch.testing.assert_close(saved[f"module.{name}"], weight, rtol=0, atol=1e-6)


class Falling(ClassificationObjective):
    """Every epoch is judged worse than the one before."""

    def score(self, metrics: dict[str, Any]) -> float:
        self.judged = getattr(self, "judged", 0) + 1
        return -float(self.judged)


def test_the_last_epochs_are_averaged(tmp_path: Path) -> None:
    """They validate their average so far, and it is the result although the first epoch was the best."""
    ends: list[dict[str, Tensor]] = []
    validated: list[dict[str, Tensor]] = []

    class Spying(ToyData):
        def eval_batches(self, *args: Any, **kwargs: Any) -> ToyBatches:
            ends.append(weights(model))
            return super().eval_batches(*args, **kwargs)

    def sample_fn(evaluated: nn.Module) -> str:
        validated.append(weights(evaluated))
        return ""

    torch.manual_seed(0)
    model, run = ToyModel(dropout=0.0, norm=False), RunFolder.create(tmp_path / "run", "")
    config = toy_config(epochs=5, ema=0.0, average=3, lr=0.02)
    fit(model, Falling(toy_task().config, CLASSES), Spying(), config, run, sample_fn=sample_fn)
    del ends[0]  # before training, when it was seen whether there is a validation split
    for got, averaged in zip(validated, [ends[:1], ends[1:2], ends[2:3], ends[2:4], ends[2:]], strict=True):
        for name, weight in got.items():
            torch.testing.assert_close(weight, sum(end[name] for end in averaged) / len(averaged), rtol=0, atol=1e-6)
    assert all(torch.equal(weight, validated[-1][name]) for name, weight in weights(model).items())
    saved, last_row = read_checkpoint(run.best), run.history()[-1]
    assert (saved["epoch"], saved["top1"]) == (5, last_row["val_top1"])
    assert run.read_report()["val"]["loss"] == last_row["val_loss"]
    metrics = evaluate(model, toy_task(), ToyData().eval_batches("val", 8), open_accelerator("float32"))
    assert metrics["loss"] == last_row["val_loss"]


def test_a_short_budget_of_minutes_averages_every_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glocal.training.clock.Clock.seconds", lambda clock: 0.25)
    schedule = ScheduleConfig(kind="inverse_sqrt", warmup_steps=5)  # a cosine would need to know its end
    timed = fitted(tmp_path / "timed", minutes=0.02, ema=0.0, average=9, schedule=schedule)[0]
    counted = fitted(tmp_path / "counted", epochs=4, ema=0.0, average=4, schedule=schedule)[0]
    assert all(torch.equal(weight, weights(counted)[name]) for name, weight in weights(timed).items())


def test_the_best_weights_are_left_in_the_model_and_on_disk(tmp_path: Path) -> None:
    model, run = fitted(tmp_path / "run", epochs=6)
    rows = [row for row in run.history() if "val_top1" in row]
    best = max(rows, key=lambda row: row["val_top1"])  # the first of equals
    saved = read_checkpoint(run.best)
    assert (saved["epoch"], saved["top1"]) == (best["epoch"], best["val_top1"])
    assert all(torch.equal(weight, saved["model"][name]) for name, weight in model.state_dict().items())
    metrics = evaluate(model, toy_task(), ToyData().eval_batches("val", 8), open_accelerator("float32"))
    assert metrics["top1"] == best["val_top1"]
    assert run.read_report()["val"]["top1"] == best["val_top1"]


def test_report_and_logs(tmp_path: Path) -> None:
    run = train_toy(tmp_path / "run", epochs=4)
    report = run.read_report()
    assert report["parameters"] == sum(weight.numel() for weight in ToyModel().parameters())
    assert (report["epochs"], report["steps"], report["seed"], report["precision"]) == (4, 48, 0, "float32")
    rows = run.history()
    assert [row["step"] for row in rows] == [12, 20, 24, 36, 40, 48]
    assert [row["epoch"] for row in rows] == [1, 2, 2, 3, 4, 4]
    events = EventAccumulator(str(run.tensorboard)).Reload()
    assert [event.step for event in events.Scalars("val_top1")] == [12, 24, 36, 48]
    assert [event.value for event in events.Scalars("lr")] == pytest.approx([row["lr"] for row in rows if "lr" in row])


def test_a_run_of_steps_cuts_its_last_epoch(tmp_path: Path) -> None:
    """Its cosine ends with it."""
    run = train_toy(tmp_path / "cut", steps=20)
    assert [(row["step"], row["epoch"]) for row in run.history()] == [(12, 1), (20, 2), (20, 1.67)]
    assert run.history()[1]["lr"] == learning_rate(toy_config(steps=20), 19, 12, 20.0) < 0.001
    assert run.read_report()["steps"] == read_checkpoint(run.last)["progress"]["step"] == 20


def test_steps_are_the_epochs_own(tmp_path: Path) -> None:
    schedule = ScheduleConfig(kind="inverse_sqrt", warmup_steps=5)  # a cosine would know the end
    steps = fitted(tmp_path / "steps", steps=24, schedule=schedule)[1]
    epochs = fitted(tmp_path / "epochs", epochs=2, schedule=schedule)[1]
    one, other = (read_checkpoint(run.last)["model"] for run in (steps, epochs))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_validation_within_an_epoch(tmp_path: Path) -> None:
    """After so many steps, and after the epoch; training goes on as if nobody had looked."""
    plain, looked = fitted(tmp_path / "plain", epochs=2)[1], fitted(tmp_path / "looked", epochs=2, validate_every=5)[1]
    rows = [row for row in looked.history() if "val_loss" in row]
    assert [(row["step"], row["epoch"]) for row in rows] == [
        (5, 0.42),
        (10, 0.83),
        (12, 1),
        (17, 1.42),
        (22, 1.83),
        (24, 2),
    ]
    one, other = read_checkpoint(plain.last), read_checkpoint(looked.last)
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    last = [row for row in plain.history() if "val_loss" in row][-1]
    assert {name: last[name] for name in last if name.startswith("val")}.items() <= rows[-1].items()
    best = max(rows, key=lambda row: row["val_top1"])
    assert read_checkpoint(looked.best)["step"] == best["step"]


def test_the_head_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, run = ToyModel(), RunFolder.create(tmp_path / "run", "")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fit(model, toy_task(), ToyData(), toy_config(tune="head", ema=0.0), run)
    for name, value in read_checkpoint(run.last)["model"].items():
        assert torch.equal(value, before[name]) == name.startswith("body"), name  # batch norm's statistics too
    assert run.read_report()["trained_parameters"] == 16 * CLASSES + CLASSES


class Poisoned(ToyData):
    """One input is not a number, in a given epoch."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def train_batches(self, batch_size: int, epoch: int, *args: Any, **kwargs: Any) -> ToyBatches:
        batches = super().train_batches(batch_size, epoch, *args, **kwargs)
        if epoch == self.epoch:
            batches.data = ToyData()
            batches.data.inputs[batches.picks[5][0]] = math.nan
        return batches


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "")
    with pytest.raises(GlocalError, match=r"step 30: the loss is nan at learning rate 0.00\d+; try a lower"):
        fit(ToyModel(), toy_task(), Poisoned(epoch=2), toy_config(save_every=1), run)
    saved = read_checkpoint(run.last)
    assert saved["progress"]["step"] == 29
    assert all(value.isfinite().all() for value in saved["model"].values())


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    """The loss was finite, its gradient was not."""

    class Cliff(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * math.nan

    class Model(ToyModel):
        calls = 0

        def forward(self, pixel_values: Tensor) -> Tensor:
            self.calls += self.training
            logits = super().forward(pixel_values)
            return Cliff.apply(logits) if self.calls == 12 * 2 else logits

    run = RunFolder.create(tmp_path / "run", "")
    with pytest.raises(GlocalError, match=r"step 24: .* is no longer finite"):
        fit(Model(), toy_task(), ToyData(), toy_config(ema=0.0), run)
    for path in (run.last, run.best):
        saved = read_checkpoint(path)
        assert all(value.isfinite().all() for value in saved["model"].values())
    assert saved["epoch"] == 1


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_toy(tmp_path / "whole", save_every=5)
    run = RunFolder.create(tmp_path / "run", "")
    save, calls = torch.save, []

    def full(content: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) == 6:
            file.write(b"half a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", full)
    torch.manual_seed(0)
    with pytest.raises(GlocalError, match="No space left on device; what was saved before is whole"):
        fit(ToyModel(), toy_task(), ToyData(), toy_config(save_every=5), run)
    assert not list(run.path.rglob("*.tmp"))
    monkeypatch.undo()
    train_toy(run.path, resume=True, save_every=5)
    one, other = read_checkpoint(whole.last), read_checkpoint(run.last)
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])


def test_nothing_to_validate_on_is_said_before_the_first_step(tmp_path: Path) -> None:
    class Unvalidated(ToyData):
        def eval_batches(self, *args: Any, **kwargs: Any) -> ToyBatches:
            return ToyBatches(self, range(0), [])

    run = RunFolder.create(tmp_path / "run", "")
    with pytest.raises(GlocalError, match=r"no validation split .*data\.val_fraction"):
        fit(ToyModel(), toy_task(), Unvalidated(), toy_config(), run)
    assert not run.metrics.exists()


def test_a_score_that_is_no_number_is_no_best_one(tmp_path: Path) -> None:
    """The first weights are kept all the same, and those of the first score that is a number after them."""

    class Silent(ClassificationObjective):
        scores = iter([math.nan, math.nan, 0.5, math.nan])

        def score(self, metrics: dict[str, Any]) -> float:
            return next(self.scores)

    run = RunFolder.create(tmp_path / "run", "")
    fit(ToyModel(), Silent(toy_task().config, CLASSES), ToyData(), toy_config(), run)
    assert read_checkpoint(run.best)["epoch"] == 3


def test_a_warm_up_longer_than_the_run_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_toy(tmp_path / "run", epochs=1, schedule=ScheduleConfig(warmup_steps=500))
    assert "the warm-up of 500 steps (train.schedule) is longer than the run of 12" in capsys.readouterr().out


def test_a_budget_of_minutes_fixes_the_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glocal.training.clock.Clock.seconds", lambda clock: 0.25)  # what the first epoch took
    run = train_toy(tmp_path / "run", minutes=0.02)
    progress = read_checkpoint(run.last)["progress"]
    assert progress["epochs"] == progress["epoch"] == 4  # 1.2 seconds / 0.25


@pytest.mark.parametrize(
    "fields",
    [
        {"epochs": None},
        {"epochs": 3, "minutes": 1.0},
        {"epochs": 0},
        {"ema": 1.0},
        {"ema": 0.0, "average": -1},
        {"ema": 0.0, "average": 5, "epochs": 4},
        {"ema": 0.9, "average": 2},
        {"ema": 0.0, "average": 2, "patience": 3},
        {"ema": 0.0, "average": 2, "validate_every": 3},
        {"epochs": 3, "steps": 5},
        {"steps": 0},
        {"validate_every": -1},
        {"tune": "lora", "lora": LoRAConfig(rank=0)},
        {"tune": "lora", "lora": LoRAConfig(dropout=1.0)},
        {"schedule": ScheduleConfig(kind="inverse_sqrt")},
    ],
)
def test_contradictions_are_refused(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(GlocalError, match="train"):
        train_toy(tmp_path / "run", **fields)


def test_early_stopping(tmp_path: Path) -> None:
    class Oracle(type(toy_task())):
        scores = iter([0.1, 0.3, 0.2, 0.3, 0.25, 0.9])

        def score(self, metrics: dict[str, Any]) -> float:
            return next(self.scores)

    task = Oracle(toy_task().config, CLASSES)
    run = RunFolder.create(tmp_path / "run", "")
    history = fit(ToyModel(), task, ToyData(), toy_config(epochs=6, patience=3), run)
    assert max(row["epoch"] for row in history) == 5
    assert read_checkpoint(run.best)["epoch"] == 2


def test_bf16_trains_and_keeps_float32_weights(tmp_path: Path) -> None:
    seen: set[torch.dtype] = set()

    class Model(ToyModel):
        def forward(self, pixel_values: Tensor) -> Tensor:
            logits = super().forward(pixel_values)
            seen.add(logits.dtype)
            return logits

    run = RunFolder.create(tmp_path / "run", "")
    fit(Model(), toy_task(), ToyData(), toy_config(precision="bf16", lr=0.03, epochs=8), run)
    assert seen == {torch.bfloat16}  # in validation too
    assert {value.dtype for value in read_checkpoint(run.last)["model"].values()} == {torch.float32, torch.int64}
    assert run.read_report()["precision"] == "bf16"
    assert run.read_report()["val"]["top1"] > 0.6


def test_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert choose_precision(cpu) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert choose_precision(cpu) == "float32"
    assert choose_precision(torch.device("mps")) == "float32"
    if not torch.cuda.is_available():
        with pytest.raises(GlocalError, match="needs a GPU"):
            open_accelerator("fp16")


def test_a_line_is_said_after_each_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the model that was validated, word for word; what it draws at random changes nothing."""
    quiet = train_toy(tmp_path / "quiet", epochs=2)
    told: list[nn.Module] = []

    def sample_fn(model: nn.Module) -> str:
        told.append(model)
        assert not model.training
        return f"[bold]số {int(torch.randint(9, ())) * 0 + len(told)}[/] :cat: → [/red]\n\x1b[2J"

    torch.manual_seed(0)
    model, run = ToyModel(), RunFolder.create(tmp_path / "run", "")
    fit(model, toy_task(), ToyData(), toy_config(epochs=2), run, sample_fn=sample_fn)
    lines = capsys.readouterr().out.splitlines()
    for epoch in (1, 2):
        said = lines.index(f"[bold]số {epoch}[/] :cat: → [/red]" + r"\n\x1b[2J")
        assert lines[said - 1].startswith(f"epoch {epoch}/2  loss")
    assert model not in told  # but its moving average
    one, other = read_checkpoint(quiet.last)["average"], read_checkpoint(run.last)["average"]
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_learner_learns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train_toy(tmp_path / "run", epochs=25, lr=0.02)
    assert run.read_report()["val"]["top1"] > 0.85
    shown = capsys.readouterr().out
    assert "epoch 25/25  loss" in shown
    assert re.search(r"epoch 25/25  loss [\d.]+  val .*top1 [\d.]+  .*\d+ s  \d+ labels/s", shown)


def test_nothing_but_the_interface_is_asked_for(tmp_path: Path) -> None:
    """Text fits in: other names in the batch, another task."""

    class Words(ToyData):
        def train_batches(self, *args: Any, **kwargs: Any) -> Any:
            return Renamed(super().train_batches(*args, **kwargs))

        def eval_batches(self, *args: Any, **kwargs: Any) -> Any:
            return Renamed(super().eval_batches(*args, **kwargs))

    class Renamed:
        def __init__(self, batches: ToyBatches) -> None:
            self.batches = batches

        def __len__(self) -> int:
            return len(self.batches)

        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for batch in self.batches:
                yield {"input_ids": batch["pixel_values"].argmax(dim=1), "labels": batch["labels"]}

    class Guess(type(toy_task())):
        def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
            return self.cross_entropy(*self.predictions_and_targets(model, batch))

        def predictions_and_targets(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return model(batch["input_ids"]), batch["labels"]

        def score(self, metrics: dict[str, Any]) -> float:
            return -metrics["loss"]

    run = RunFolder.create(tmp_path / "run", "")
    fit(nn.Embedding(6, CLASSES), Guess(toy_task().config, CLASSES), Words(), toy_config(epochs=12, lr=0.1), run)
    rows = [row for row in run.history() if "val_loss" in row]
    assert rows[-1]["val_loss"] < 0.9 * rows[0]["val_loss"]


def test_evaluation_leaves_the_generator_and_the_gradients_alone() -> None:
    model, accelerator = ToyModel(), Accelerator(mixed_precision="no")
    state = torch.get_rng_state()
    evaluate(model, toy_task(), ToyData().eval_batches("val", 8), accelerator)
    assert torch.equal(state, torch.get_rng_state())
    assert all(weight.grad is None for weight in model.parameters())

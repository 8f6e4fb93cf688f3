"""The loop: batches → loss → gradients → step; after each epoch, validation and a checkpoint.

Under `torchrun --nproc-per-node N`, N processes share every step (DDP by accelerate).
"""

import math
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from jaxtyping import Float
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.training.checkpoint import Progress, TrainState, read_checkpoint, write_checkpoint
from glocal.training.config import TrainConfig
from glocal.training.devices import open_accelerator
from glocal.training.evaluation import evaluate, move
from glocal.training.interfaces import Batch, Data, Speak, Task
from glocal.training.log import Log
from glocal.training.optimizer import build_optimizer, freeze_all_but_head, learning_rate
from glocal.training.run import RunFolder, provenance
from glocal.training.signals import Interrupted, StopRequest

LOG_EVERY = 20
"""Steps between two rows of metrics.jsonl."""


def fit(
    model: nn.Module,
    task: Task,
    data: Data,
    config: TrainConfig,
    run: RunFolder,
    resume: bool = False,
    speak: Speak | None = None,
) -> list[dict[str, Any]]:
    """Train `model`, leave it with the best weights found (or their average), and return the rows of `run.metrics`.

    With `resume`, continue from the run's last checkpoint, if it came to one, to the weights that a run which was never
    stopped would have. After each validation, the first process lets `speak` say its line of the model that was
    validated.

    Raises GlocalError where a value is unusable, the loss stops being finite, or the disk is full; Interrupted after
    SIGTERM or Ctrl-C, with everything saved.
    """
    config.check()
    accelerator = open_accelerator(config.precision, getattr(model, "trains_in_part", False))
    model.to(accelerator.device)
    task.to(accelerator.device)
    if config.tune == "head":
        freeze_all_but_head(model)
    average = ModelEmaV3(model, config.ema, use_warmup=True) if config.ema or config.average else None
    objective, optimizer = accelerator.prepare(
        Objective(task, model), build_optimizer(model, config.lr, config.optimizer)
    )
    state = TrainState(model, average, optimizer, Progress(epochs=config.epochs, processes=accelerator.num_processes))
    if resume and run.last.exists():
        state.load(run.last)

    progress, speaks = state.progress, accelerator.is_main_process
    precision = accelerator.mixed_precision.replace("no", "float32")
    parameters = sum(weight.numel() for weight in model.parameters())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    with (
        StopRequest(alone=accelerator.num_processes == 1) as stop,
        Log(run, speaks, progress.step, progress.logged) as log,
    ):
        log.say(f"training {trained:,} of {parameters:,} weights on {accelerator.device.type} in {precision}")
        Loop(objective, task, data, config, run, state, accelerator, log, stop, speak if speaks else None).run_epochs()

    accelerator.wait_for_everyone()
    best = read_checkpoint(run.best)
    model.load_state_dict(best.pop("model"))
    if speaks:
        run.update_report(
            val=best,
            parameters=parameters,
            trained_parameters=trained,
            seed=config.seed,
            epochs=progress.epoch,
            steps=progress.step,
            seconds=round(progress.seconds, 1),
            cpu_seconds=round(progress.cpu_seconds, 1),
            device=accelerator.device.type,
            precision=precision,
            processes=accelerator.num_processes,
            **provenance(),
        )
    return run.history()


class Objective(nn.Module):
    """A task's loss as a module's forward: there autocast and DDP take hold, whatever the task calls on the model."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.model = model

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """Mean loss of a batch."""
        return self.task.loss(self.model, batch)


class Report(NamedTuple):
    """A step that the device may still be at work on."""

    step: int
    lr: float
    values: Float[Tensor, "3"]
    """Over all ranks: sum of the losses, labels, requests to stop."""


@dataclass
class Loop:
    """One call of `fit`."""

    objective: nn.Module
    task: Task
    data: Data
    config: TrainConfig
    run: RunFolder
    state: TrainState
    accelerator: Accelerator
    log: Log
    stop: StopRequest
    speak: Speak | None

    def __post_init__(self) -> None:
        self.progress = self.state.progress
        self.share = {"rank": self.accelerator.process_index, "world": self.accelerator.num_processes}
        self.pending: Report | None = None
        self.stopping = False
        self.origin = time.perf_counter() - self.progress.seconds
        self.cpu_origin = cpu_seconds() - self.progress.cpu_seconds
        size, world = self.config.batch_size, self.share["world"]
        self.epoch_steps = math.ceil(len(self.data.train_batches(size, 0, world=world)) / self.config.accumulate)

    @property
    def total_steps(self) -> float:
        """Steps of the whole run; inf while a budget of minutes waits for the first epoch to be timed."""
        return math.inf if self.progress.epochs is None else float(self.progress.epochs * self.epoch_steps)

    def run_epochs(self) -> None:
        """Train and validate until the epochs are done, or patience is."""
        if self.share["world"] > 2 and not self.finished():
            self.settle_layout()
        while not self.finished():
            self.train_epoch()
            if self.stopping:
                self.save()
                raise Interrupted(f"stopped at step {self.progress.step}; continue with --resume {self.run}")
            self.validate()
            self.save()

    def settle_layout(self) -> None:
        """Take one gradient and drop it, at the start of every call: a resumed run must sum as the others do.

        DDP orders its buckets anew after the first gradient, and in the last bit a sum over three or more ranks depends
        on that order. In evaluation mode, the pass leaves no trace.
        """
        batch = next(iter(self.data.train_batches(self.config.batch_size, 0, **self.share)))
        self.state.model.eval()
        self.accelerator.backward(self.objective(move(batch, self.accelerator.device)))
        self.state.optimizer.zero_grad()

    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        done = self.progress.epochs is not None and self.progress.epoch >= self.progress.epochs
        return done or 0 < self.config.patience <= self.progress.stale

    def train_epoch(self) -> None:
        """Learn from what is left of the epoch, or until asked to stop."""
        config, progress = self.config, self.progress
        self.state.model.train(config.tune == "all")
        if config.tune == "head":
            self.state.model.get_submodule("head").train()  # the frozen rest neither drops paths nor moves batch norm
        self.started, self.before = time.perf_counter(), progress.labels
        batches = self.data.train_batches(config.batch_size, progress.epoch, start=progress.batch, **self.share)
        for group in grouped(batches, config.accumulate):
            self.step(group)
            if config.save_every and progress.step % config.save_every == 0:
                self.save()
            if self.stopping:
                break
        self.settle()

    def step(self, group: list[Batch]) -> None:
        """Learn from the batches of one step, by the mean loss over all their labels on all ranks."""
        config, progress, accelerator = self.config, self.progress, self.accelerator
        lr = learning_rate(config, progress.step, self.epoch_steps, self.total_steps)
        for params in self.state.optimizer.param_groups:
            params["lr"] = lr
        seed_network(config.seed, progress.step, self.share["rank"])

        sizes = [self.task.size(batch) for batch in group]
        labels = accelerator.reduce(torch.tensor(float(sum(sizes)), device=accelerator.device))
        loss_sum = torch.zeros((), device=accelerator.device)
        for number, (batch, size) in enumerate(zip(group, sizes, strict=True), start=1):
            last = number == len(group)
            with nullcontext() if last else accelerator.no_sync(self.objective):
                loss = self.objective(move(batch, accelerator.device))
                accelerator.backward(loss * (size * self.share["world"] / labels))  # DDP takes the mean over ranks
            loss_sum += loss.detach() * size
        if config.optimizer.clip_norm:
            accelerator.clip_grad_norm_(self.state.model.parameters(), config.optimizer.clip_norm)
        self.state.optimizer.step()
        self.state.optimizer.zero_grad()
        progress.step += 1
        progress.batch += len(group)
        if config.ema and self.state.average:
            self.state.average.update(self.state.model, progress.step)

        asked = torch.tensor(float(self.stop.asked), device=accelerator.device)
        loss_sum, asked = accelerator.reduce(torch.stack([loss_sum, asked]))
        self.settle()  # reads the step before this one, so that the device need not wait for the processor
        self.pending = Report(progress.step, lr, torch.stack([loss_sum, labels, asked]))

    def settle(self) -> None:
        """Read what came of the pending step. Raises GlocalError where its loss is not finite."""
        if self.pending is None:
            return
        step, lr, values = self.pending
        self.pending = None
        loss_sum, labels, asked = values.tolist()
        loss = loss_sum / labels
        if not math.isfinite(loss):
            raise GlocalError(
                f"step {step}: the loss is {loss} at learning rate {lr:.3g}; try a lower train.lr, a longer "
                f"warm-up (train.schedule), train.optimizer.clip_norm 1 or train.precision float32; "
                f"{self.run.last.parent} holds what was saved before"
            )
        progress = self.progress
        progress.loss_sum += loss_sum
        progress.labels += labels
        self.stopping = self.stopping or asked > 0
        if step % LOG_EVERY == 0:
            self.log.write({"step": step, "epoch": progress.epoch + 1, "train_loss": loss, "lr": lr} | self.timing())
        self.log.advance(step, self.total_steps, f"epoch {progress.epoch + 1}", loss)

    def validate(self) -> None:
        """End an epoch: measure, log, and keep the weights if they are the best so far, or the average in the end."""
        config, progress = self.config, self.progress
        self.state.check_finite()
        if config.average:
            self.state.average_epochs(config.average)
        row = {"step": progress.step, "epoch": progress.epoch + 1, "train_loss": progress.loss_sum / progress.labels}
        row |= self.timing()
        batches = self.data.eval_batches("val", config.batch_size, **self.share)
        metrics = evaluate(self.state.evaluated, self.task, batches, self.accelerator)
        sample = self.speak(self.state.evaluated) if self.speak else ""
        scalars = {name: value for name, value in metrics.items() if isinstance(value, float)}
        row |= {f"val_{name}": value for name, value in scalars.items()} | {"seconds": self.seconds()}
        self.log.write(row)

        progress.epoch += 1
        progress.batch, progress.loss_sum, progress.labels = 0, 0.0, 0.0
        score = self.task.score(metrics)
        if score > progress.best or (config.average and progress.epoch == progress.epochs):
            progress.best, progress.stale = score, 0
            if self.accelerator.is_main_process:
                best = {"epoch": progress.epoch, "step": progress.step, **scalars}
                write_checkpoint(self.run.best, best | {"model": self.state.evaluated.state_dict()})
        else:
            progress.stale += 1
        if progress.epochs is None:
            self.fix_epochs()
        self.log.state = "  ".join(f"val {name} {value:.4g}" for name, value in scalars.items())
        self.log.say(
            f"epoch {progress.epoch}/{progress.epochs}  loss {row['train_loss']:.4f}  {self.log.state}  "
            f"{row['labels_per_second']:.0f} labels/s"
        )
        if sample:
            self.log.say(sample)

    def fix_epochs(self) -> None:
        """Count the epochs that fit into the budget of minutes, by the first; the first rank's clock counts."""
        assert self.config.minutes is not None
        epochs = max(1, int(self.config.minutes * 60 / self.seconds()))
        (self.progress.epochs,) = broadcast_object_list([epochs])

    def save(self) -> None:
        """Write last.pt."""
        self.settle()
        self.state.check_finite()
        if self.accelerator.is_main_process:
            self.log.flush()
            self.progress.logged = self.log.logged
            self.progress.seconds = self.seconds()
            self.progress.cpu_seconds = cpu_seconds() - self.cpu_origin
            self.state.save(self.run.last)

    def seconds(self) -> float:
        """Time spent on the run so far, before it was resumed included."""
        return round(time.perf_counter() - self.origin, 3)

    def timing(self) -> dict[str, float]:
        """Return the epoch's speed, all ranks together, and the run's time."""
        rate = (self.progress.labels - self.before) / (time.perf_counter() - self.started)
        return {"labels_per_second": round(rate, 1), "seconds": self.seconds()}


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last may be shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def seed_network(seed: int, step: int, rank: int) -> None:
    """Fix the network's draws (dropout, drop path) of one step, so that no generator need be saved."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]))


def cpu_seconds() -> float:
    """Processor time of this process and of those it has waited for."""
    return sum(os.times()[:4])

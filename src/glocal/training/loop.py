"""The loop: batches → loss → gradients → step; after each epoch, or sooner, validation and a checkpoint.

Under `torchrun --nproc-per-node N`, N processes share every step (DDP by accelerate).
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.training.checkpoint import FREE, Progress, TrainState, read_best, write_checkpoint
from glocal.training.clock import Clock
from glocal.training.compiling import Compiled, choose_compile
from glocal.training.config import TrainConfig
from glocal.training.devices import Later, broadcast_from_main, open_accelerator
from glocal.training.evaluation import evaluate, move
from glocal.training.interfaces import Batch, Data, Objective, SampleFn
from glocal.training.log import Log
from glocal.training.optimizer import build_optimizer, learning_rate, warmup_steps
from glocal.training.run import RunFolder, flat, provenance
from glocal.training.signals import Interrupted, StopRequest
from glocal.training.tuning import freeze, save_adapter, set_training

LOG_EVERY = 20
"""Steps between two rows of metrics.jsonl."""


def fit(
    model: nn.Module,
    task: Objective,
    data: Data,
    config: TrainConfig,
    run: RunFolder,
    resume: bool = False,
    sample_fn: SampleFn | None = None,
) -> list[dict[str, Any]]:
    """Train `model`, leave it with the best weights found (or their average), and return the rows of `run.metrics`.

    With LoRA, the trained matrices alone are kept in `run.adapter`, and merged into the model's own.

    With `resume`, continue from the run's last checkpoint, if it came to one, to the weights that a run which was never
    stopped would have. After each validation, the first process lets `sample_fn` say its line of the model that was
    validated.

    Raises GlocalError where a value is unusable, the data has nothing to train or to validate on, the loss stops being
    finite, or the disk is full; Interrupted after SIGTERM or Ctrl-C, with everything saved.
    """
    config.check()
    accelerator = open_accelerator(config.precision, getattr(model, "trains_in_part", False))
    check_data(data, config.batch_size, accelerator.num_processes)
    model.to(accelerator.device)
    task.to(accelerator.device)
    parameters = sum(weight.numel() for weight in model.parameters())
    adapter = freeze(model, config)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    average = ModelEmaV3(model, config.ema, use_warmup=True) if config.ema or config.average else None
    objective, optimizer = accelerator.prepare(
        ObjectiveModule(task, model), build_optimizer(model, config.lr, config.optimizer)
    )
    progress = Progress(epochs=config.epochs, processes=accelerator.num_processes)
    settings = run.settings() | flat(json.loads(json.dumps({"train": asdict(config)})))
    settings = {name: value for name, value in settings.items() if name not in FREE}
    state = TrainState(model, average, optimizer, progress, settings)
    if resume and run.last.exists():
        state.load(run.last)
        if state.progress.validated:
            read_best(run.best, model)  # a run that has lost it cannot end as it would have

    progress, is_main = state.progress, accelerator.is_main_process
    precision = accelerator.mixed_precision.replace("no", "float32")
    with (
        StopRequest(alone=accelerator.num_processes == 1) as stop,
        Log(run, is_main, progress.step, progress.logged) as log,
    ):
        log.say(f"training {trained:,} of {parameters:,} weights on {accelerator.device.type} in {precision}")
        loop = Loop(objective, task, data, config, run, state, accelerator, log, stop, sample_fn if is_main else None)
        loop.train()

    accelerator.wait_for_everyone()
    best = read_best(run.best, model)
    model.load_state_dict(best.pop("model"))
    if adapter and is_main:
        run.update_report(adapter_bytes=save_adapter(adapter, run.adapter))
    if adapter:
        adapter.merge_and_unload()
    if is_main:
        run.update_report(
            val=best,
            parameters=parameters,
            trained_parameters=trained,
            trained_share=trained / parameters,
            seed=config.seed,
            epochs=progress.epoch,
            steps=progress.step,
            seconds=round(progress.seconds, 1),
            cpu_seconds=round(progress.cpu_seconds, 1),
            device=accelerator.device.type,
            precision=precision,
            compiled=isinstance(loop.loss, Compiled),
            processes=accelerator.num_processes,
            **provenance(),
        )
    return run.history()


class ObjectiveModule(nn.Module):
    """A task's loss as a module's forward: there autocast and DDP take hold, whatever the task calls on the model."""

    def __init__(self, task: Objective, model: nn.Module) -> None:
        super().__init__()
        self.task = task
        self.model = model

    def forward(self, batch: Batch) -> Float[Tensor, "*parts"]:
        """Mean loss of a batch, or of each part of an objective."""
        return self.task.loss(self.model, batch)


class Report(NamedTuple):
    """A step that the device may still be at work on."""

    step: int
    lr: float
    values: Later
    """Over all ranks: the labels of each part of the objective, the sum of its losses, and requests to stop."""


@dataclass
class Loop:
    """One call of `fit`."""

    objective: nn.Module
    task: Objective
    data: Data
    config: TrainConfig
    run: RunFolder
    state: TrainState
    accelerator: Accelerator
    log: Log
    stop: StopRequest
    sample_fn: SampleFn | None

    def __post_init__(self) -> None:
        self.progress = self.state.progress
        self.share = {"rank": self.accelerator.process_index, "world": self.accelerator.num_processes}
        self.pending: Report | None = None
        self.stopping = False
        self.clock = Clock(self.progress)
        size, world = self.config.batch_size, self.share["world"]
        self.epoch_steps = math.ceil(len(self.data.train_batches(size, 0, world=world)) / self.config.accumulate)
        if self.config.steps:
            self.progress.epochs = math.ceil(self.config.steps / self.epoch_steps)
        warmup = warmup_steps(self.config, self.epoch_steps)
        if warmup > self.total_steps:
            self.log.say(
                f"warning: the warm-up of {warmup:g} steps (train.schedule) is longer than the run of "
                f"{self.total_steps:g}: the learning rate will not reach train.lr"
            )
        self.loss: Callable[[Batch], Tensor] = self.choose_loss()

    def choose_loss(self) -> Callable[[Batch], Tensor]:
        """Return the objective, compiled where `train.compile` says so."""
        steps = None if self.config.minutes else self.total_steps
        compiles, reason = choose_compile(self.config, self.state.model, self.accelerator.device, steps)
        if reason:
            self.log.say(reason)
        return Compiled(self.objective, self.task, self.first_batch()) if compiles else self.objective

    @property
    def total_steps(self) -> float:
        """Steps of the whole run; inf while a budget of minutes waits for the first epoch to be timed."""
        if self.config.steps:
            return float(self.config.steps)
        return math.inf if self.progress.epochs is None else float(self.progress.epochs * self.epoch_steps)

    def train(self) -> None:
        """Learn and validate until the epochs are done, or patience is."""
        if self.share["world"] > 2 and not self.finished():
            self.warm_up_ddp()
        while not self.finished():
            epoch_ends = self.learn()
            if self.stopping:
                self.save()
                raise Interrupted(f"stopped at step {self.progress.step}; continue with --resume {self.run}")
            self.validate(epoch_ends)
            self.save()

    def warm_up_ddp(self) -> None:
        """Take one gradient and drop it, at the start of every call: a resumed run must sum as the others do.

        DDP orders its buckets anew after the first gradient, and in the last bit a sum over three or more ranks depends
        on that order. In evaluation mode, the pass leaves no trace.
        """
        self.state.model.eval()
        self.accelerator.backward(self.objective(move(self.first_batch(), self.accelerator.device)).sum())
        self.state.optimizer.zero_grad()

    def first_batch(self) -> Batch:
        """Return the first batch of the first epoch, wherever the run stands."""
        return next(iter(self.data.train_batches(self.config.batch_size, 0, **self.share)))

    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        done = self.progress.epochs is not None and self.progress.epoch >= self.progress.epochs
        return done or 0 < self.config.patience <= self.progress.stale

    def learn(self) -> bool:
        """Learn until the next validation, or until asked to stop; return whether an epoch ends there."""
        config, progress = self.config, self.progress
        set_training(self.state.model, config)
        self.clock.start_lap()
        batches = self.data.train_batches(config.batch_size, progress.epoch, start=progress.batch, **self.share)
        end = progress.step + math.ceil(len(batches) / config.accumulate)
        goal = min(end, config.steps or end)
        if config.validate_every:
            goal = min(goal, progress.validated + config.validate_every)
        for group in islice(grouped(batches, config.accumulate), goal - progress.step):
            self.step(group)
            if config.save_every and progress.step % config.save_every == 0:
                self.save()
            if self.stopping:
                break
        self.flush_pending()
        return progress.step in (end, config.steps)

    def step(self, group: list[Batch]) -> None:
        """Learn from the batches of one step, by the mean loss over all their labels on all ranks.

        Each part of an objective is a mean over its own labels, so that neither ranks nor accumulation change it.
        """
        config, progress, accelerator = self.config, self.progress, self.accelerator
        lr = learning_rate(config, progress.step, self.epoch_steps, self.total_steps)
        for params in self.state.optimizer.param_groups:
            params["lr"] = lr
        seed_network(config.seed, progress.step, self.share["rank"])

        sizes = [self.vector(self.task.size(batch)) for batch in group]
        labels = accelerator.reduce(torch.stack(sizes).sum(dim=0))
        loss_sum = torch.zeros_like(labels)
        for number, (batch, size) in enumerate(zip(group, sizes, strict=True), start=1):
            last = number == len(group)
            with nullcontext() if last else accelerator.no_sync(self.objective):
                loss = self.loss(move(batch, accelerator.device)).reshape(-1)
                weights = size * self.share["world"] / labels.clamp(min=1)  # DDP takes the mean over ranks
                accelerator.backward((loss * weights).sum())
            loss_sum += loss.detach() * size
        if config.optimizer.clip_norm:
            accelerator.clip_grad_norm_(self.state.model.parameters(), config.optimizer.clip_norm)
        self.state.optimizer.step()
        self.state.optimizer.zero_grad()
        progress.step += 1
        progress.batch += len(group)
        if config.ema and self.state.average:
            self.state.average.update(self.state.model, progress.step)

        asked = self.vector(int(self.stop.asked))
        values = Later(torch.cat([labels, accelerator.reduce(torch.cat([loss_sum, asked]))]))
        self.flush_pending()  # reads the step before this one, so that the device need not wait for the processor
        self.pending = Report(progress.step, lr, values)

    def vector(self, values: int | tuple[int, ...]) -> Float[Tensor, " values"]:
        """Return numbers on the device; `torch.tensor` would wait there for all that is under way."""
        numbers = values if isinstance(values, tuple) else (values,)
        return torch.cat([torch.full((1,), float(number), device=self.accelerator.device) for number in numbers])

    def flush_pending(self) -> None:
        """Read what came of the pending step. Raises GlocalError where its loss is not finite."""
        if self.pending is None:
            return
        step, lr, values = self.pending
        self.pending = None
        *numbers, asked = values.read()
        counts, sums = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
        loss = sum(part / max(count, 1.0) for part, count in zip(sums, counts, strict=True))
        if not math.isfinite(loss):
            raise GlocalError(
                f"step {step}: the loss is {loss} at learning rate {lr:.3g}; try a lower train.lr, a longer "
                f"warm-up (train.schedule), train.optimizer.clip_norm 1 or train.precision float32; "
                f"{self.run.last.parent} holds what was saved before"
            )
        progress = self.progress
        progress.loss_sum += loss * counts[0]
        progress.labels += counts[0]
        self.stopping = self.stopping or asked > 0
        if step % LOG_EVERY == 0:
            row = {"step": step, "epoch": progress.epoch + 1, "train_loss": loss, "lr": lr}
            self.log.write(row | self.clock.timing())
        self.log.advance(step, self.total_steps, f"epoch {progress.epoch + 1}", loss)

    def validate(self, epoch_ends: bool) -> None:
        """Measure, log, and keep the weights if they are the best so far, or the average in the end."""
        config, progress = self.config, self.progress
        self.state.check_finite()
        if epoch_ends:
            progress.epoch += 1
            progress.batch = 0
        if config.average:
            self.state.average_epochs(config.average)
        epoch = round(progress.step / self.epoch_steps, 2)
        row = {"step": progress.step, "epoch": epoch, "train_loss": progress.loss_sum / max(progress.labels, 1.0)}
        row |= self.clock.timing()
        batches = self.data.eval_batches("val", config.batch_size, **self.share)
        metrics = evaluate(self.state.evaluated, self.task, batches, self.accelerator)
        sample = self.sample_fn(self.state.evaluated) if self.sample_fn else ""
        scalars = {name: value for name, value in metrics.items() if isinstance(value, float)}
        row |= {f"val_{name}": value for name, value in scalars.items()} | {"seconds": self.clock.seconds()}
        self.log.write(row)

        progress.validated, progress.loss_sum, progress.labels = progress.step, 0.0, 0.0
        score = self.task.score(metrics)
        first = progress.best == -math.inf  # what is kept first may have a score that is no number
        if first or score > progress.best or (config.average and progress.epoch == progress.epochs):
            progress.best, progress.stale = score if math.isfinite(score) else -math.inf, 0
            if self.accelerator.is_main_process:
                best = {"epoch": epoch, "step": progress.step, **scalars}
                write_checkpoint(self.run.best, best | {"model": self.state.evaluated.state_dict()})
        else:
            progress.stale += 1
        if epoch_ends and progress.epochs is None:
            self.fix_epochs()
        self.log.say(
            f"epoch {epoch:g}/{progress.epochs}  loss {row['train_loss']:.4f}  val "
            + "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
            + f"  {row['seconds']:.0f} s  {row['labels_per_second']:.0f} labels/s"
        )
        if sample:
            self.log.say(sample)

    def fix_epochs(self) -> None:
        """Count the epochs that fit into the budget of minutes, by the first; the first rank's clock counts."""
        assert self.config.minutes is not None
        epochs = max(1, int(self.config.minutes * 60 / self.clock.seconds()))
        self.progress.epochs = broadcast_from_main(epochs)

    def save(self) -> None:
        """Write last.pt."""
        self.flush_pending()
        self.state.check_finite()
        if self.accelerator.is_main_process:
            self.log.flush()
            self.progress.logged = self.log.logged
            self.clock.keep()
            self.state.save(self.run.last)


def check_data(data: Data, batch_size: int, world: int) -> None:
    """Raise GlocalError, before anything is learnt, where there is nothing to train or to validate on."""
    data.train_batches(batch_size, 0, world=world)
    if not len(data.eval_batches("val", batch_size)):
        raise GlocalError(
            "the data has no validation split to choose the best weights by; raise data.val_fraction, or "
            "data.max_length where every example of it is longer"
        )


def grouped(batches: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches; the last may be shorter."""
    iterator = iter(batches)
    while group := list(islice(iterator, size)):
        yield group


def seed_network(seed: int, step: int, rank: int) -> None:
    """Fix the network's draws (dropout, drop path) of one step, so that no generator need be saved."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]))

"""The loop: batches → loss → gradients → step; after each epoch, or sooner, validation and a checkpoint.

Read `Trainer.train` first. Under `torchrun --nproc-per-node N`, N processes share every step (DDP by accelerate).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.training.checkpoint import TrainState, write_checkpoint
from glocal.training.clock import Clock
from glocal.training.compiling import Compiled, choose_compile
from glocal.training.config import TrainConfig
from glocal.training.devices import AsyncCopy, broadcast_from_main
from glocal.training.evaluation import evaluate, move
from glocal.training.interfaces import Batch, Data, Metrics, Objective, SampleFn
from glocal.training.log import Log
from glocal.training.optimizer import learning_rate, warmup_steps
from glocal.training.run import RunFolder
from glocal.training.signals import Interrupted, StopRequest
from glocal.training.step import backward, grouped, seed_network
from glocal.training.tuning import set_training

LOG_EVERY = 20
"""Steps between two rows of metrics.jsonl."""


class PendingStep(NamedTuple):
    """A step that the device may not have finished yet."""

    step: int
    lr: float
    values: AsyncCopy
    """Numbers summed over all processes: labels counted by each part of the objective, the loss of each part, and
    requests to stop."""


@dataclass
class Trainer:
    """The loop of one call of `fit`."""

    objective: nn.Module
    """The module that computes the loss, in DDP where there are several processes."""
    task: Objective
    """The task's objective, which `objective` calls; it has the metrics and the score."""
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
        self.share = {"rank": self.accelerator.process_index, "world_size": self.accelerator.num_processes}
        self.pending: PendingStep | None = None
        self.stopping = False
        self.clock = Clock(self.progress)
        batches = self.data.train_batches(self.config.batch_size, 0, world_size=self.share["world_size"])
        self.epoch_steps = math.ceil(len(batches) / self.config.accumulate)
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
        """Steps of the whole run; inf for a budget of minutes until the first epoch has been timed."""
        if self.config.steps:
            return float(self.config.steps)
        return math.inf if self.progress.epochs is None else float(self.progress.epochs * self.epoch_steps)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or `train.patience` has run out."""
        done = self.progress.epochs is not None and self.progress.epoch >= self.progress.epochs
        return done or 0 < self.config.patience <= self.progress.since_best

    def train(self) -> None:
        """Train and validate in turn until the run is finished."""
        if self.share["world_size"] > 2 and not self.finished:
            self.order_ddp_buckets()
        while not self.finished:
            epoch_ends = self.train_until_validation()
            if self.stopping:
                self.save()
                raise Interrupted(f"stopped at step {self.progress.step}; continue with --resume {self.run}")
            self.validate(epoch_ends)
            self.save()

    def order_ddp_buckets(self) -> None:
        """Compute one gradient and discard it, so that a resumed run adds up gradients in the order of other runs.

        DDP reorders its buckets after the first gradient, and the last bit of a sum over three or more processes
        depends on that order. In evaluation mode, the pass changes no statistics and draws no random numbers.
        """
        self.state.model.eval()
        self.accelerator.backward(self.objective(move(self.first_batch(), self.accelerator.device)).sum())
        self.state.optimizer.zero_grad()

    def first_batch(self) -> Batch:
        """Return the first batch of the first epoch, also in a run that resumes later."""
        return next(iter(self.data.train_batches(self.config.batch_size, 0, **self.share)))

    def train_until_validation(self) -> bool:
        """Take the steps up to the next validation or a request to stop; return whether the epoch ends there."""
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
        self.finish_pending_step()
        return progress.step in (end, config.steps)

    def step(self, batches: list[Batch]) -> None:
        """Update the weights by the gradient of the mean loss of these batches and those of the other processes."""
        config, progress, state = self.config, self.progress, self.state
        lr = learning_rate(config, progress.step, self.epoch_steps, self.total_steps)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        seed_network(config.seed, progress.step, self.share["rank"])
        labels, losses = backward(self.loss, self.objective, self.task, batches, self.accelerator)
        if config.optimizer.clip_norm:
            self.accelerator.clip_grad_norm_(state.model.parameters(), config.optimizer.clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad()
        progress.step += 1
        progress.batch += len(batches)
        if config.ema and state.average:
            state.average.update(state.model, progress.step)

        stops = torch.full((1,), float(self.stop.requested), device=losses.device)
        values = AsyncCopy(torch.cat([labels, self.accelerator.reduce(torch.cat([losses, stops]))]))
        self.finish_pending_step()  # the step before this one, so that a GPU does not wait for the CPU
        self.pending = PendingStep(progress.step, lr, values)

    def finish_pending_step(self) -> None:
        """Read the numbers of the pending step and log them. Raises GlocalError where its loss is not finite."""
        if self.pending is None:
            return
        step, lr, values = self.pending
        self.pending = None
        *numbers, stops = values.read()
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
        self.stopping = self.stopping or stops > 0
        if step % LOG_EVERY == 0:
            row = {"step": step, "epoch": progress.epoch + 1, "train_loss": loss, "lr": lr}
            self.log.write(row | self.clock.timing())
        self.log.advance(step, self.total_steps, f"epoch {progress.epoch + 1}", loss)

    def validate(self, epoch_ends: bool) -> None:
        """Measure the weights on the validation split, log the metrics, and keep the weights if they are the best."""
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
        self.keep_best(self.task.score(metrics), {"epoch": epoch, "step": progress.step, **scalars})
        if epoch_ends and progress.epochs is None:
            self.set_epochs()
        self.log.say(
            f"epoch {epoch:g}/{progress.epochs}  loss {row['train_loss']:.4f}  val "
            + "  ".join(f"{name} {value:.4g}" for name, value in scalars.items())
            + f"  {row['seconds']:.0f} s  {row['labels_per_second']:.0f} labels/s"
        )
        if sample:
            self.log.say(sample)

    def keep_best(self, score: float, metrics: Metrics) -> None:
        """Write best.pt if the score is the highest so far; with `train.average`, also after the last epoch."""
        progress = self.progress
        first = progress.best == -math.inf  # the weights of the first score are kept even if it is NaN
        if first or score > progress.best or (self.config.average and progress.epoch == progress.epochs):
            progress.best, progress.since_best = score if math.isfinite(score) else -math.inf, 0
            if self.accelerator.is_main_process:
                write_checkpoint(self.run.best, metrics | {"model": self.state.evaluated.state_dict()})
        else:
            progress.since_best += 1

    def set_epochs(self) -> None:
        """Set the number of epochs that fit into the budget of minutes, given the main process's time for the first."""
        assert self.config.minutes is not None
        epochs = max(1, int(self.config.minutes * 60 / self.clock.seconds()))
        self.progress.epochs = broadcast_from_main(epochs)

    def save(self) -> None:
        """Write last.pt."""
        self.finish_pending_step()
        self.state.check_finite()
        if self.accelerator.is_main_process:
            self.log.flush()
            self.progress.logged = self.log.logged
            self.clock.keep()
            self.state.save(self.run.last)

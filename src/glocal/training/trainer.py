"""The loop: batches → loss → gradients → step; validation and a checkpoint each epoch, or every `validate_every` steps.

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
from glocal.training.run import Row, RunFolder
from glocal.training.signals import Interrupted, StopRequest
from glocal.training.step import backward, grouped, seed_dropout
from glocal.training.tuning import set_training

LOG_EVERY = 20
"""Steps between two rows of metrics.jsonl."""


class PendingStep(NamedTuple):
    """A step that the device may not have finished yet."""

    step: int
    lr: float
    values: AsyncCopy
    """Two vectors, summed over all processes: the number of labels of each loss term; and the summed loss of each term,
    followed by the number of processes that were asked to stop. Most objectives have one loss term; BERT's pre-training
    has two."""


@dataclass
class Trainer:
    """The loop of one call of `fit`."""

    loss_module: nn.Module
    """The module that computes the loss, wrapped in DDP if there are several processes."""
    objective: Objective
    """The task's objective, which `loss_module` calls; it has the metrics and the score."""
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
        self.shard = {"rank": self.accelerator.process_index, "world_size": self.accelerator.num_processes}
        self.pending: PendingStep | None = None
        self.stopping = False
        self.clock = Clock(self.progress)
        batches = self.data.train_batches(self.config.batch_size, 0, world_size=self.shard["world_size"])
        self.steps_per_epoch = math.ceil(len(batches) / self.config.accumulate)
        if self.config.steps:
            self.progress.total_epochs = math.ceil(self.config.steps / self.steps_per_epoch)
        warmup = warmup_steps(self.config, self.steps_per_epoch)
        if warmup > self.total_steps:
            self.log.print(
                f"warning: the warm-up of {warmup:g} steps (train.schedule) is longer than the run of "
                f"{self.total_steps:g}: the learning rate will not reach train.lr"
            )
        self.loss_fn: Callable[[Batch], Tensor] = self.build_loss_fn()

    def train(self) -> None:
        """Train and validate in turn until the run is finished."""
        if self.shard["world_size"] > 2 and not self.finished:
            self.order_ddp_buckets()
        while not self.finished:
            epoch_ends = self.train_until_validation()
            if self.stopping:
                self.save()
                raise Interrupted(f"stopped at step {self.progress.step}; continue with --resume {self.run}")
            self.validate(epoch_ends)
            self.save()

    def build_loss_fn(self) -> Callable[[Batch], Tensor]:
        """Return the loss module, compiled if `train.compile` says so."""
        steps = None if self.config.minutes else self.total_steps
        compiles, reason = choose_compile(self.config, self.state.model, self.accelerator.device, steps)
        if reason:
            self.log.print(reason)
        return Compiled(self.loss_module, self.objective, self.first_batch()) if compiles else self.loss_module

    @property
    def total_steps(self) -> float:
        """Steps of the whole run; inf for a budget of minutes until the first epoch has been timed."""
        if self.config.steps:
            return float(self.config.steps)
        total_epochs = self.progress.total_epochs
        return math.inf if total_epochs is None else float(total_epochs * self.steps_per_epoch)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or `train.patience` has run out."""
        done = self.progress.total_epochs is not None and self.progress.epoch >= self.progress.total_epochs
        return done or 0 < self.config.patience <= self.progress.since_best

    def order_ddp_buckets(self) -> None:
        """Compute one gradient and discard it, so that a resumed run sums gradients in the order of an unstopped run.

        DDP reorders its buckets after the first gradient, and the last bit of a sum over three or more processes
        depends on that order. In evaluation mode, the pass changes no statistics and draws no random numbers.
        """
        self.state.model.eval()
        self.accelerator.backward(self.loss_module(move(self.first_batch(), self.accelerator.device)).sum())
        self.state.optimizer.zero_grad()

    def first_batch(self) -> Batch:
        """Return the first batch of the first epoch, even if the run resumes from a later one."""
        return next(iter(self.data.train_batches(self.config.batch_size, 0, **self.shard)))

    def train_until_validation(self) -> bool:
        """Train until the next validation or a request to stop; return whether the epoch or the run ends there."""
        config, progress = self.config, self.progress
        set_training(self.state.model, config)
        self.clock.start_lap()
        batches = self.data.train_batches(config.batch_size, progress.epoch, start=progress.batches, **self.shard)
        last_step = progress.step + math.ceil(len(batches) / config.accumulate)
        goal = min(last_step, config.steps or last_step)  # the step after which to validate
        if config.validate_every:
            goal = min(goal, progress.validated_step + config.validate_every)
        for micro_batches in islice(grouped(batches, config.accumulate), goal - progress.step):
            self.step(micro_batches)
            if config.save_every and progress.step % config.save_every == 0:
                self.save()
            if self.stopping:  # set from a sum over all processes, so that all of them stop at the same step
                break
        self.finish_pending_step()
        return progress.step in (last_step, config.steps)

    def step(self, micro_batches: list[Batch]) -> None:
        """Update the weights by the gradient of the mean loss over these batches and those of all other processes."""
        config, progress, state = self.config, self.progress, self.state
        lr = learning_rate(config, progress.step, self.steps_per_epoch, self.total_steps)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        seed_dropout(config.seed, progress.step, self.shard["rank"], self.accelerator.device)
        label_counts, loss_sums = backward(
            self.loss_fn, self.loss_module, self.objective, micro_batches, self.accelerator
        )
        if config.optimizer.clip_norm:
            self.accelerator.clip_grad_norm_(state.model.parameters(), config.optimizer.clip_norm)
        state.optimizer.step()
        state.optimizer.zero_grad()
        progress.step += 1
        progress.batches += len(micro_batches)
        if config.ema and state.averaged_model:
            state.averaged_model.update(state.model, progress.step)

        stop_flag = torch.full((1,), float(self.stop.requested), device=loss_sums.device)
        values = AsyncCopy(label_counts, self.accelerator.reduce(torch.cat([loss_sums, stop_flag])))
        self.finish_pending_step()  # the step before this one, so that a GPU does not wait for the CPU
        self.pending = PendingStep(progress.step, lr, values)

    def finish_pending_step(self) -> None:
        """Read the loss of the pending step and requests to stop, and log every 20th step.

        Raises GlocalError if the loss is not finite.
        """
        if self.pending is None:
            return
        step, lr, values = self.pending
        self.pending = None
        label_counts, (*loss_sums, stop_count) = values.read()
        loss = sum(term / max(count, 1.0) for term, count in zip(loss_sums, label_counts, strict=True))
        if not math.isfinite(loss):
            raise GlocalError(
                f"step {step}: the loss is {loss} at learning rate {lr:.3g}; try a lower train.lr, a longer "
                f"warm-up (train.schedule), train.optimizer.clip_norm 1 or train.precision float32; "
                f"{self.run.last.parent} holds what was saved before"
            )
        progress = self.progress
        # for the mean loss since the last validation: a step's weight is the number of labels of its first loss term
        progress.loss_sum += loss * label_counts[0]
        progress.label_count += label_counts[0]
        self.stopping = self.stopping or stop_count > 0
        if step % LOG_EVERY == 0:
            row = {"step": step, "epoch": progress.epoch + 1, "train_loss": loss, "lr": lr}
            self.log.write(row | self.clock.timing())
        self.log.advance(step, self.total_steps, f"epoch {progress.epoch + 1}", loss)

    def validate(self, epoch_ends: bool) -> None:
        """Evaluate the model on the validation split, log the metrics, and save the weights if they are the best."""
        config, progress = self.config, self.progress
        self.state.check_finite()
        if epoch_ends:
            progress.epoch += 1
            progress.batches = 0
        if config.average:
            self.state.average_epochs(config.average)
        timing = self.clock.timing()  # before the validation, so that the speed is that of training alone
        batches = self.data.eval_batches("val", config.batch_size, **self.shard)
        metrics = evaluate(self.state.eval_model, self.objective, batches, self.accelerator)
        sample = self.sample_fn(self.state.eval_model) if self.sample_fn else ""
        scalars = {name: value for name, value in metrics.items() if isinstance(value, float)}
        epoch = round(progress.step / self.steps_per_epoch, 2)
        row: Row = {
            "step": progress.step,
            "epoch": epoch,
            "train_loss": progress.loss_sum / max(progress.label_count, 1.0),
            "labels_per_second": timing["labels_per_second"],
            "seconds": self.clock.seconds(),
            **{f"val_{name}": value for name, value in scalars.items()},
        }
        self.log.write(row)
        progress.validated_step, progress.loss_sum, progress.label_count = progress.step, 0.0, 0.0
        self.keep_best(self.objective.score(metrics), {"epoch": epoch, "step": progress.step, **scalars})
        if epoch_ends and progress.total_epochs is None:
            self.set_total_epochs()
        self.print_validation(row, sample)

    def print_validation(self, row: Row, sample: str) -> None:
        """Print a row of metrics.jsonl that was written after a validation, and a sample of the model's output."""
        scores = [f"{name.removeprefix('val_')} {row[name]:.4g}" for name in row if name.startswith("val_")]
        self.log.print(
            f"epoch {row['epoch']:g}/{self.progress.total_epochs}  loss {row['train_loss']:.4f}  val "
            f"{'  '.join(scores)}  {row['seconds']:.0f} s  {row['labels_per_second']:.0f} labels/s"
        )
        if sample:
            self.log.print(sample)

    def keep_best(self, score: float, metrics: Metrics) -> None:
        """Write best.pt if the score is the highest so far.

        With `train.average`, best.pt is always written after the last epoch, since the average of the epochs is
        complete only then.
        """
        progress = self.progress
        none_finite = progress.best == -math.inf  # until a score is finite, every validation's weights are kept
        averaged_all = self.config.average and progress.epoch == progress.total_epochs
        if none_finite or score > progress.best or averaged_all:
            progress.best, progress.since_best = score if math.isfinite(score) else -math.inf, 0
            if self.accelerator.is_main_process:
                write_checkpoint(self.run.best, metrics | {"model": self.state.eval_model.state_dict()})
        else:
            progress.since_best += 1

    def set_total_epochs(self) -> None:
        """Set the number of epochs that fit into the budget of minutes, given the main process's time for the first."""
        assert self.config.minutes is not None
        epochs = max(1, int(self.config.minutes * 60 / self.clock.seconds()))
        self.progress.total_epochs = broadcast_from_main(epochs)

    def save(self) -> None:
        """Write last.pt."""
        self.finish_pending_step()
        self.state.check_finite()
        if self.accelerator.is_main_process:
            self.log.flush()
            self.progress.log_bytes = self.log.log_bytes
            self.clock.record()
            self.state.save(self.run.last)

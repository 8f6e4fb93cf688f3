"""The speed of training on this machine, by a few steps of a copy of the model."""

import copy
import time
from dataclasses import dataclass
from itertools import chain, count, islice
from math import ceil
from statistics import median

from torch import nn

from glocal.ops import choices
from glocal.training.config import TrainConfig
from glocal.training.devices import open_accelerator
from glocal.training.evaluation import evaluate, move
from glocal.training.interfaces import Data, Objective
from glocal.training.optimizer import build_optimizer
from glocal.training.step import LossModule, grouped
from glocal.training.tuning import freeze, set_training


@dataclass(frozen=True)
class Pace:
    """The speed of training, in one process."""

    step: float
    """Seconds of an optimizer step, its data included."""
    epoch: float
    """Seconds of an epoch's steps and of the validation after it."""


def measure_pace(model: nn.Module, objective: Objective, data: Data, config: TrainConfig, seconds: float = 1.0) -> Pace:
    """Train a copy of `model` for about `seconds`, validate one batch, and return the pace.

    The first step, and steps in which an operation of `glocal.ops` is timed, are slower than others. They count only
    where no other step ends within four times the seconds.
    """
    accelerator = open_accelerator(config.precision, getattr(model, "has_unused_parameters", False))
    model = copy.deepcopy(model).to(accelerator.device)
    objective.to(accelerator.device)
    freeze(model, config)
    loss_module, optimizer = accelerator.prepare(
        LossModule(objective, model), build_optimizer(model, config.lr, config.optimizer)
    )
    set_training(model, config)
    epochs = (data.train_batches(config.batch_size, epoch) for epoch in count())
    end = time.perf_counter() + seconds
    before = time.perf_counter()
    laps: list[float] = []
    steady: list[float] = []
    known = len(choices())
    for micro_batches in grouped(chain.from_iterable(epochs), config.accumulate):
        for batch in micro_batches:
            loss = loss_module(move(batch, accelerator.device)).sum()
            accelerator.backward(loss / len(micro_batches))
        if config.optimizer.clip_norm:
            accelerator.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the device
        now = time.perf_counter()
        laps.append(now - before)
        if len(laps) > 1 and len(choices()) == known:
            steady.append(laps[-1])
        known = len(choices())
        before = now
        if now >= end and (steady or now >= end + 3 * seconds):
            break
    step = median(steady or laps[1:] or laps)

    batches = data.eval_batches("val", config.batch_size)
    first = list(islice(batches, 1))
    evaluate(model, objective, first, accelerator)  # prepares kernels, as the first step did
    before = time.perf_counter()
    evaluate(model, objective, first, accelerator)
    validation = (time.perf_counter() - before) * len(batches)
    steps = ceil(len(data.train_batches(config.batch_size, 0)) / config.accumulate)
    return Pace(step, step * steps + validation)

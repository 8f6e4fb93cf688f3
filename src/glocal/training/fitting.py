"""A model, a task and data to a finished run: what is prepared before the loop, and what is kept after it."""

import json
from collections.abc import Iterable
from dataclasses import asdict

from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.training.checkpoint import FREE, Progress, TrainState, read_best
from glocal.training.compiling import Compiled
from glocal.training.config import TrainConfig
from glocal.training.devices import open_accelerator
from glocal.training.interfaces import Data, Objective, SampleFn
from glocal.training.log import Log
from glocal.training.optimizer import build_optimizer
from glocal.training.run import Row, RunFolder, flat, provenance
from glocal.training.signals import StopRequest
from glocal.training.step import LossModule
from glocal.training.trainer import Trainer
from glocal.training.tuning import freeze, save_adapter


def fit(
    model: nn.Module,
    objective: Objective,
    data: Data,
    config: TrainConfig,
    run: RunFolder,
    resume: bool = False,
    sample_fn: SampleFn | None = None,
) -> list[Row]:
    """Train `model` in place, load its best weights (or their average), and return the rows of `run.metrics`.

    With LoRA, the trained matrices are saved in `run.adapter` and merged into the model's weights.

    Args:
        model: the network, which keeps its parameters in float32.
        objective: the loss and the metrics.
        data: batches to train and to validate on.
        config: a recipe's section `train`.
        run: the folder of the checkpoints, the metrics and the report.
        resume: continue from the run's last checkpoint, if there is one. The resulting weights are the same as if the
            run had never been stopped.
        sample_fn: returns a line for the log, given the model that was validated; the first process calls it.

    Raises GlocalError if a value is unusable, the data has nothing to train or to validate on, the loss is not
    finite, or the disk is full; Interrupted after SIGTERM or Ctrl-C, once everything is saved.
    """
    config.check()
    accelerator = open_accelerator(config.precision, getattr(model, "has_unused_parameters", False))
    is_main, precision = accelerator.is_main_process, accelerator.mixed_precision.replace("no", "float32")
    check_data(data, config.batch_size, accelerator.num_processes)
    model.to(accelerator.device)
    objective.to(accelerator.device)
    parameters = count(model.parameters())
    adapter = freeze(model, config)
    trained = count(weight for weight in model.parameters() if weight.requires_grad)
    loss_module, state = prepare(model, objective, config, run, accelerator)
    if resume and run.last.exists():
        state.load(run.last)
        if state.progress.validated_step:
            read_best(run.best, model)  # raises where it is lost: the run could not end as it would have
    progress = state.progress

    with (
        StopRequest(alone=accelerator.num_processes == 1) as stop,
        Log(run, is_main, progress.step, progress.log_bytes) as log,
    ):
        log.print(f"training {trained:,} of {parameters:,} weights on {accelerator.device.type} in {precision}")
        sample = sample_fn if is_main else None
        trainer = Trainer(loss_module, objective, data, config, run, state, accelerator, log, stop, sample)
        trainer.train()

    accelerator.wait_for_everyone()
    best = read_best(run.best, model)
    model.load_state_dict(best.pop("model"))
    if adapter is not None:
        if is_main:
            run.update_report(adapter_bytes=save_adapter(adapter, run.adapter))
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
            compiled=isinstance(trainer.loss_fn, Compiled),
            processes=accelerator.num_processes,
            **provenance(),
        )
    return run.history()


def check_data(data: Data, batch_size: int, world_size: int) -> None:
    """Raise GlocalError if the data has no batch to train on or none to validate on."""
    data.train_batches(batch_size, 0, world_size=world_size)
    if not len(data.eval_batches("val", batch_size)):
        raise GlocalError(
            "the data has no validation split to choose the best weights by; raise data.val_fraction, or "
            "data.max_length where every example of it is longer"
        )


def count(weights: Iterable[Tensor]) -> int:
    """Return how many numbers some weights hold."""
    return sum(weight.numel() for weight in weights)


def prepare(
    model: nn.Module, objective: Objective, config: TrainConfig, run: RunFolder, accelerator: Accelerator
) -> tuple[nn.Module, TrainState]:
    """Return the loss as a module that the processes share, and the state of a run that has not begun."""
    averaged_model = ModelEmaV3(model, config.ema, use_warmup=True) if config.ema or config.average else None
    loss_module, optimizer = accelerator.prepare(
        LossModule(objective, model), build_optimizer(model, config.lr, config.optimizer)
    )
    progress = Progress(total_epochs=config.epochs, processes=accelerator.num_processes)
    settings = run.settings() | flat(json.loads(json.dumps({"train": asdict(config)})))
    settings = {name: value for name, value in settings.items() if name not in FREE}
    return loss_module, TrainState(model, averaged_model, optimizer, progress, settings)

"""Training of any model on any task and data: `trainer.py` holds the loop."""

from glocal.training.config import LoRAConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from glocal.training.devices import open_accelerator, this_process
from glocal.training.evaluation import evaluate
from glocal.training.fitting import fit
from glocal.training.run import RunFolder
from glocal.training.signals import Interrupted

__all__ = [
    "Interrupted",
    "LoRAConfig",
    "OptimizerConfig",
    "RunFolder",
    "ScheduleConfig",
    "TrainConfig",
    "evaluate",
    "fit",
    "open_accelerator",
    "this_process",
]

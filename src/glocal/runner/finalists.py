"""The training of a search's best candidates: each is trained from scratch, by the recipe's section `train`.

Jamieson and Talwalkar 2016, *Non-stochastic Best Arm Identification and Hyperparameter Optimization*
https://arxiv.org/abs/1502.07943   (`search.halving`: most candidates are trained for a short time only)
"""

from dataclasses import dataclass, replace
from statistics import fmean

from glocal.data.tokenizer import Tokenizer
from glocal.files import write_text
from glocal.models.config import SHAPE
from glocal.recipes import Recipe
from glocal.runner.run import print_on_main, run_recipe
from glocal.search.config import SearchConfig
from glocal.search.stages import EvaluatedPath, save_arch
from glocal.training import RunFolder, TrainConfig, this_process
from glocal.training.interfaces import Metrics, ScoredObjective


@dataclass(frozen=True)
class Finalist:
    """A candidate that was trained from scratch for the full length."""

    candidate: EvaluatedPath
    folder: RunFolder
    """The run folder of its first training."""
    scores: tuple[float, ...]
    """The task's score on the validation split after each training."""

    @property
    def score(self) -> float:
        """The mean of the scores."""
        return fmean(self.scores)


@dataclass(frozen=True)
class Finals:
    """The training of a search's finalists; a finished training is not repeated."""

    recipe: Recipe
    run: RunFolder
    config: object
    """The config of the model that the search started from."""
    task: ScoredObjective

    def train(self, ranking: list[EvaluatedPath]) -> list[Finalist]:
        """Train the best of a ranking, with the recipe's rounds of halving, and return the remaining finalists."""
        search = self.recipe.search
        assert search is not None
        left = list(enumerate(ranking[: search.finalists], start=1))  # ranks name the folders
        for number in range(search.halving):
            share = 0.5 ** (search.halving - number)
            scores = {rank: self.train_one(f"round-{number + 1}/{rank}", candidate, share) for rank, candidate in left}
            left = sorted(left, key=lambda each: -scores[each[0]])[: max(len(left) // 2, 1)]
            print_on_main(f"round {number + 1}: {len(left)} of {len(scores)} finalists go on")
        finalists = []
        for number, (_, candidate) in enumerate(left, start=1):
            names = [f"finalist-{number}" + (f"-seed-{seed}" if seed else "") for seed in range(search.seeds)]
            by_seed = tuple(self.train_one(name, candidate, seed=seed) for seed, name in enumerate(names))
            finalists.append(Finalist(candidate, RunFolder(self.run.path / names[0]), by_seed))
        return finalists

    def train_one(self, name: str, candidate: EvaluatedPath, share: float = 1.0, seed: int = 0) -> float:
        """Train a candidate in a folder of this name, and return its score on the validation split.

        `share` is the share of the recipe's length of training; `seed` is added to the recipe's seed.
        """
        folder = RunFolder(self.run.path / name)
        fields = {name: value for name, value in self.recipe.model.items() if name not in SHAPE}
        fields |= {"arch": str(folder.path / "arch.json")}
        length = shortened(self.recipe.train, share)
        train = replace(length, seed=length.seed + seed)
        again = replace(self.recipe, name=folder.path.name, model=fields, train=train, search=SearchConfig())
        begun = folder.recipe.exists()
        this_process().wait_for_everyone()  # each process has checked for the folder before one creates it
        if not begun:
            folder = RunFolder.create(folder.path, again.to_yaml())
        if not folder.finished:
            if this_process().is_main_process:
                save_arch(folder.path / "arch.json", self.config, candidate.path)
                write_text(folder.splits, self.run.splits.read_text())
                if Tokenizer.is_in(self.run.path):
                    Tokenizer.load(self.run.path).save(folder.path)
            this_process().wait_for_everyone()
            with folder.writing():
                run_recipe(again, folder, resume=True)
        return self.task.score(validation(folder))


def validation(folder: RunFolder) -> Metrics:
    """Return the metrics of a finished training on the validation split."""
    metrics: Metrics = folder.read_report()["val"]
    return metrics


def shortened(train: TrainConfig, share: float) -> TrainConfig:
    """Return a training with a share of the length and of the warm-up; its length is one epoch or one step at least."""
    if share == 1.0:
        return train
    schedule = replace(
        train.schedule,
        warmup_epochs=train.schedule.warmup_epochs * share,
        warmup_steps=round(train.schedule.warmup_steps * share),
    )
    epochs = train.epochs and max(round(train.epochs * share), 1)
    steps = train.steps and max(round(train.steps * share), 1)
    minutes = train.minutes and train.minutes * share
    average = min(train.average, epochs or train.average)
    return replace(train, epochs=epochs, steps=steps, minutes=minutes, schedule=schedule, average=average)

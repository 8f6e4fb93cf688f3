"""How well a search ranks architectures: its ranking beside the ranking of models that are trained from scratch.

    python benchmarks/ranking.py digits                      # 32 architectures × 3 seeds, a supernet, cheap scores
    python benchmarks/ranking.py characters --data FILE      # the same for a small GPT; FILE is any text
    python benchmarks/ranking.py digits --archs 8 --seeds 1  # quicker, and rougher
    python benchmarks/ranking.py digits --name fair --search.sampling fair    # another supernet, the same trainings

Architectures are drawn at random from the full space of a recipe, within its budget: they cost nearly the same.
Each is trained from scratch with several seeds. `results/ranking-DATA-trainings.csv` keeps every training, so that the
benchmark resumes, and another supernet is compared with the same trainings. `--jobs 2` trains two models at
once, each with its share of the threads. Runs are in `--folder`. Writes results/ranking-DATA-NAME-PROCESSOR.csv.

Each ranking is compared with the mean score over the seeds:

    tau      Kendall's τ, with the 5 and 95 % quantiles over 400 resampled sets of architectures
    regret   how much worse the best of its first five is than the best of all, in the unit of the score

    ceiling      the ranking by one seed, compared with the others: no score of an architecture can exceed it by much
    supernet     scores with the weights of a supernet, which is trained as in a search in one stage (`flat`)
    parameters, macs   the larger, the better
    synflow      Σ |θ · ∂R/∂θ| of the untrained model, where R is the sum of the logits for weights |θ|
                 (after Tanaka et al. 2020, https://arxiv.org/abs/2006.05467; norms and softmax are left as they are)
    tenth        minus the validation loss after a tenth of the training, as the mean over the seeds
"""

import argparse
import hashlib
import json
import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from scipy.stats import kendalltau
from timing import RESULTS, append, read, write
from torch import nn

from glocal.models import Model
from glocal.models.cost import Example
from glocal.recipes import Recipe, load_recipe
from glocal.runner.finalists import Finals
from glocal.runner.model_source import Trainable, prepare
from glocal.search.budget import Architecture
from glocal.search.cost import cost_table
from glocal.search.evaluator import Evaluator
from glocal.search.space import Space, full_space
from glocal.search.stages import EvaluatedPath, Search, twice_as_long
from glocal.training import RunFolder, open_accelerator
from glocal.training.interfaces import ScoredObjective

COLUMNS = (
    *("what", "tau", "tau_5", "tau_95", "regret", "score", "archs", "seeds"),
    *("command", "commit", "machine", "torch_version"),
)
TRAINING = ("key", "arch", "seed", "score", "tenth", "parameters", "macs", "seconds")
FIRST = 5
"""The first candidates of a ranking, of which the best one counts for the regret."""
RESAMPLES = 400

RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "digits": ("glit-digits", {"data.val_fraction": 0.35, "data.test_fraction": 0.0, "train.precision": "float32"}),
    "characters": ("search-gpt-shakespeare-char", {"train.steps": 600, "train.validate_every": 60}),
}
"""Recipes of which a training takes a minute or less, with fields for this purpose: many images to validate on, and a
validation after a tenth of the steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare rankings of architectures with trained models.")
    parser.add_argument("data", choices=RECIPES)
    parser.add_argument("--data", dest="source", help="the text of characters")
    parser.add_argument("--archs", type=int, default=32, help="architectures (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once (default: %(default)s)")
    parser.add_argument("--name", default="default", help="name of the supernet, whose fields follow")
    parser.add_argument("--folder", type=Path, default=Path("runs/ranking"), help="where runs are kept")
    args, fields = parser.parse_known_args()
    benchmark = Benchmark.open(args.data, args.source, fields, args.folder)
    archs = benchmark.draw(args.archs)
    trainings = benchmark.train(archs, args.seeds, args.jobs)
    scores = np.array([[trainings[arch, seed]["score"] for seed in range(args.seeds)] for arch in range(len(archs))])
    rankings = {
        "supernet": benchmark.inherited(archs, args.name),
        "parameters": [trainings[arch, 0]["parameters"] for arch in range(len(archs))],
        "macs": [trainings[arch, 0]["macs"] for arch in range(len(archs))],
        "synflow": [synflow(benchmark.build(blocks), benchmark.example) for blocks in archs],
        "tenth": [
            statistics.fmean(trainings[arch, seed]["tenth"] for seed in range(args.seeds)) for arch in range(len(archs))
        ],
    }
    rows = [ceiling(scores)] if args.seeds > 1 else []
    rows += [compare(what, ranking, scores.mean(axis=1)) for what, ranking in rankings.items()]
    about = {"score": benchmark.objective.score_name, "archs": len(archs), "seeds": args.seeds}
    print(
        f"{about['score']} of {len(archs)} architectures: {np.ptp(scores.mean(axis=1)):.4f} from the worst to the best"
    )
    for row in rows:
        print("{what:12} tau {tau:>6} ({tau_5} to {tau_95})   regret {regret}".format(**row))
    write([row | about for row in rows], f"ranking-{args.data}-{args.name}", COLUMNS)


@dataclass(frozen=True)
class Benchmark:
    """A recipe, what it searches, and where the runs are."""

    opened: tuple[str, str | None, Sequence[str], Path]
    """The arguments of `open`, by which another process opens the same."""
    recipe: Recipe
    start: Trainable
    run: RunFolder
    """Holds the splits, the vocabulary, and every training and supernet."""

    @staticmethod
    def open(name: str, source: str | None, fields: Sequence[str], folder: Path) -> "Benchmark":
        """Open the data of a recipe; its splits and vocabulary are kept in the folder."""
        shipped, own = RECIPES[name]
        given = [f"--{field}={value}" for field, value in own.items()]
        given += [f"--data.source={source}"] if source else []
        recipe = load_recipe(shipped, [*given, *fields])
        run = RunFolder(folder / name)
        run.path.mkdir(parents=True, exist_ok=True)
        return Benchmark((name, source, fields, folder), recipe, prepare(recipe, run), run)

    @property
    def objective(self) -> ScoredObjective:
        """The objective of the recipe's task."""
        assert isinstance(self.start.objective, ScoredObjective)
        return self.start.objective

    @property
    def space(self) -> Space:
        """Every option that a search could choose."""
        assert self.recipe.search is not None
        return full_space(self.start.model.config.blocks, self.recipe.search.space)

    @property
    def tokens(self) -> int | None:
        """Tokens of a row; None for images."""
        return getattr(self.recipe.data, "max_length", None)

    @property
    def example(self) -> Example:
        """An image or a row of tokens."""
        config: Any = self.start.model.config
        size: Any = getattr(config, "image_size", self.tokens)
        return Example.of(self.start.model, size, getattr(config, "in_chans", 1))

    def build(self, blocks: Architecture) -> Model:
        """Return an untrained model of an architecture, the same each time."""
        torch.manual_seed(0)
        return type(self.start.model)(replace(self.start.model.config, blocks=blocks))

    def draw(self, count: int) -> list[Architecture]:
        """Draw architectures within the recipe's budget: the first ones stay the same, however many there are."""
        assert self.recipe.search is not None
        budget = self.recipe.search.budget
        cost = cost_table(budget.kind, self.start.model, self.tokens)
        return budget.of(cost).draw_distinct(self.space, random.Random(0), count)

    def train(self, archs: list[Architecture], seeds: int, jobs: int) -> dict[tuple[int, int], dict[str, float]]:
        """Train what is not trained yet, and return every training by architecture and seed."""
        file = RESULTS / f"ranking-{self.opened[0]}-trainings.csv"
        keys = {(arch, seed): self.key(archs[arch], seed) for seed in range(seeds) for arch in range(len(archs))}
        known = {row["key"]: row for row in read(file)}
        missing = [(key, arch, archs[arch], seed) for (arch, seed), key in keys.items() if key not in known]
        trained = Parallel(jobs, return_as="generator_unordered")(
            delayed(train_one)(self.opened, *each) for each in missing
        )
        for done, row in enumerate(trained, 1):
            known[row["key"]] = row
            append(file, row)
            print(
                "{} of {}: architecture {arch}, seed {seed}: {score:.4f}".format(done, len(missing), **row), flush=True
            )
        return {each: {name: float(known[key][name]) for name in TRAINING[3:]} for each, key in keys.items()}

    def key(self, blocks: Architecture, seed: int) -> str:
        """Return a hash of all that a training depends on."""
        told = [[asdict(block) for block in blocks], asdict(self.recipe.train), asdict(self.recipe.task), seed]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def train_one(self, key: str, arch: int, blocks: Architecture, seed: int) -> dict[str, Any]:
        """Train an architecture, and return a row of the table."""
        finals = Finals(self.recipe, self.run, self.start.model.config, self.objective)
        score = finals.train_one(f"trainings/{key}", EvaluatedPath(path=blocks, fitness=None, cost=0), seed=seed)
        run = RunFolder(self.run.path / "trainings" / key)
        report = run.read_report()
        validated = [row for row in run.history() if "val_loss" in row]
        early = min(validated, key=lambda row: abs(row["step"] - report["steps"] / 10))
        macs = cost_table("macs", self.start.model, self.tokens)(blocks)
        values = (key, arch, seed, score, -early["val_loss"], report["parameters"], macs, report["seconds"])
        return dict(zip(TRAINING, values, strict=True))

    def inherited(self, archs: list[Architecture], name: str) -> list[float]:
        """Return the scores of architectures with the weights of a supernet, which is trained where it is not yet."""
        search = self.recipe.search
        assert search is not None
        search = replace(search, supernet=twice_as_long(search.supernet))
        data = self.start.data.hold_out(search.val_fraction)
        searcher = Search(self.start.model, self.objective, data, search, self.run, self.tokens)
        cost = searcher.cost_table(self.space)
        supernet = searcher.train_supernet(self.space, search, cost, RunFolder(self.run.path / f"supernet-{name}"))
        accelerator = open_accelerator(search.supernet.precision)
        evaluator = Evaluator(supernet, self.objective, data, "val", accelerator, search.calibration, search.batch_size)
        return [record["fitness"] for record in evaluator(archs)]


def train_one(opened: tuple[Any, ...], *training: Any) -> dict[str, Any]:
    """Train an architecture in another process, which opens the same data."""
    return Benchmark.open(*opened).train_one(*training)


def synflow(model: Model, example: Example) -> float:
    """Return Σ |θ · ∂R/∂θ|, where R is the sum of the logits that the weights |θ| give for an input of ones."""
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if (
                parameter.dim() > 1 and not parameter.any()
            ):  # a classifier starts at zero, which would make every product 0
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            parameter.abs_()
    ones = [torch.ones_like(each) for each in example.inputs()]
    model(*(each.double() if each.is_floating_point() else each for each in ones)).sum().backward()
    products = [(p * p.grad).abs().sum().item() for p in model.parameters() if p.grad is not None]
    return sum(products)


def compare(what: str, ranking: Sequence[float], scores: np.ndarray) -> dict[str, Any]:
    """Return Kendall's τ of a ranking against scores, its quantiles, and the regret of its first five."""
    values = np.array(ranking)
    tau = kendall(values, scores)
    rng = np.random.default_rng(0)
    samples = (rng.integers(len(values), size=len(values)) for _ in range(RESAMPLES))
    taus = np.array([kendall(values[sample], scores[sample]) for sample in samples])
    known = taus[~np.isnan(taus)]  # a sample whose values are all equal has no τ
    low, high = np.quantile(known, (0.05, 0.95)) if len(known) else (math.nan, math.nan)
    regret = scores.max() - scores[np.argsort(-values, kind="stable")[:FIRST]].max()
    numbers = {"tau": tau, "tau_5": low, "tau_95": high, "regret": regret}
    return {"what": what} | {name: f"{number:.3f}" for name, number in numbers.items()}


def ceiling(scores: np.ndarray) -> dict[str, Any]:
    """Return the mean τ and the mean regret of the ranking by one seed against another, over all ordered pairs."""
    seeds = permutations(range(scores.shape[1]), 2)
    pairs = [compare("ceiling", scores[:, one].tolist(), scores[:, other]) for one, other in seeds]
    numbers = [name for name in pairs[0] if name != "what"]
    means = {name: statistics.fmean(float(pair[name]) for pair in pairs) for name in numbers}
    return {"what": "ceiling"} | {name: f"{mean:.3f}" for name, mean in means.items()}


def kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Return Kendall's τ; nan where all values of one are equal."""
    return float(kendalltau(a, b).statistic)


if __name__ == "__main__":
    main()

"""What a search is worth: models found by each method beside models divided by hand, all of equal cost, seed by seed.

    python benchmarks/comparison.py digits                         # every method, five seeds
    python benchmarks/comparison.py characters --data FILE         # the same for a small GPT; FILE is any text
    python benchmarks/comparison.py pydoc --methods start half --seeds 3    # a small BERT on Python's documentation
    python benchmarks/comparison.py digits --seeds 0               # only the table and the picture, of what is kept

A seed decides the splits (of images), the supernet, the evolution and the trainings. Methods are compared by the score
on the test split of the model that they end with, which no search and no training reads.

    hierarchical  GLiT's search in two stages      halving   no supernet: eight random models, trained for longer and
    flat          one stage, twice as long                   longer (successive halving)
    random        as flat, without evolution       start     all heads are attention
    half          half of the heads are local      most      five of six heads are local, by hand

The models that are divided by hand have MLPs of a width at which they cost as much as the start. `seconds` is the
processor's time for all of it. `--jobs 2` runs two methods at once, each on one thread. Runs are in `--folder`, and a
stopped benchmark continues. results/comparison-DATA.csv keeps every result. The table of means is printed, and
results/comparison-DATA.png shows it.
"""

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from scipy import stats
from timing import RESULTS, append, read

from glocal import runner
from glocal.layers.block import BlockConfig
from glocal.models import load_model
from glocal.recipes import Recipe, load_recipe
from glocal.reports.figures.style import GLOBAL, LOCAL, MUTED, styled
from glocal.runner.model_source import prepare
from glocal.search.cost import cost_table
from glocal.search.stages import save_arch
from glocal.training import RunFolder

RESULT = ("method", "seed", "val", "test", "macs", "parameters", "seconds", "commit")
SEARCHES: dict[str, dict[str, object]] = {
    "hierarchical": {},
    "flat": {"search.method": "flat"},
    "random": {"search.method": "random"},
    "halving": {"search.method": "halving", "search.halving": 3, "search.retrain": 1},
}
BY_HAND = ("start", "half", "most")
METHODS = (*SEARCHES, *BY_HAND)


@dataclass(frozen=True)
class Setting:
    """A recipe, its fields for this benchmark, and how its models are scored."""

    recipe: str
    fields: dict[str, object]
    seeds: tuple[str, ...]
    """Fields that take the seed."""
    metric: str
    lower_is_better: bool
    unit: str
    scale: float
    """By which a metric is multiplied to be in the unit."""


SETTINGS = {
    "digits": Setting(
        "glit-digits",
        {"data.test_fraction": 0.35, "train.precision": "float32", "search.supernet.precision": "float32"},
        ("data.seed", "train.seed", "search.supernet.seed", "search.evolution.seed"),
        *("top1", False, "accuracy on the test images, %", 100.0),
    ),
    "characters": Setting(
        "search-gpt-shakespeare-char",
        {},
        ("train.seed", "search.supernet.seed", "search.evolution.seed"),
        *("loss", True, "nats per character of the test text", 1.0),
    ),
    "pydoc": Setting(
        "search-bert-pydoc",
        {},
        ("train.seed", "search.supernet.seed", "search.evolution.seed"),
        *("masked_loss", True, "nats per masked word of the test texts", 1.0),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare searches with each other and with models divided by hand.")
    parser.add_argument("data", choices=SETTINGS)
    parser.add_argument("--data", dest="source", help="the text of characters")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, default=5, help="seeds of each method (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="methods at once (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/comparison"), help="where runs are kept")
    args = parser.parse_args()
    table = RESULTS / f"comparison-{args.data}.csv"
    known = {(row["method"], int(row["seed"])) for row in read(table)}
    missing = [(m, seed) for seed in range(args.seeds) for m in args.methods if (m, seed) not in known]
    folder = args.folder.resolve() / args.data
    done = Parallel(args.jobs, prefer="threads", return_as="generator_unordered")(
        delayed(run)(args.data, args.source, method, seed, folder, args.jobs) for method, seed in missing
    )
    for number, row in enumerate(done, 1):
        append(table, row)
        print("{} of {}: {method}, seed {seed}: {test}".format(number, len(missing), **row), flush=True)
    report(args.data, list(read(table)))


def run(name: str, source: str | None, method: str, seed: int, folder: Path, jobs: int) -> dict[str, object]:
    """Run a method with a seed in a process of its own, test its model, and return a row of the table."""
    setting = SETTINGS[name]
    place = folder / f"{method}-{seed}"
    fields = setting.fields | dict.fromkeys(setting.seeds, seed) | {"run.dir": place}
    fields |= {"data.source": source} if source else {}
    resumed = (place / "recipe.yaml").exists()
    if resumed:
        command = ["search" if method in SEARCHES else "train", "--resume", str(place)]
    elif method in SEARCHES:
        command = ["search", setting.recipe, *arguments(fields | SEARCHES[method])]
    else:
        arch = divide(load_recipe(setting.recipe, arguments(fields)), method, folder)
        fields = {field: value for field, value in fields.items() if not field.startswith("search.")}
        command = ["train", setting.recipe, *arguments(fields | {"model.arch": arch})]
    seconds = execute(command, place.with_suffix(".log"), jobs)
    test: Any = runner.test(place)
    report: Any = RunFolder(place).read_report()
    trained = report["finalists"][report["found"]["finalist"] - 1] if method in SEARCHES else report
    metrics = (f"{scores[setting.metric]:.5f}" for scores in (trained["val"], test))
    # The time of a resumed run is not known.
    model: Any = load_model(place)
    tokens = None if hasattr(model.config, "image_size") else model.config.max_length
    macs = cost_table("macs", model, tokens)(model.config.blocks)
    values = (*metrics, macs, trained["parameters"], "" if resumed else f"{seconds:.0f}", report["commit"])
    return dict(zip(RESULT, (method, seed, *values), strict=True))


def arguments(fields: dict[str, object]) -> list[str]:
    """Return fields as arguments of the command line."""
    return [f"--{field}={value}" for field, value in fields.items()]


def execute(command: list[str], log: Path, jobs: int) -> float:
    """Run a command of glocal with its share of the threads, and return the processor's seconds that it took."""
    threads = max((os.cpu_count() or 1) // jobs, 1)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "glocal", *command],
            env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"glocal {' '.join(command)} failed; its output is in {log}")
    return usage.ru_utime + usage.ru_stime


def divide(recipe: Recipe, method: str, folder: Path) -> Path:
    """Write the architecture of a model that is divided by hand, of the start's cost, and return its file."""
    data = RunFolder(folder / "data")
    data.path.mkdir(parents=True, exist_ok=True)
    model: Any = prepare(recipe, data).model
    start: tuple[BlockConfig, ...] = model.config.blocks
    cost = cost_table("macs", model, getattr(recipe.data, "max_length", None))
    heads = local_heads(method, len(start), start[0].num_heads)

    def blocks(mlp_ratio: float) -> tuple[BlockConfig, ...]:
        return tuple(
            replace(block, local_heads=count, mlp_ratio=mlp_ratio) for block, count in zip(start, heads, strict=True)
        )

    narrow, wide = cost(blocks(2.0)), cost(blocks(4.0))  # costs are linear in the MLP's width
    ratio = 2.0 + 2.0 * (cost(start) - narrow) / (wide - narrow)
    width = start[0].embed_dim
    file = folder / f"{method}.json"
    save_arch(file, model.config, blocks(round(ratio * width) / width))
    return file


def local_heads(method: str, depth: int, heads: int) -> list[int]:
    """Return the number of local heads of each block: none, half of all, or five of six."""
    if method == "start":
        return [0] * depth
    if method == "half":  # of an odd number, one more in every second block
        return [(heads + block % 2) // 2 for block in range(depth)]
    attention = round(heads * depth / 6)  # in the last blocks
    return [heads - min(max(attention - heads * after, 0), heads) for after in reversed(range(depth))]


def report(name: str, rows: list[dict[str, str]]) -> None:
    """Print the table of all methods, and draw their scores."""
    setting = SETTINGS[name]
    scores = {
        method: {int(row["seed"]): setting.scale * float(row["test"]) for row in rows if row["method"] == method}
        for method in METHODS
    }
    scores = {method: by_seed for method, by_seed in scores.items() if by_seed}
    lines = [
        f"| method | seeds | {setting.unit}, mean | of a seed "
        "| against hierarchical, same seeds | p | MMACs | processor seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for method, by_seed in scores.items():
        own = [row for row in rows if row["method"] == method]
        values = list(by_seed.values())
        seconds = [float(row["seconds"]) for row in own if row["seconds"]]
        cells = (
            *(method, len(values), interval(values), f"{min(values):.5g} to {max(values):.5g}"),
            *difference(by_seed, scores.get("hierarchical", {}) if method != "hierarchical" else {}),
            f"{statistics.fmean(float(row['macs']) for row in own) / 1e6:.2f}",
            f"{statistics.median(seconds):.0f}" if seconds else "",
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    print(*lines, sep="\n")
    picture = RESULTS / f"comparison-{name}.png"
    draw(scores, setting).savefig(picture)
    print(f"drawn in {os.path.relpath(picture)}")


def difference(scores: dict[int, float], others: dict[int, float]) -> tuple[str, str]:
    """Return the mean difference of the seeds that both have with its 95 % interval, and the p of a paired t-test."""
    shared = sorted(scores.keys() & others.keys())
    if len(shared) < 2:
        return "", ""
    differences = [scores[seed] - others[seed] for seed in shared]
    p = stats.ttest_1samp(differences, 0.0).pvalue if len(set(differences)) > 1 else 1.0
    return interval(differences), f"{p:.3f}"


def interval(values: Sequence[float]) -> str:
    """Return the mean with the 95 % interval of Student's t, as text."""
    mean, half = statistics.fmean(values), half_width(values)
    return f"{mean:.3f} ± {half:.3f}" if half is not None else f"{mean:.3f}"


def half_width(values: Sequence[float]) -> float | None:
    """Return half the width of the 95 % interval of Student's t; None for a single value."""
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5)


@styled
def draw(scores: dict[str, dict[int, float]], setting: Setting) -> Figure:
    """Draw a row for each method: a dot for each seed, and the mean with its 95 % interval."""
    figure = Figure(figsize=(6.2, 0.8 + 0.34 * len(scores)))
    axes = figure.subplots()
    axes.grid(axis="x")
    axes.grid(axis="y", visible=False)
    labels = {"start": "all attention", "half": "half local, by hand", "most": "five of six local, by hand"}
    for row, (method, by_seed) in enumerate(reversed(scores.items())):
        values = list(by_seed.values())
        colour = LOCAL if method in SEARCHES else GLOBAL
        axes.plot(values, np.full(len(values), row), "o", markersize=4, color=colour, alpha=0.35, markeredgewidth=0)
        axes.errorbar(
            statistics.fmean(values), row, xerr=half_width(values), fmt="D", markersize=4, color=colour, capsize=3
        )
    axes.set_yticks(range(len(scores)), [labels.get(method, f"search: {method}") for method in reversed(scores)])
    axes.set_ylim(-0.6, len(scores) - 0.4)
    axes.margins(x=0.05)
    direction = "less" if setting.lower_is_better else "more"
    axes.set_xlabel(
        f"{setting.unit} ({direction} is better)\na dot for each seed, and the mean with its 95 % interval", color=MUTED
    )
    return figure


if __name__ == "__main__":
    main()

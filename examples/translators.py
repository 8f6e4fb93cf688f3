"""Translators beside each other: how well they write, how fast they learn, and how far their gradients reach back.

    glocal train transformer-multi30k --data.source PATH --run.dir runs/transformer    and glocal test runs/transformer
    glocal train lstm-multi30k --data.source PATH --run.dir runs/lstm                  and glocal test runs/lstm
    python examples/translators.py runs/transformer runs/lstm

The runs have learned from the same pairs. The last line printed is the path of the report.
"""

import argparse
import csv
import statistics
import sys
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

import glocal
from glocal.errors import GlocalError
from glocal.explain.reach import gradient_reach
from glocal.reports import figures
from glocal.reports.page import Column, Part, Picture, Section, Table, Text, write_page
from glocal.training import RunFolder

TITLES = {"transformer": "Transformer", "lstm": "LSTM"}
PATHS: dict[str, Literal["O(1)", "O(n)"]] = {"Transformer": "O(1)", "LSTM": "O(n)"}
BATCHES = 8
"""Batches of the test split whose gradients are followed."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Set tested runs of a Transformer and of an LSTM beside each other.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/translators.html"), metavar="PAGE")
    args = parser.parse_args()
    runs = {title(run): run for run in map(RunFolder.open, args.runs)}
    if len(runs) < len(args.runs):
        raise GlocalError(f"{len(args.runs)} runs of {', '.join(runs)}; give one of each kind of model")
    page = write_page(
        args.output,
        " and ".join(runs),
        [
            Section("How well, and how fast", [compare(runs), learning(runs)]),
            Section("How far a gradient reaches", reaching(runs)),
            Section("In their own words", [samples(runs)]),
        ],
        "Translators that learned from the same sentences",
    )
    print(page)


def title(run: RunFolder) -> str:
    """Name a run by the kind of its model."""
    family = glocal.load_recipe(run.recipe).model["name"].partition("-")[0]
    if family not in TITLES:
        raise GlocalError(f"{run} is a {family}; expected runs of {' and '.join(TITLES)}")
    return TITLES[family]


def compare(runs: dict[str, RunFolder]) -> Table:
    """Set what was measured side by side."""
    columns: list[str | Column] = [
        "model",
        Column("BLEU", ".2f", max),
        Column("chrF", ".2f", max),
        Column("perplexity", ".2f", min),
        Column("parameters", ","),
        Column("tokens/s", ",.0f", max),
        Column("minutes", ".0f"),
    ]
    rows, signatures = [], set()
    for name, run in runs.items():
        report = run.read_report()
        if "test" not in report:
            raise GlocalError(f"{run} was not tested; run: glocal test {run}")
        test = report["test"]
        signatures.add(test["bleu_signature"])
        speed = statistics.median(row["labels_per_second"] for row in run.history() if "labels_per_second" in row)
        trained = report["parameters"], speed, report["cpu_seconds"] / 60
        rows.append([name, test["bleu"], test["chrf"], test["perplexity"], *trained])
    measured = "On the test split; training's target tokens a second, and its minutes of processor time."
    return Table(columns, rows, f"{measured} BLEU: {', '.join(sorted(signatures))}.")


def learning(runs: dict[str, RunFolder]) -> Picture:
    """Draw the epochs."""
    curves = {name: run.history() for name, run in runs.items()}
    return Picture(figures.training_curves(curves), "Every epoch; accuracy is of the next token, the true ones given.")


def reaching(runs: dict[str, RunFolder]) -> list[Part]:
    """Follow the loss of each sentence's last token back to the tokens before it."""
    reaches: dict[str, Float[np.ndarray, "sentences distances"]] = {}
    for name, run in runs.items():
        recipe: Any = glocal.load_recipe(run.recipe)
        translator = glocal.load(run.path, device="cpu")
        batches = recipe.spec.open_data(recipe.data, run.path).eval_batches("test", recipe.train.batch_size)
        reaches[name] = gradient_reach(translator.model, islice(iter(batches), BATCHES))
    paths = {name: PATHS[name] for name in runs}
    caption = "Lines are medians over sentences, bands hold half of them, dropout is off."
    return [
        Text(
            "What a word should be may hang on one far before it. Between the two lie n steps of an LSTM, and one of a "
            "Transformer: the picture shows what is left on the way of the gradient that learning needs."
        ),
        Picture(figures.gradient_reach(reaches, paths), caption),
    ]


def samples(runs: dict[str, RunFolder], count: int = 8) -> Table:
    """Show some test sentences, evenly spread, beside what each model makes of them."""
    written = {}
    for name, run in runs.items():
        with (run.path / "translations.tsv").open(newline="", encoding="utf-8") as file:
            (source, target, _), *rows = csv.reader(file, "excel-tab")
        written[name] = rows
    every = max(len(rows) // count, 1)
    chosen = list(zip(*(rows[::every][:count] for rows in written.values()), strict=True))
    table = [[*answers[0][:2], *(answer for *_, answer in answers)] for answers in chosen]
    return Table([source, f"{target}, by people", *runs], table, "")


if __name__ == "__main__":
    try:
        main()
    except GlocalError as error:
        sys.exit(f"translators: {error}")

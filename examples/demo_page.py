"""The demo's page: what each part came to, the attention of the ViT, and how the time was planned.

Beside the page, `results.md` holds the same numbers as tables for `results/`, and `digits.png` the first figure.
"""

import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_parts import (
    BERT,
    FINER,
    FOLDER,
    FOUND,
    GLIT,
    GPT,
    RESNET,
    RUNS,
    START,
    TRANSFORMER,
    VIT,
    Finished,
    standard_error,
)
from demo_plan import Planned
from sklearn.datasets import load_digits

import glocal
from glocal.explain import ImageExplanation, explain_image, explain_translation
from glocal.generation import DecodingConfig
from glocal.reports import figures, page
from glocal.reports.page import Code, Column, Fold, Numbers, Picture, Section, Table, Text
from glocal.training import RunFolder, this_process
from glocal.training.devices import machine

SENTENCES = [
    "After four hundred and two [MASK] four hundred and three.",
    "After five hundred and ninety-nine comes [MASK] hundred.",
    "After seven hundred and [MASK]-six comes seven hundred and twenty-seven.",
    "After six hundred and eighty-[MASK] comes six hundred and eighty-five.",
]
PROMPT = "The following example"
NUMBER = "seven hundred and eighty-two thousand and five"
ONE_SEED = (
    "Each model was trained once, with one seed, and tested on a few hundred digits. The standard error (±) says how "
    "far an accuracy is off by chance, because the test digits are few. Another seed would move it too, and one run "
    "cannot show by how much. So these rows do not rank the models."
)


def write_report(
    plans: Sequence[Planned], finished: Sequence[Finished], step: Mapping[str, float], start: float
) -> Path:
    """Write the page about the parts that were learned, and the tables; return the page's path."""
    runs = learned(finished)
    classifiers = {name: run for name, run in runs.items() if name in (VIT.name, FINER.name, RESNET.name)}
    readers = {name: run for name, run in runs.items() if name in (TRANSFORMER.name, BERT.name, GPT.name)}
    schedule = timed(plans, finished, step)
    tables = [schedule]
    sections: list[Section] = []
    if classifiers:
        finer = f"The {FINER.name} goes on from the ViT: the same patches, more of them."
        tables.append(compare(classifiers, finer if FINER.name in classifiers else ""))
        best = classifiers.get(FINER.name, RUNS[VIT.name])
        explanations = look_at_digits(best)
        sections.append(opening(best, explanations))
        sections.append(Section("Classifiers of digits", [tables[-1], Text(ONE_SEED)]))
    if GLIT.name in runs:
        caption = "Two models of the same cost, trained from nothing by the same recipe with the same seed."
        tables.append(compare({"the GLiT found": FOUND, "the start, a ViT": START}, caption))
        sections.append(searched(tables[-1]))
    if TRANSFORMER.name in readers:
        sections.append(translated())
    if BERT.name in readers:
        sections.append(guessed())
    if GPT.name in readers:
        sections.append(written())
    if classifiers:
        sections += inside(best, explanations, classifiers)
    sections += [Section("Time", [schedule]), recipes(runs)]
    write_results([*tables, summary(readers, finished)], time.time() - start)
    subtitle = (
        "Handwritten digits of scikit-learn, numbers in English and Vietnamese, Python's own documentation: small "
        f"models, trained and tested on this machine in {time.time() - start:.0f} seconds."
    )
    if missing := [each.part.name for each in plans if each.part.name not in runs]:
        subtitle += f" Left out for lack of time: {', '.join(missing)}."
    return page.write_page(FOLDER / "report.html", "What Transformers learn in minutes", sections, subtitle)


def learned(finished: Sequence[Finished]) -> dict[str, Path]:
    """Return the runs of the parts that were not left out, by name."""
    return {each.planned.part.name: RUNS[each.planned.part.name] for each in finished if each.planned.rounds}


def write_looks(finished: Sequence[Finished]) -> dict[str, Path]:
    """Write pages that show what models do with an input, and return them by the name of the part."""
    inputs: dict[str, Any] = {VIT.name: first_digit(3), TRANSFORMER.name: NUMBER, GPT.name: PROMPT}
    runs = {name: run for name, run in learned(finished).items() if name in inputs}
    return {
        name: glocal.page.write_page(glocal.load(run), inputs[name], FOLDER / f"{run.name}.html")
        for name, run in runs.items()
    }


def opening(run: Path, explanations: list[ImageExplanation]) -> Section:
    """Show how good the best ViT is, and what its class token attends to."""
    report = RunFolder(run).read_report()
    test = report["test"]
    numbers = {
        "test accuracy of a ViT": f"{test['top1']:.1%}",
        "its standard error": f"{standard_error(test['top1'], test['examples']):.1%}",
        "unseen digits": f"{test['examples']}",
        "parameters": f"{report['parameters']:,}",
    }
    shown = figures.attention_examples(
        [seen.image for seen in explanations],
        [seen.rollout for seen in explanations],
        ["{} {:.0%}".format(*seen.probabilities[0]) for seen in explanations],
    )
    shown.savefig(FOLDER / "digits.png")
    caption = "One digit of each class, and where the class token looked: attention rollout."
    return Section("", [Numbers(numbers), Picture(shown, caption)])


def compare(runs: Mapping[str, Path], caption: str) -> Table:
    """Set classifiers beside each other, none of them marked: one seed ranks nothing."""
    columns: list[str | Column] = [
        "model",
        Column("test top-1", ".1%"),
        Column("±", ".1%"),
        Column("parameters", ","),
        Column("MMACs", ".2f"),
        Column("epochs", "d"),
        Column("seconds", ".0f"),
    ]
    rows = []
    for name, run in runs.items():
        report = RunFolder(run).read_report()
        test = report["test"]
        error = standard_error(test["top1"], test["examples"])
        cost = [report["parameters"], report["macs"] / 1e6]
        rows.append([name, test["top1"], error, *cost, report["epochs"], report["seconds"]])
    return Table(columns, rows, caption)


def summary(runs: Mapping[str, Path], finished: Sequence[Finished]) -> Table:
    """Return a table of the models that learned from texts."""
    result = {each.planned.part.name: each.result for each in finished}
    rows = []
    for name, run in runs.items():
        report = RunFolder(run).read_report()
        rows.append([name, result[name], report["parameters"], report["steps"], report["seconds"]])
    numbers = [Column("parameters", ","), Column("steps", ","), Column("seconds", ".0f")]
    return Table(["model", "test", *numbers], rows)


def searched(comparison: Table) -> Section:
    """Show what the search found, how it got there, and what one run of it can say."""
    found = RunFolder(RUNS[GLIT.name])
    report = found.read_report()
    recipe: Any = glocal.load_recipe(found.recipe)
    budget = recipe.search.budget
    stages = json.loads((found.path / "candidates.json").read_text())
    evaluated = sum(stage["evaluated"] for stage in report["stages"].values())
    return Section(
        "A searched GLiT",
        [
            Picture(
                figures.architecture(glocal.load(found.path).model.config.blocks),
                "What the search found. Global heads attend to all tokens, local ones are convolutions over a few in a "
                "row; each block has three heads, and an MLP of its own width.",
            ),
            Text(" ".join(report["reading"]["sentences"])),
            Picture(
                figures.score_against_cost(
                    stages,
                    budget.unit,
                    (report["found"]["cost"], report["finalists"][0]["inherited"]),
                    (budget.lower, budget.upper),
                ),
                f"The {evaluated} candidates that were evaluated, on training images held back for it. They share the "
                "weights of their stage's supernet, so that accuracies of different stages do not compare. The lower "
                "bound of the budget is for the second stage alone.",
            ),
            Picture(
                figures.score_by_generation(
                    {name: [[accuracy for _, accuracy in each] for each in stage] for name, stage in stages.items()}
                ),
                "The best five of all generations so far breed the next. The first stage chooses heads, the second "
                "kernels and widths.",
            ),
            comparison,
            Text(
                f"{ONE_SEED} For a comparison of searches, a random one among them, with 10,000 test images and two "
                "seeds, see results/glit-cifar10.md."
            ),
        ],
    )


def translated() -> Section:
    """Show the Transformer's translations of test numbers, and its cross-attention."""
    run = RUNS[TRANSFORMER.name]
    report = RunFolder(run).read_report()
    test = report["test"]
    translator: Any = glocal.load(run)
    attention = explain_translation(translator, NUMBER).attention["cross"]
    heads = [f"head {head}" for head in range(attention.weights.shape[1])]
    with (run / "translations.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, "excel-tab"))[1:]
    right = [[source, output, "✓"] for source, reference, output in rows[1000:] if output == reference][:3]
    wrong = [[source, output, "✗"] for source, reference, output in rows if output != reference][:2]
    return Section(
        "A Transformer translates",
        [
            Numbers(
                {
                    "unseen numbers translated correctly, word for word": f"{test['exact']:.1%}",
                    "of so many": f"{test['examples']:,}",
                    "seconds of training": f"{report['seconds']:.0f}",
                }
            ),
            Table(
                ["English", "in Vietnamese, by the Transformer", ""],
                right + wrong,
                "Up to three correct translations, and two wrong ones.",
            ),
            Picture(
                figures.attention_words(attention.weights[-1], attention.queries, attention.keys, heads),
                "Cross-attention of the last block, a picture a head: which English words (columns) the decoder "
                "attends to as it writes each Vietnamese one (rows).",
            ),
        ],
    )


def guessed() -> Section:
    """Show which words a BERT puts into gaps."""
    run = RUNS[BERT.name]
    report = RunFolder(run).read_report()
    test = report["test"]
    rows = [
        [sentence, *(f"{word}\u00a0{probability:.0%}" for word, probability in answer)]
        for sentence, (answer,) in zip(SENTENCES, glocal.load(run).predict(SENTENCES, top=3), strict=True)
    ]
    return Section(
        "A BERT fills gaps",
        [
            Numbers(
                {
                    "masked words found, in unseen documents": f"{test['accuracy']:.1%}",
                    "next sentences recognised; chance is half": f"{test['next_accuracy']:.1%}",
                    "seconds of training": f"{report['seconds']:.0f}",
                }
            ),
            Table(
                ["a sentence", "first guess", "second", "third"],
                rows,
                "It learned from short texts that count. The words on both sides of a gap show what is missing.",
            ),
        ],
    )


def written() -> Section:
    """Show how a GPT goes on writing."""
    run = RUNS[GPT.name]
    report = RunFolder(run).read_report()
    test = report["test"]
    drawn = DecodingConfig(temperature=0.5, extra_length=120, seed=1)
    writer: Any = glocal.load(run)
    lines = (PROMPT + writer.predict(PROMPT, drawn)[0].text).splitlines()
    return Section(
        "A GPT writes",
        [
            Numbers(
                {
                    "perplexity a token, in unseen documents": f"{test['perplexity']:.0f}",
                    "without any context": f"{np.exp(test['unigram_loss']):.0f}",
                    "seconds of training": f"{report['seconds']:.0f}",
                }
            ),
            Code("\n".join(line for line in lines if line.strip())),
            Text("Minutes of training are far too few for a text that means something; its words and lines have form."),
        ],
    )


def inside(run: Path, explanations: list[ImageExplanation], classifiers: Mapping[str, Path]) -> list[Section]:
    """Show how the classifiers learned, where the best ViT errs, and what it attends to."""
    test = RunFolder(run).read_report()["test"]
    model: Any = glocal.load(run).model
    curves = {name: RunFolder(path).history() for name, path in classifiers.items()}
    return [
        Section(
            "Training",
            [
                Picture(
                    figures.training_curves(curves),
                    "Loss (thin: training, bold: validation) and validation accuracy, by epoch.",
                )
            ],
        ),
        Section(
            "Mistakes",
            [
                Picture(
                    figures.confusion_matrix(np.array(test["confusion"]), test["labels"]),
                    f"{test['examples']} test digits: rows are what they are, columns what the ViT reads.",
                )
            ],
        ),
        Section(
            "Heads",
            [
                Text("Each head of each layer has attention weights of its own: here, those of the class token."),
                Picture(
                    figures.attention_heads(explanations[3].image, explanations[3].heads),
                    "A 3. A row is a layer, a column a head.",
                ),
            ],
        ),
        Section(
            "Positions",
            [
                Text("At first, the model has no sign that patches lie in rows and columns. It learns this."),
                Picture(
                    figures.position_similarity(model.pos_embed[0, model.num_prefix_tokens :], model.grid),
                    "How alike each position's embedding is to all others (Dosovitskiy et al. 2020, figure 7).",
                ),
            ],
        ),
    ]


def look_at_digits(run: Path) -> list[ImageExplanation]:
    """Explain the first digit of each class in the data set."""
    predictor: Any = glocal.load(run)
    with torch.no_grad():
        return [explain_image(predictor, first_digit(label)) for label in range(10)]


def first_digit(label: int) -> np.ndarray:
    """Return the pixels of the first digit of a class in the data set."""
    digits = load_digits()
    return (digits.images[int(np.argmax(digits.target == label))] * 255 / 16).astype(np.uint8)


def recipes(runs: Mapping[str, Path]) -> Section:
    """Show the recipe of each run."""
    texts = {name: RunFolder(run).recipe.read_text() for name, run in runs.items()}
    return Section("How", [Fold(f"The recipe of the {name}", [Code(text)]) for name, text in texts.items()])


def timed(plans: Sequence[Planned], finished: Sequence[Finished], step: Mapping[str, float]) -> Table:
    """Show how the time was planned, what came of the plan, and what was left out."""
    ended = {each.planned.part.name: each for each in finished}
    rows = []
    for each in plans:
        end = ended[each.part.name]
        planned = each.seconds if each.rounds else None
        taken = end.seconds if end.planned.rounds else None
        rows.append([each.part.name, 1000 * step[each.part.name], each.length, planned, end.planned.length, taken])
    return Table(
        ["part", Column("ms a step", ".0f"), "planned", Column("s", ".0f"), "learned", Column("took s", ".0f")],
        rows,
        "A few steps of each part were measured at the start, and the time was divided by them. Before each part the "
        "plan was made anew with the time that was left. Seconds include set-up and test. A part is left out where it "
        "would have learned too little.",
    )


def write_results(tables: Sequence[Table], seconds: float) -> None:
    """Write tables as Markdown, under a line that names the machine and the seconds."""
    where = f"{machine(this_process().device)}, half of them for images and half for texts, torch {torch.__version__}"
    lines = [f"`make demo`, {where}: **{seconds:.0f} s**, one seed a model."]
    for table in tables:
        columns = [Column(column) if isinstance(column, str) else column for column in table.columns]
        lines += ["", f"| {' | '.join(column.name for column in columns)} |", "| --- " * len(columns) + "|"]
        for cells in table.rows:
            texts = ["" if cell is None else format(cell, c.format) for cell, c in zip(cells, columns, strict=True)]
            lines.append(f"| {' | '.join(texts)} |")
    (FOLDER / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")

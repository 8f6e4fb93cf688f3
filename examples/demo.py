"""The demo: a ViT learns handwritten digits, a search finds a GLiT for them, a Transformer learns to translate numbers.

The ViT is tested, fine-tuned at a higher resolution, and explained; the GLiT is compared with a ViT and with what a
random search finds, all of equal cost. A BERT learns to fill gaps, a GPT to write like Python's documentation.
Everything goes to runs/demo; the last line printed is the path of the report.
"""

import csv
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from num2words import num2words
from sklearn.datasets import load_digits

import glocal
from glocal.errors import GlocalError
from glocal.experiment import search
from glocal.inference import DecodingConfig, figures
from glocal.inference.explain import Explanation, explain, explain_translation
from glocal.inference.page import Code, Column, Fold, Numbers, Picture, Section, Table, Text, write_page
from glocal.training import RunFolder

FOLDER = Path("runs/demo")

COUNTING = {
    "data.source": str(FOLDER / "counting.jsonl"),
    "data.max_length": 32,
    "data.tokenizer.vocab_size": 300,
    "model.depth": 2,
    "model.embed_dim": 64,
    "train.minutes": None,
    "train.steps": 1800,
    "train.lr": 4e-3,
}
WRITING = {
    "data.max_length": 128,
    "model.max_length": 128,
    "model.embed_dim": 128,
    "model.dropout": 0.0,
    "model.attn_drop": 0.0,
    "train.epochs": None,
    "train.steps": 220,
    "train.lr": 4e-3,
    "train.schedule.warmup_epochs": 0.0,
    "train.schedule.warmup_steps": 20,
}
SENTENCES = [
    "After four hundred and two [MASK] four hundred and three.",
    "After five hundred and ninety-nine comes [MASK] hundred.",
    "After seven hundred and [MASK]-six comes seven hundred and twenty-seven.",
    "After six hundred and eighty-[MASK] comes six hundred and eighty-five.",
]
PROMPT = "The following example"
VITS = {"ViT": FOLDER / "vit", "ViT at 24²": FOLDER / "finetuned", "ResNet-18": FOLDER / "resnet18"}
GLITS = {
    "GLiT": FOLDER / "search" / "finalist-1",
    "GLiT, random search": FOLDER / "random" / "finalist-1",
    "ViT": FOLDER / "origin",
}
TEXTS = {"Transformer": FOLDER / "numbers", "BERT": FOLDER / "bert", "GPT": FOLDER / "gpt"}


def main() -> None:
    """Learn from images and, in a process beside this one, from texts: small models gain little from a second core."""
    start = time.perf_counter()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    with (FOLDER / "texts.log").open("w") as log:
        texts = subprocess.Popen([sys.executable, __file__, "texts"], stdout=log, stderr=log)
    print(f"Meanwhile a Transformer, a BERT and a GPT learn from texts: {log.name}", file=sys.stderr)
    try:
        learn_from_images()
        step("what learns from texts comes to its end")
        if texts.wait():
            raise GlocalError(f"what learned from texts has failed; {log.name} says why")
    finally:
        texts.terminate()
    print(write_report(time.perf_counter() - start).resolve())


def learn_from_images() -> None:
    """A ViT, the ResNet and the GLiTs that are set beside it."""
    step("a ViT learns digits from nothing")
    vit = glocal.train("vit-digits", {"train.epochs": 60, "run.dir": str(FOLDER / "vit")})
    minutes = RunFolder(vit).read_report()["seconds"] / 60

    step(f"a ResNet-18 learns the same digits for the same {minutes * 60:.0f} seconds")
    # In float32: oneDNN's bf16 convolutions over maps of one cell now and then give gradients that are not finite.
    budget = {"train.epochs": None, "train.minutes": minutes, "train.precision": "float32"}
    baseline = {"model.name": "timm:resnet18"} | budget
    glocal.train("vit-digits", baseline | {"run.dir": str(FOLDER / "resnet18")})

    step("the ViT goes on at a higher resolution: same patches, more of them")
    glocal.train("vit-digits-finetune", {"model.from": str(vit), "run.dir": str(FOLDER / "finetuned")})

    step("a search for a GLiT: how many heads of each block are local, then kernels and widths")
    short = {"train.epochs": 18}
    once = {"search.retrain": 1, "search.supernet.epochs": 10}  # as often as the ViT that they are compared with
    search("glit-digits", short | once | {"run.dir": str(FOLDER / "search")})

    step("a random search: as many GLiTs of the same cost, none of them bred from others")
    search("glit-digits", short | once | {"search.method": "random", "run.dir": str(FOLDER / "random")})

    step("the ViT from which both searches started, trained as the GLiTs were")
    glocal.train("glit-digits", short | {"run.dir": str(FOLDER / "origin")})
    for run in [*VITS.values(), *GLITS.values()]:
        glocal.test(run)


def learn_from_texts() -> None:
    """A Transformer, a BERT and a GPT."""
    step("a Transformer learns to say numbers in Vietnamese")
    short = {"train.minutes": None, "train.epochs": 2}
    glocal.train("transformer-numbers-en-vi", short | {"run.dir": str(FOLDER / "numbers")})

    step("a BERT learns to fill gaps, from texts that count")
    write_counting(FOLDER / "counting.jsonl")
    glocal.train("bert-pydoc", COUNTING | {"run.dir": str(FOLDER / "bert")})

    step("a GPT learns to write, from Python's documentation")
    glocal.train("gpt-pydoc", WRITING | {"run.dir": str(FOLDER / "gpt")})
    for run in TEXTS.values():
        glocal.test(run)


def write_counting(file: Path) -> None:
    """Write documents that count to a thousand, each from where the one before it ended: no two share a sentence."""
    said = [num2words(number) for number in range(1001)]
    documents = (
        " ".join(f"After {said[number]} comes {said[number + 1]}." for number in range(start, start + 4))
        for start in range(0, 1000, 4)
    )
    file.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))


def step(what: str) -> None:
    print(f"\n— {what}", file=sys.stderr)


def write_report(seconds: float) -> Path:
    """Draw what the runs came to: first how good everything is, then a look inside the ViT."""
    vit, found = VITS["ViT at 24²"], FOLDER / "search"
    explanations = look_at_digits(vit)
    return write_page(
        FOLDER / "report.html",
        "Transformers read digits, say numbers and write",
        [
            opening(vit, explanations, seconds),
            Section(
                "Beside a ResNet",
                [
                    compare(
                        VITS,
                        "The ResNet-18 (timm) learned from the same images in the same loop, for as long as the ViT "
                        "did. The second row goes on from the first.",
                    )
                ],
            ),
            searched(RunFolder(found)),
            translated(TEXTS["Transformer"]),
            guessed(TEXTS["BERT"]),
            written(TEXTS["GPT"]),
            *inside(vit, explanations),
            Section(
                "How",
                [
                    Fold(f"The recipe of {name}", [Code(RunFolder(run).recipe.read_text())])
                    for name, run in (VITS | {"the search": found} | TEXTS).items()
                ],
            ),
        ],
        subtitle="1,797 handwritten digits of scikit-learn, 50,000 numbers of num2words, Python's own documentation: "
        "models trained, tested, explained, and one of them searched.",
    )


def opening(vit: Path, explanations: list[Explanation], seconds: float) -> Section:
    """Show what it comes to."""
    report = RunFolder(vit).read_report()
    numbers = {
        "test accuracy": f"{report['test']['top1']:.1%}",
        "unseen digits": f"{report['test']['examples']}",
        "parameters": f"{report['parameters']:,}",
        "to train and test it all": f"{seconds:.0f} s",
    }
    shown = figures.attention_examples(
        [seen.image for seen in explanations],
        [seen.rollout for seen in explanations],
        ["{} {:.0%}".format(*seen.answer[0]) for seen in explanations],
    )
    caption = "One digit of each class, and where the class token looked: attention rollout."
    return Section("", [Numbers(numbers), Picture(shown, caption)])


def compare(runs: dict[str, Path], caption: str, alike: bool = False) -> Table:
    """Set runs beside each other; where they are `alike` but for noise, none is marked as the best."""
    most, least = (None, None) if alike else (max, min)
    columns: list[str | Column] = [
        "model",
        Column("test top-1", ".2%", most),
        Column("parameters", ",", least),
        Column("MMACs", ".2f", least),
        Column("epochs", "d"),
        Column("seconds", ".0f"),
    ]
    reports = {name: RunFolder(run).read_report() for name, run in runs.items()}
    rows = [
        [name, report["test"]["top1"], report["parameters"], report["macs"] / 1e6, report["epochs"], report["seconds"]]
        for name, report in reports.items()
    ]
    return Table(columns, rows, caption)


def searched(found: RunFolder) -> Section:
    """Show what the search found, whether it was worth it, and how it got there."""
    report, test = found.read_report(), RunFolder(GLITS["GLiT"]).read_report()["test"]
    budget = glocal.load_recipe(found.recipe).search.budget
    stages = json.loads((found.path / "candidates.json").read_text())
    judged = sum(stage["judged"] for stage in report["stages"].values())
    digit, deviation = 1 / test["examples"], math.sqrt(test["top1"] * (1 - test["top1"]) / test["examples"])
    return Section(
        "A searched GLiT",
        [
            Picture(
                figures.architecture(glocal.load(found.path).model.config.blocks),
                "What the search found. Global heads attend to all tokens, local ones are convolutions over a few in a "
                "row; each block has three heads, and an MLP of its own width.",
            ),
            Text(" ".join(report["reading"]["sentences"])),
            compare(
                GLITS,
                "Three models of the same cost, each trained once from nothing by the same recipe with the same seed. "
                f"The ViT is where both searches started; each judged {judged} candidates, the two stages together.",
                alike=True,
            ),
            Fold(
                "What the random search found",
                [
                    Picture(
                        figures.architecture(glocal.load(GLITS["GLiT, random search"]).model.config.blocks),
                        "The best of as many paths, drawn at random from the whole space within the same budget.",
                    )
                ],
            ),
            Text(
                f"On {test['examples']} test images one digit is {100 * digit:.1f} points, and the standard error of "
                f"an accuracy {100 * deviation:.1f}: differences of a point are noise. Each model was "
                "trained once; other seeds would move them all."
            ),
            Picture(
                figures.accuracy_against_cost(
                    stages,
                    budget.unit,
                    (report["found"]["cost"], report["finalists"][0]["inherited"]),
                    (budget.lower, budget.upper),
                ),
                "Every candidate, judged on training images held back for it, with weights that its stage shares: "
                "the stages do not compare. The budget's lower bound is for the second alone.",
            ),
            Picture(
                figures.accuracy_by_generation(
                    {name: [[accuracy for _, accuracy in each] for each in stage] for name, stage in stages.items()}
                ),
                "The best five of all generations so far breed the next: first heads, then details.",
            ),
        ],
    )


def translated(run: Path) -> Section:
    """Show what the Transformer makes of numbers that it has not seen, and where it looks meanwhile."""
    report, translator = RunFolder(run).read_report(), glocal.load(run)
    test, number = report["test"], "seven hundred and eighty-two thousand and five"
    sight = explain_translation(translator, number).attention["cross"]
    heads = [f"head {head}" for head in range(sight.weights.shape[1])]
    with (run / "translations.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, "excel-tab"))[1:]
    right = [[source, answer, "✓"] for source, reference, answer in rows[1000:] if answer == reference][:3]
    wrong = [[source, answer, "✗"] for source, reference, answer in rows if answer != reference][:2]
    return Section(
        "A Transformer translates",
        [
            Numbers(
                {
                    "unseen numbers said right, word for word": f"{test['exact']:.1%}",
                    "of so many": f"{test['examples']:,}",
                    "seconds of training": f"{report['seconds']:.0f}",
                }
            ),
            Table(
                ["English", "in Vietnamese, by the Transformer", ""], right + wrong, "Some it gets right, and wrong."
            ),
            Picture(
                figures.attention_words(sight.weights[-1], sight.queries, sight.keys, heads),
                "Cross-attention of the last block, a head each: which English words (columns) the decoder looks at as "
                "it writes each Vietnamese one (rows).",
            ),
        ],
    )


def guessed(run: Path) -> Section:
    """Show which words a BERT puts into gaps."""
    report, reader = RunFolder(run).read_report(), glocal.load(run)
    test = report["test"]
    rows = [
        [sentence, *(f"{word}\u00a0{probability:.0%}" for word, probability in answer)]
        for sentence, (answer,) in zip(SENTENCES, reader.predict(SENTENCES, top=3), strict=True)
    ]
    return Section(
        "A BERT fills gaps",
        [
            Numbers(
                {
                    "masked words found, in unseen documents": f"{test['accuracy']:.1%}",
                    "next sentences told from random ones": f"{test['next_accuracy']:.1%}",
                    "seconds of training": f"{report['seconds']:.0f}",
                }
            ),
            Table(
                ["a sentence", "first guess", "second", "third"],
                rows,
                "Learned from short texts that count: what stands on both sides of a gap tells what is missing.",
            ),
        ],
    )


def written(run: Path) -> Section:
    """Show how a GPT goes on writing."""
    report, writer = RunFolder(run).read_report(), glocal.load(run)
    drawn = DecodingConfig(temperature=0.5, extra_length=120, seed=1)
    lines = (PROMPT + writer.predict(PROMPT, drawn)[0].text).splitlines()
    return Section(
        "A GPT writes",
        [
            Numbers(
                {
                    "perplexity a token, in unseen documents": f"{report['test']['perplexity']:.0f}",
                    "of so many different tokens": f"{report['vocab_size']:,}",
                    "seconds of training": f"{report['seconds']:.0f}",
                }
            ),
            Code("\n".join(line for line in lines if line.strip())),
        ],
    )


def inside(vit: Path, explanations: list[Explanation]) -> list[Section]:
    """Show how the ViT learned, where it errs, and what it looks at."""
    test, model = RunFolder(vit).read_report()["test"], glocal.load(vit).model
    return [
        Section(
            "Training",
            [
                Picture(
                    figures.training_curves({name: RunFolder(run).history() for name, run in VITS.items()}),
                    "Loss (thin: training, bold: validation) and validation accuracy.",
                )
            ],
        ),
        Section(
            "Mistakes",
            [
                Picture(
                    figures.confusion_matrix(np.array(test["confusion"]), test["labels"]),
                    f"{test['examples']} test digits: rows are what they are, columns what the ViT at 24² reads.",
                )
            ],
        ),
        Section(
            "Heads",
            [
                Text("Each head of each layer asks its own question of the patches: what the class token sees."),
                Picture(figures.attention_heads(explanations[3].image, explanations[3].heads), "A 3, layer by layer."),
            ],
        ),
        Section(
            "Positions",
            [
                Text("Nothing tells the model that patches lie in rows and columns. Training does."),
                Picture(
                    figures.position_similarity(model.positions[0, model.num_prefix_tokens :], model.grid),
                    "How alike each position's embedding is to all others (Dosovitskiy et al. 2020, figure 7).",
                ),
            ],
        ),
    ]


def look_at_digits(run: Path) -> list[Explanation]:
    """Explain the first digit of each class in the data set."""
    digits, predictor = load_digits(), glocal.load(run)
    first = [int(np.argmax(digits.target == label)) for label in range(10)]
    with torch.no_grad():
        return [explain(predictor, (digits.images[index] * 255 / 16).astype(np.uint8)) for index in first]


if __name__ == "__main__":
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    try:
        learn_from_texts() if sys.argv[1:] == ["texts"] else main()
    except GlocalError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt as stop:
        sys.exit(f"demo: {str(stop) or 'stopped'}")

"""The demo: a small ViT learns handwritten digits, is tested, fine-tuned at a higher resolution, and explained.

Everything goes to runs/demo; the last line printed is the path of the report.
"""

import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

import glocal
from glocal.errors import GlocalError
from glocal.inference import figures
from glocal.inference.explain import Explanation, explain
from glocal.inference.page import Code, Column, Fold, Numbers, Picture, Section, Table, Text, write_page
from glocal.training import RunFolder

FOLDER = Path("runs/demo")


def main() -> None:
    start = time.perf_counter()
    shutil.rmtree(FOLDER, ignore_errors=True)

    step("a ViT learns digits from nothing")
    vit = glocal.train("vit-digits", {"run.dir": str(FOLDER / "vit")})
    minutes = RunFolder(vit).read_report()["seconds"] / 60

    step(f"a ResNet-18 learns the same digits for the same {minutes * 60:.0f} seconds")
    # In float32: oneDNN's bf16 convolutions over maps of one cell now and then give gradients that are not finite.
    budget = {"train.epochs": None, "train.minutes": minutes, "train.precision": "float32"}
    baseline = {"model.name": "timm:resnet18"} | budget
    resnet = glocal.train("vit-digits", baseline | {"run.dir": str(FOLDER / "resnet18")})

    step("the ViT goes on at a higher resolution: same patches, more of them")
    finetuned = glocal.train("vit-digits-finetune", {"model.from": str(vit), "run.dir": str(FOLDER / "finetuned")})

    runs = {"ViT": vit, "ViT at 24²": finetuned, "ResNet-18": resnet}
    for run in runs.values():
        glocal.test(run)
    report = write_report({name: RunFolder(run) for name, run in runs.items()}, time.perf_counter() - start)
    print(report.resolve())


def step(what: str) -> None:
    print(f"\n— {what}", file=sys.stderr)


def write_report(runs: dict[str, RunFolder], seconds: float) -> Path:
    """Draw what the three runs came to."""
    reports = {name: run.read_report() for name, run in runs.items()}
    vit = runs["ViT at 24²"]
    test, explanations = reports["ViT at 24²"]["test"], look_at_digits(vit.path)
    columns: list[str | Column] = [
        "model",
        Column("test top-1", ".2%", max),
        Column("parameters", ",", min),
        Column("MMACs", ".1f", min),
        Column("epochs", "d"),
        Column("seconds", ".0f"),
    ]
    rows = [
        [name, report["test"]["top1"], report["parameters"], report["macs"] / 1e6, report["epochs"], report["seconds"]]
        for name, report in reports.items()
    ]
    shown = figures.attention_examples(
        [seen.image for seen in explanations],
        [seen.rollout for seen in explanations],
        ["{} {:.0%}".format(*seen.answer[0]) for seen in explanations],
    )
    model = glocal.load(vit.path).model
    return write_page(
        FOLDER / "report.html",
        "A Vision Transformer reads digits",
        [
            Section(
                "",
                [
                    Numbers(
                        {
                            "test accuracy": f"{test['top1']:.1%}",
                            "unseen digits": f"{test['examples']}",
                            "parameters": f"{reports['ViT']['parameters']:,}",
                            "the whole demo": f"{seconds:.0f} s",
                        }
                    ),
                    Picture(shown, "One digit of each class, and where the class token looked: attention rollout."),
                ],
            ),
            Section(
                "Beside a ResNet",
                [
                    Table(
                        columns,
                        rows,
                        "The ResNet-18 (timm) learned from the same images in the same loop, for as long as the ViT "
                        "did. The second row goes on from the first.",
                    )
                ],
            ),
            Section(
                "Training",
                [
                    Picture(
                        figures.training_curves({name: run.history() for name, run in runs.items()}),
                        "Loss (thin: training, bold: validation) and validation accuracy.",
                    )
                ],
            ),
            Section(
                "Mistakes",
                [
                    Picture(
                        figures.confusion_matrix(np.array(test["confusion"]), test["labels"]),
                        f"{test['examples']} test digits: rows are what they are, columns what the model reads.",
                    )
                ],
            ),
            Section(
                "Heads",
                [
                    Text("Each head of each layer asks its own question of the patches: what the class token sees."),
                    Picture(
                        figures.attention_heads(explanations[3].image, explanations[3].heads), "A 3, layer by layer."
                    ),
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
            Section(
                "How", [Fold(f"The recipe of {name}", [Code(run.recipe.read_text())]) for name, run in runs.items()]
            ),
        ],
        subtitle="1,797 handwritten digits of scikit-learn: trained, fine-tuned, tested, explained.",
    )


def look_at_digits(run: Path) -> list[Explanation]:
    """Explain the first digit of each class in the data set."""
    digits, predictor = load_digits(), glocal.load(run)
    first = [int(np.argmax(digits.target == label)) for label in range(10)]
    with torch.no_grad():
        return [explain(predictor, (digits.images[index] * 255 / 16).astype(np.uint8)) for index in first]


if __name__ == "__main__":
    try:
        main()
    except GlocalError as error:
        sys.exit(f"demo: {error}")

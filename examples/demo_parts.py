"""What the demo learns: each part's recipe, how fast it goes here, its training and its test.

Images and texts are two lanes, a process each on its half of the cores: small models gain little from a second core.
"""

import json
import math
import signal
import sysconfig
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from demo_plan import Part, Planned, plan, planned
from num2words import num2words

import glocal
from glocal.recipes import Recipe
from glocal.runner import search
from glocal.runner.model_source import Trainable, prepare
from glocal.search.paths import PathSamplingData, SupernetObjective
from glocal.search.space import full_space
from glocal.search.supernet import Supernet
from glocal.training import RunFolder
from glocal.training.pace import measure_pace

FOLDER = Path("runs/demo")
SAMPLE = FOLDER / "sample"
COUNTING = FOLDER / "counting.jsonl"
MEASURING = 6.0
"""Seconds that a lane measures."""

VIT = Part("ViT", "epochs", least=10, most=75, share=6, overhead=2)
RESNET = Part("ResNet-18", "epochs", least=4, most=16, share=1, overhead=0.2, needs=VIT.name)
FINER = Part("ViT at 24²", "epochs", least=3, most=20, share=1.5, overhead=1, needs=VIT.name)
GLIT = Part("GLiT search", "epochs", least=9, most=28, share=4, overhead=4)
TRANSFORMER = Part("Transformer", "steps", least=200, most=1600, share=4, overhead=270)
BERT = Part("BERT", "steps", least=400, most=2400, share=2, overhead=60)
GPT = Part("GPT", "steps", least=120, most=1200, share=4, overhead=130)

RUNS = {
    VIT.name: FOLDER / "vit",
    FINER.name: FOLDER / "finetuned",
    RESNET.name: FOLDER / "resnet18",
    GLIT.name: FOLDER / "search",
    TRANSFORMER.name: FOLDER / "numbers",
    BERT.name: FOLDER / "bert",
    GPT.name: FOLDER / "gpt",
}
FOUND = RUNS[GLIT.name] / "finalist-1"
START = FOLDER / "start"

# In float32: oneDNN's bf16 convolutions over maps of one cell now and then give gradients that are not finite.
RESNET_FIELDS = {"model.name": "timm:resnet18", "train.precision": "float32"}
GENERATIONS = {"search.retrain": 1, "search.evolution.generations": 4}
SUPERNET = 5 / 9
"""Epochs of each supernet for one of the finalist."""
NUMBERS_FIELDS = {"train.minutes": None, "train.batch_size": 1024, "train.lr": 3e-3}
BERT_FIELDS = {
    "data.source": str(COUNTING),
    "data.max_length": 32,
    "data.tokenizer.vocab_size": 300,
    "model.depth": 2,
    "model.embed_dim": 64,
    "train.minutes": None,
    "train.lr": 4e-3,
}
GPT_FIELDS = {
    "data.max_length": 128,
    "model.max_length": 128,
    "model.depth": 2,
    "model.embed_dim": 128,
    "model.dropout": 0.0,
    "model.attn_drop": 0.0,
    "train.batch_size": 8,
    "train.epochs": None,
    "train.lr": 4e-3,
    "train.schedule.warmup_epochs": 0.0,
}


@dataclass(frozen=True)
class Lesson:
    """A part, and what it takes to measure and to learn it."""

    part: Part
    about: str
    """What it does, after its name."""
    learn: Callable[[Planned], str]
    """Trains and tests, and returns what came of it."""
    recipe: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Of the recipe, beside its length."""
    sample: Mapping[str, Any] = field(default_factory=dict)
    """Fields that put a small data set in the place of a large one, for the measurement."""

    def measure(self, seconds: float) -> tuple[float, float]:
        """Return the seconds of a step and of a round, measured for about so many `seconds`."""
        length = {f"train.{self.part.unit}": 1} | ({"train.epochs": None} if self.part.unit == "steps" else {})
        recipe = glocal.load_recipe(self.recipe, dict(self.fields) | length | dict(self.sample))
        folder = RunFolder(SAMPLE / self.part.name)
        folder.path.mkdir(parents=True)
        trainable = prepare(recipe, folder)
        if self.part.name == GLIT.name:
            return measure_search(recipe, trainable, seconds)
        pace = measure_pace(trainable.model, trainable.objective, trainable.data, recipe.train, seconds)
        return pace.step, pace.epoch if self.part.unit == "epochs" else pace.step


def measure_search(recipe: Recipe, start: Trainable, seconds: float) -> tuple[float, float]:
    """Return the seconds of a supernet's step, and of a round: one epoch of the finalist, one of the start, and the
    epochs of the two supernets for each of these.
    """
    assert recipe.search is not None
    space = full_space(start.model.config.blocks, recipe.search.space)
    supernet = Supernet(start.model, space)
    task, data = SupernetObjective(start.objective, space), PathSamplingData(start.data, space, seed=0)
    pace = measure_pace(supernet, task, data, recipe.search.supernet, seconds)
    return pace.step, pace.epoch * (2 + 2 * SUPERNET * (1 - recipe.search.val_fraction))


def learn_vit(planned: Planned) -> str:
    """A ViT learns digits from nothing."""
    glocal.train("vit-digits", epochs(planned.rounds) | {"run.dir": str(RUNS[VIT.name])})
    return tested(RUNS[VIT.name])


def learn_resnet(planned: Planned) -> str:
    """A ResNet-18 learns the same digits; its epochs are long, so the first one measures best how many fit."""
    length = epochs(planned.rounds) | {"train.epochs": None, "train.minutes": planned.training / 60}
    glocal.train("vit-digits", RESNET_FIELDS | length | {"run.dir": str(RUNS[RESNET.name])})
    return tested(RUNS[RESNET.name])


def learn_finer(planned: Planned) -> str:
    """The ViT learns on at a higher resolution: same patches, more of them."""
    start = {"model.from": str(RUNS[VIT.name]), "run.dir": str(RUNS[FINER.name])}
    glocal.train("vit-digits-finetune", epochs(planned.rounds) | start)
    return tested(RUNS[FINER.name])


def learn_glit(planned: Planned) -> str:
    """A search finds a GLiT and trains it, and the ViT from which it started is trained alike."""
    length = epochs(planned.rounds)
    short = max(2, round(planned.rounds * SUPERNET))
    supernet = {"search.supernet.epochs": short, "search.supernet.schedule.warmup_epochs": warmup(short)}
    search("glit-digits", length | supernet | GENERATIONS | {"run.dir": str(RUNS[GLIT.name])})
    glocal.train("glit-digits", length | {"run.dir": str(START)})
    return f"a GLiT, {tested(FOUND)}; its start, a ViT, {tested(START)}; one seed does not rank them"


def learn_numbers(planned: Planned) -> str:
    """A Transformer learns to say numbers in Vietnamese."""
    length = steps(planned.rounds) | {"run.dir": str(RUNS[TRANSFORMER.name])}
    test = glocal.test(glocal.train("transformer-numbers-en-vi", NUMBERS_FIELDS | length))
    return f"{test['exact']:.1%} of {test['examples']:,} unseen numbers translated correctly"


def learn_counting(planned: Planned) -> str:
    """A BERT learns to fill gaps, from texts that count."""
    length = steps(planned.rounds) | {"run.dir": str(RUNS[BERT.name])}
    test = glocal.test(glocal.train("bert-pydoc", BERT_FIELDS | length))
    return f"{test['accuracy']:.1%} of the masked words found, in unseen texts"


def learn_writing(planned: Planned) -> str:
    """A GPT learns to write, from Python's documentation."""
    length = steps(planned.rounds) | {"run.dir": str(RUNS[GPT.name])}
    test = glocal.test(glocal.train("gpt-pydoc", GPT_FIELDS | length))
    return f"perplexity {test['perplexity']:.0f} a token; {math.exp(test['unigram_loss']):.0f} without context"


NUMBERS_SAMPLE = {"data.source": str(SAMPLE / "numbers.jsonl"), "data.languages": ["en", "vi"]}
TEXTS_SAMPLE = {"data.source": str(SAMPLE / "texts.jsonl")}
LANES = {
    "images": (
        Lesson(VIT, "learns to read digits", learn_vit, "vit-digits"),
        Lesson(GLIT, "chooses heads, then kernels and widths, and trains what it found", learn_glit, "glit-digits"),
        Lesson(FINER, "goes on from the ViT, with more patches", learn_finer, "vit-digits-finetune"),
        Lesson(RESNET, "learns to read the same digits", learn_resnet, "vit-digits", RESNET_FIELDS),
    ),
    "texts": (
        Lesson(BERT, "learns to fill gaps in texts that count", learn_counting, "bert-pydoc", BERT_FIELDS),
        Lesson(
            TRANSFORMER,
            "learns to say numbers in Vietnamese",
            learn_numbers,
            "transformer-numbers-en-vi",
            NUMBERS_FIELDS,
            NUMBERS_SAMPLE,
        ),
        Lesson(
            GPT, "learns to write like Python's documentation", learn_writing, "gpt-pydoc", GPT_FIELDS, TEXTS_SAMPLE
        ),
    ),
}
"""What each process learns, the most important first."""


def epochs(count: int) -> dict[str, Any]:
    """Fields of a training of some epochs."""
    return {"train.epochs": count, "train.schedule.warmup_epochs": warmup(count)}


def steps(count: int) -> dict[str, Any]:
    """Fields of a training of some steps."""
    return {"train.steps": count, "train.schedule.warmup_steps": min(100, count // 10)}


def warmup(epochs: int) -> float:
    """Epochs of the warm-up: the recipes' four, but a tenth of a shorter training."""
    return min(4.0, epochs / 10)


def tested(run: Path) -> str:
    """Test a classifier of digits, and say its accuracy with its standard error."""
    test = glocal.test(run)
    error = standard_error(test["top1"], test["examples"])
    return f"{test['top1']:.1%} ± {100 * error:.1f} of {test['examples']} unseen digits"


def standard_error(share: float, examples: int) -> float:
    """Standard error of a share of so many examples."""
    return math.sqrt(share * (1 - share) / examples)


def write_texts() -> None:
    """Write the texts that count, and small samples of what is slow to prepare, for the measurement."""
    SAMPLE.mkdir(parents=True)
    said = [num2words(number) for number in range(1001)]
    documents = (  # each goes on where the one before it ended: no two share a sentence
        " ".join(f"After {said[number]} comes {said[number + 1]}." for number in range(start, start + 4))
        for start in range(0, 1000, 4)
    )
    write_rows(COUNTING, [{"text": document} for document in documents])
    drawn = range(1_000, 1_000_000, 1_000_000 // 1_500)
    numbers = [{language: num2words(number, lang=language) for language in ("en", "vi")} for number in drawn]
    write_rows(SAMPLE / "numbers.jsonl", numbers)
    library = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:20]
    write_rows(SAMPLE / "texts.jsonl", [{"text": file.read_text("utf-8")} for file in library])


def write_rows(file: Path, rows: list[dict[str, str]]) -> None:
    """Write a row as a line of JSON."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@dataclass(frozen=True)
class Measured:
    """A lane's first message."""

    step: dict[str, float]
    """Seconds of a step of each part; of a search, of its supernet."""
    pace: dict[str, float]
    """Seconds of a round."""


@dataclass(frozen=True)
class Started:
    """A part begins."""

    planned: Planned
    about: str


@dataclass(frozen=True)
class Finished:
    """A part is done, or left out after all."""

    planned: Planned
    seconds: float
    result: str


@dataclass(frozen=True)
class Ended:
    """A lane is done."""


@dataclass(frozen=True)
class Failed:
    """A lane has ended by an error, whose traceback is in its log."""

    reason: str


Message = Measured | Started | Finished | Ended | Failed


def work(lane: str, main: Connection) -> None:
    """Measure a lane's parts, receive the time at which it ends, and learn; the process that this is started in ends.

    What the library prints goes to a log.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes, and the main one ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    with (FOLDER / f"{lane}.log").open("w", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        try:
            lessons = LANES[lane]
            measured = {lesson.part.name: lesson.measure(MEASURING / len(lessons)) for lesson in lessons}
            pace = {name: round for name, (_, round) in measured.items()}
            main.send(Measured({name: step for name, (step, _) in measured.items()}, pace))
            follow(lessons, pace, main.recv(), main)
            main.send(Ended())
        except (KeyboardInterrupt, BrokenPipeError, EOFError):
            print("stopped")
        except Exception as error:
            traceback.print_exc()
            main.send(Failed(str(error)))


def follow(lessons: tuple[Lesson, ...], pace: dict[str, float], end: float, main: Connection) -> None:
    """Learn one part after the other until the time `end`; before each, plan anew with what the clock has left.

    Where a part took longer than planned, half of that (in logarithms) is expected of those that follow.
    """
    slowness = 1.0
    missing: set[str] = set()
    for place, lesson in enumerate(lessons):
        name = lesson.part.name
        expected = {each: slowness * seconds for each, seconds in pace.items()}
        ahead = [other.part for other in lessons[place:] if other.part.needs not in missing]
        now = time.time()
        plans = {each.part.name: each for each in plan(ahead, expected, end - now)}
        mine = plans.get(name, planned(lesson.part, 0, expected[name]))
        if mine.rounds:
            main.send(Started(mine, lesson.about))
            result = lesson.learn(mine)
            taken = time.time() - now
            slowness *= math.sqrt(taken / mine.seconds)
            main.send(Finished(mine, taken, result))
        else:
            missing.add(name)
            main.send(Finished(mine, 0.0, ""))

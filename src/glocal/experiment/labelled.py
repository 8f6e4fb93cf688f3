"""Fine-tuning on labelled texts: a class for each, a tag for each word, an answer to each question, a completion.

What is fine-tuned was pre-trained (`--from`), and brings its tokenizer with it.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from glocal.data.splits import describe_splits
from glocal.data.text import Texts, Tokenizer, open_completions, open_questions, open_sentences, open_tagged
from glocal.errors import GlocalError, shortened
from glocal.experiment.images import by_class
from glocal.experiment.origin import Origin
from glocal.files import write_table
from glocal.inference import Answerer, TextGenerator, figures, load
from glocal.inference.texts import TextPredictor
from glocal.models import Model, load_model
from glocal.ops import Precision
from glocal.tasks import CausalLanguage, Classification, Spans, Tagging, squad_scores
from glocal.training import RunFolder, evaluate, open_accelerator, this_process
from glocal.training.interfaces import Task


class Job(ABC):
    """What a recipe asks for, ready to be trained."""

    head: ClassVar[str]
    unit: ClassVar[str] = "sentences"
    """What its examples are called."""
    speak = None

    def __init__(self, recipe: Any, run: RunFolder) -> None:
        origin = Origin.of(recipe)
        if origin.start is None and not Tokenizer.is_in(run.path):
            raise GlocalError(
                f"{recipe.name} goes on from a pre-trained model and its tokenizer; give --from RUN, or with a folder "
                "or a hub id"
            )
        with this_process().main_process_first():  # the first process writes the splits that the others read
            origin.bring_tokenizer(run)
            self.data = self.open(recipe.data, run, Tokenizer.load(run.path))
        self.task: Task = self.ask(recipe, self.data.labels)
        self.model = fit_head(origin, self.data.tokenizer, self.head, self.data.labels)
        origin.check_length(self.model, recipe.data.max_length)

    @staticmethod
    @abstractmethod
    def open(config: Any, run: RunFolder | None, tokenizer: Tokenizer, classes: list[str] | None = None) -> Texts[Any]:
        """Open a run's texts; without one, others to test a model on that knows these `classes`."""

    @staticmethod
    @abstractmethod
    def ask(recipe: Any, labels: Sequence[str]) -> Task:
        """Return the objective."""

    def describe(self) -> str:
        """Count the texts, and the classes where there are any."""
        sizes = {split: len(texts) for split, texts in self.data.splits.items()}
        classes = f", in {len(self.data.labels)} classes" if self.data.labels else ""
        return f"{self.data.config.source}: {describe_splits(sizes, self.unit)}{classes}"

    def report(self) -> dict[str, Any]:
        """What was left out, and why."""
        return {"texts": self.data.report}

    def save(self, folder: Path) -> None:
        """Write the tokenizer beside the model."""
        self.data.tokenizer.save(folder)

    @classmethod
    def test(cls, recipe: Any, run: RunFolder, source: str | None, precision: Precision | None) -> dict[str, Any]:
        """Return what the task measures on texts that were held out, or on others, and what answers are worth."""
        predictor = load(run.path, precision=precision or "float32")
        assert isinstance(predictor, TextPredictor)
        tokenizer, labels = predictor.tokenizer, predictor.model.labels
        if source is None:
            data = cls.open(recipe.data, run, tokenizer)
        else:
            data = cls.open(replace(recipe.data, source=source), None, tokenizer, labels or [])
        accelerator = open_accelerator("float32" if precision else recipe.train.precision)
        share = {"rank": accelerator.process_index, "world": accelerator.num_processes}
        batches = data.eval_batches("test", recipe.train.batch_size, **share)
        task = cls.ask(replace(recipe, task=type(recipe.task)()), data.labels)  # without a teacher: nothing is learnt
        metrics = evaluate(predictor.model, task, batches, accelerator)
        metrics |= {"examples": len(data.examples("test")), "source": data.config.source, "labels": data.labels}
        if accelerator.is_main_process:
            metrics |= cls.judge(recipe, run, predictor, data, metrics)
        accelerator.wait_for_everyone()
        return metrics

    @classmethod
    def judge(cls, recipe: Any, run: RunFolder, predictor: Any, data: Any, metrics: dict[str, Any]) -> dict[str, Any]:
        """Return what finished answers are worth, and keep or draw them."""
        return {}

    @staticmethod
    @abstractmethod
    def summary(test: dict[str, Any], run: RunFolder) -> Iterator[str]:
        """Say in a few lines what was measured."""


class SentencesJob(Job):
    """A class for each sentence, or pair."""

    head = "classification"

    @staticmethod
    def open(config: Any, run: RunFolder | None, tokenizer: Tokenizer, classes: list[str] | None = None) -> Texts[Any]:
        """Sentences and their classes."""
        return open_sentences(config, run.path if run else None, tokenizer, classes)

    @staticmethod
    def ask(recipe: Any, labels: Sequence[str]) -> Task:
        """Cross entropy, and a teacher's answers where there is one, who reads the same tokens."""
        teacher = recipe.task.teacher
        return Classification(recipe.task, len(labels), None if teacher is None else load_model(teacher))

    @classmethod
    def judge(cls, recipe: Any, run: RunFolder, predictor: Any, data: Any, metrics: dict[str, Any]) -> dict[str, Any]:
        """Draw which class is taken for which."""
        confusion = figures.confusion_matrix(np.array(metrics["confusion"]), data.labels)
        figures.save(confusion, run.figures / "confusion.png")
        return {}

    @staticmethod
    def summary(test: dict[str, Any], run: RunFolder) -> Iterator[str]:
        """Each class, and all of them together."""
        yield f"{test['examples']} test texts"
        yield from by_class(test)
        yield f"confusion matrix: {run.figures / 'confusion.png'}"


class TaggedJob(Job):
    """A tag for each word."""

    head = "tagging"

    @staticmethod
    def open(config: Any, run: RunFolder | None, tokenizer: Tokenizer, classes: list[str] | None = None) -> Texts[Any]:
        """Sentences of words, and their tags."""
        return open_tagged(config, run.path if run else None, tokenizer, classes)

    @staticmethod
    def ask(recipe: Any, labels: Sequence[str]) -> Task:
        """Cross entropy of words, F1 of entities."""
        return Tagging(labels)

    @classmethod
    def judge(cls, recipe: Any, run: RunFolder, predictor: Any, data: Any, metrics: dict[str, Any]) -> dict[str, Any]:
        """Name the kinds of entities that the metrics are by."""
        return {"types": Tagging(data.labels).types}

    @staticmethod
    def summary(test: dict[str, Any], run: RunFolder) -> Iterator[str]:
        """Each kind of entity, and all of them together; of other tags, the words."""
        yield f"{test['examples']} test sentences, {test['accuracy']:.2%} of their words tagged right"
        if test["types"]:
            width = max(14, *(len(shortened(kind, 40)) + 2 for kind in test["types"]))
            yield f"{'entities':{width}}precision   recall       F1"
            overall = [test[name] for name in ("precision", "recall", "f1")]
            for kind, scores in zip([*test["types"], "all"], [*test["by_type"], overall], strict=True):
                yield f"{shortened(kind, 40):{width}}" + "".join(f"{100 * score:9.2f}" for score in scores)


class QuestionsJob(Job):
    """Where the answer stands."""

    head = "spans"
    unit = "questions"

    @staticmethod
    def open(config: Any, run: RunFolder | None, tokenizer: Tokenizer, classes: list[str] | None = None) -> Texts[Any]:
        """Questions, their contexts, and the spans of their answers."""
        return open_questions(config, run.path if run else None, tokenizer, testing=run is None)

    @staticmethod
    def ask(recipe: Any, labels: Sequence[str]) -> Task:
        """Cross entropy of both ends."""
        return Spans()

    @classmethod
    def judge(
        cls, recipe: Any, run: RunFolder, predictor: Answerer, data: Any, metrics: dict[str, Any]
    ) -> dict[str, Any]:
        """Score finished answers as SQuAD does, and write them down."""
        asked = data.questions("test")
        found = predictor.predict(
            [(each.question, each.context) for each in asked],
            max_length=data.config.max_length,
            stride=data.config.stride,
            may_have_none=any(not each.answers for each in asked),
        )
        answers = [spans[0].text if spans else "" for spans in found]
        rows = ([each.question, " | ".join(each.answers), answer] for each, answer in zip(asked, answers, strict=True))
        write_table(run.path / "answers.tsv", ["question", "answers", "answer"], rows)
        return squad_scores(answers, [each.answers for each in asked]) | {"questions": len(asked)}

    @staticmethod
    def summary(test: dict[str, Any], run: RunFolder) -> Iterator[str]:
        """SQuAD's two scores."""
        yield f"{test['questions']} test questions: exact match {test['exact_match']:.2f}, F1 {test['f1']:.2f}"
        yield f"answers: {run.path / 'answers.tsv'}"


class CompletionsJob(Job):
    """What is written after each prompt."""

    head = "language"
    unit = "prompts"

    @staticmethod
    def open(config: Any, run: RunFolder | None, tokenizer: Tokenizer, classes: list[str] | None = None) -> Texts[Any]:
        """Prompts and their completions."""
        return open_completions(config, run.path if run else None, tokenizer, testing=run is None)

    @staticmethod
    def ask(recipe: Any, labels: Sequence[str]) -> Task:
        """Cross entropy of the completion's tokens."""
        return CausalLanguage()

    @classmethod
    def judge(
        cls, recipe: Any, run: RunFolder, predictor: TextGenerator, data: Any, metrics: dict[str, Any]
    ) -> dict[str, Any]:
        """Complete every prompt, and count what comes out as it was to be."""
        asked = data.examples("test")
        answers = [each.text.strip() for each in predictor.predict([each.prompt for each in asked], recipe.decoding)]
        rows = ([*each, answer] for each, answer in zip(asked, answers, strict=True))
        write_table(run.path / "answers.tsv", [*data.config.columns, "answer"], rows)
        right = [each.completion.strip() == answer for each, answer in zip(asked, answers, strict=True)]
        return {"exact": sum(right) / len(right)}

    @staticmethod
    def summary(test: dict[str, Any], run: RunFolder) -> Iterator[str]:
        """What came out as it was to be, and what its tokens cost."""
        yield f"{test['examples']} test prompts, {test['exact']:.2%} of their completions letter by letter"
        yield f"perplexity {test['perplexity']:.3f} a token"
        yield f"answers: {run.path / 'answers.tsv'}"


def fit_head(origin: Origin, tokenizer: Tokenizer, head: str, labels: list[str]) -> Model:
    """Load what was pre-trained with the head that is asked for; it starts anew where it knows other classes."""
    fitting: dict[str, Any] = {"head": head, "num_classes": len(labels) or 2}  # a span has two: its start, its end
    model = origin.build(tokenizer, **fitting)
    if labels and model.labels not in (None, labels):
        model = origin.build(tokenizer, **fitting, ignore_keys="head.classifier.*")
    model.labels = labels or None
    return model

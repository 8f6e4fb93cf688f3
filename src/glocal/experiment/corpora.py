"""Pre-training on documents: BERT guesses masked words and whether a sentence follows, GPT the next token."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from glocal.data.splits import describe_splits
from glocal.data.text import CorpusConfig, Packed, Tokenizer, open_masked, open_packed
from glocal.data.text.documents.rows import Rows
from glocal.experiment.origin import Origin
from glocal.inference import DecodingConfig, TextGenerator
from glocal.models import Model, load_model
from glocal.ops import Precision
from glocal.recipes import CausalRecipe, MaskedRecipe
from glocal.tasks import CausalLanguage, MaskedLanguage
from glocal.tasks.tokens import TokenTask
from glocal.training import RunFolder, evaluate, open_accelerator, this_process

SAMPLE = DecodingConfig(temperature=0.8, extra_length=60)
PROMPT = 12
"""Tokens of a document that the progress log's samples go on from."""


class Job(ABC):
    """What a recipe asks for, ready to be trained."""

    head: ClassVar[str]
    task: TokenTask
    speak: Any = None

    def __init__(self, recipe: MaskedRecipe | CausalRecipe, run: RunFolder) -> None:
        origin = Origin.of(recipe)
        with this_process().main_process_first():  # the first process learns the vocabulary that the others read
            origin.bring_tokenizer(run)
            self.data = self.open(recipe.data, run)
        self.model: Model = origin.build(self.data.tokenizer, head=self.head, num_classes=2)
        origin.check_length(self.model, recipe.data.max_length)

    @staticmethod
    @abstractmethod
    def open(config: Any, run: RunFolder | None, tokenizer: Tokenizer | None = None) -> Rows:
        """Open a run's documents, or others to test its `tokenizer` on."""

    def describe(self) -> str:
        """Count the tokens, and how many different ones there are."""
        sizes, different = describe_splits(self.data.tokens, "tokens"), self.data.tokenizer.vocab_size
        return f"{self.data.config.source}: {sizes}, {different:,} different ones"

    def report(self) -> dict[str, Any]:
        """How much text there was, what was left out and why, and in how many different tokens."""
        return {"corpus": self.data.report, "vocab_size": self.data.tokenizer.vocab_size}

    def save(self, folder: Path) -> None:
        """Write the tokenizer beside the model."""
        self.data.tokenizer.save(folder)

    @classmethod
    def test(
        cls, recipe: MaskedRecipe | CausalRecipe, run: RunFolder, source: str | None, precision: Precision | None
    ) -> dict[str, Any]:
        """Return what the task measures on documents that were held out, or on others.

        `unigram_loss` is what the same labels cost one who knows how often each token stands in this text, and nothing
        of what stands around it: the entropy of a token, in nats.
        """
        config = recipe.data if source is None else replace(recipe.data, source=source)
        data = cls.open(config, run) if source is None else cls.open(config, None, Tokenizer.load(run.model))
        accelerator = open_accelerator("float32" if precision else recipe.train.precision)
        share = {"rank": accelerator.process_index, "world": accelerator.num_processes}
        batches = data.eval_batches("test", recipe.train.batch_size, **share)
        metrics = evaluate(load_model(run.path), cls.task, batches, accelerator, precision)
        counts = np.bincount(data.columns["test"]["tokens"], minlength=data.tokenizer.vocab_size)
        known = counts[counts > 0] / counts.sum()
        unigram = -float((known * np.log(known)).sum())
        return metrics | {"unigram_loss": unigram, "tokens": data.tokens["test"], "source": config.source}

    @staticmethod
    def summary(test: dict[str, Any], run: RunFolder) -> Iterator[str]:
        """What a token costs, beside what it would cost one who reads nothing around it."""
        yield f"{test['tokens']:,} test tokens, whose unigram entropy is {test['unigram_loss']:.3f} nats"


class MaskedJob(Job):
    """BERT."""

    head = "pretraining"
    task = MaskedLanguage()

    @staticmethod
    def open(config: Any, run: RunFolder | None, tokenizer: Tokenizer | None = None) -> Rows:
        """Pairs of segments, some of their words masked."""
        return open_masked(config, run.path if run else None, tokenizer, testing=run is None)

    @staticmethod
    def summary(test: dict[str, Any], run: RunFolder) -> Iterator[str]:
        """Both objectives."""
        yield from Job.summary(test, run)
        yield f"masked words: {test['accuracy']:.2%} found, loss {test['masked_loss']:.3f} nats"
        yield f"next sentence: {test['next_accuracy']:.2%} told right, loss {test['next_loss']:.3f} nats"


class CausalJob(Job):
    """GPT."""

    head = "language"
    task = CausalLanguage()

    def __init__(self, recipe: CausalRecipe, run: RunFolder) -> None:
        super().__init__(recipe, run)
        self.asked = 0

    @staticmethod
    def open(config: CorpusConfig, run: RunFolder | None, tokenizer: Tokenizer | None = None) -> Packed:
        """Windows over the documents."""
        return open_packed(config, run.path if run else None, tokenizer, testing=run is None)

    def speak(self, model: Any) -> str:
        """Go on from a place in the validation split, another each time it is asked."""
        tokens = self.data.columns["val"]["tokens"]
        start = self.asked * self.data.config.max_length % max(len(tokens) - PROMPT, 1)
        self.asked += 1
        (prompt,) = self.data.tokenizer.decode([tokens[start : start + PROMPT].tolist()])
        device = str(next(model.parameters()).device)  # where it is trained
        (answer,) = TextGenerator(model, self.data.tokenizer, device).predict([prompt], SAMPLE)
        return f"{prompt}|{answer.text}"

    @staticmethod
    def summary(test: dict[str, Any], run: RunFolder) -> Iterator[str]:
        """The next token."""
        yield from Job.summary(test, run)
        yield f"loss {test['loss']:.4f} nats a token, perplexity {test['perplexity']:.3f}"
        yield f"next token: {test['accuracy']:.2%} told right"

"""Sentences and their translations: a model, its data and its task, each fitted to the others."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from glocal.data.splits import describe_splits
from glocal.data.text import Pairs, languages_of, open_pairs
from glocal.errors import shortened
from glocal.experiment.origin import Origin
from glocal.files import write_table
from glocal.inference import Translator, load
from glocal.inference.decoding import DecodingConfig
from glocal.models import Model
from glocal.ops import Precision
from glocal.recipes import TranslationRecipe
from glocal.tasks import Translation, bleu_chrf
from glocal.training import RunFolder, evaluate, open_accelerator, this_process

GREEDY = DecodingConfig(beams=1)
SHOWN = 100
"""Letters of a sentence in the progress log: an early translation may repeat a word until it has no room left."""


class Job:
    """What a recipe asks for, ready to be trained."""

    def __init__(self, recipe: TranslationRecipe, run: RunFolder) -> None:
        self.model, self.data = assemble(recipe, run)
        self.task = Translation(recipe.task)
        self.asked = 0

    def speak(self, model: Any) -> str:
        """Translate a sentence of the validation split, another each time it is asked."""
        pairs = self.data.texts("val")
        source, reference = pairs[self.asked % len(pairs)]
        self.asked += 1
        device = str(next(model.parameters()).device)  # where it is trained
        (answer,) = Translator(model, self.data.tokenizer, device).predict([source], GREEDY)
        mark = " ✓" if answer.text == reference else f"  (reference: {shortened(reference, SHOWN)})"
        return f"{shortened(source, SHOWN)} → {shortened(answer.text, SHOWN)}{mark}"

    def describe(self) -> str:
        """Count the pairs and the tokens that both languages share."""
        sizes = {split: len(pairs) for split, pairs in self.data.splits.items()}
        different = self.data.tokenizer.vocab_size
        return f"{self.data.config.source}: {describe_splits(sizes, 'sentence pairs')}, {different:,} different tokens"

    def report(self) -> dict[str, Any]:
        """Which pairs were left out and why, and how many tokens the two languages share."""
        return {"pairs": self.data.report, "vocab_size": self.data.tokenizer.vocab_size}

    def save(self, folder: Path) -> None:
        """Write the tokenizer beside the model."""
        self.data.tokenizer.save(folder)

    @staticmethod
    def test(
        recipe: TranslationRecipe, folder: RunFolder, source: str | None, precision: Precision | None
    ) -> dict[str, Any]:
        """Return what `tasks.Translation` measures token by token, and BLEU and chrF of what the model writes.

        translations.tsv keeps every source, reference and translation.
        """
        translator = load(folder.path, precision=precision or "float32")
        assert isinstance(translator, Translator)
        config = recipe.data
        if source is None:
            data = open_pairs(config, folder.path)
        else:
            config = replace(config, source=source, languages=languages_of(config))
            data = open_pairs(config, tokenizer=translator.tokenizer)
        accelerator = open_accelerator("float32" if precision else recipe.train.precision)
        share = {"rank": accelerator.process_index, "world": accelerator.num_processes}
        batches = data.eval_batches("test", recipe.train.batch_size, **share)
        metrics = evaluate(translator.model, Translation(recipe.task), batches, accelerator)
        pairs = data.texts("test")
        if accelerator.is_main_process:
            sources = [source for source, _ in pairs]
            answers = translator.predict(sources, recipe.decoding, batch_size=128)  # on two cores, half the time of 32
            metrics |= bleu_chrf([answer.text for answer in answers], [reference for _, reference in pairs])
            rows = ([*pair, answer.text] for pair, answer in zip(pairs, answers, strict=True))
            write_table(folder.path / "translations.tsv", [*data.languages, "translation"], rows)
        accelerator.wait_for_everyone()
        return metrics | {"examples": len(pairs), "source": config.source}

    @staticmethod
    def summary(test: dict[str, Any], run: RunFolder) -> Iterator[str]:
        """BLEU and chrF with their signatures, without which they do not compare."""
        yield f"{test['examples']} test sentences, {test['exact']:.2%} of them word for word"
        yield f"BLEU {test['bleu']:.2f}  {test['bleu_signature']}"
        yield f"chrF {test['chrf']:.2f}  {test['chrf_signature']}"
        yield f"perplexity {test['perplexity']:.3f} a token"
        yield f"translations: {run.path / 'translations.tsv'}"


def assemble(recipe: TranslationRecipe, run: RunFolder) -> tuple[Model, Pairs]:
    """Build the recipe's model and open its data; the tokenizer decides the vocabulary.

    A model that was trained before (`model.from`) brings its tokenizer with it.
    """
    origin = Origin.of(recipe)
    with this_process().main_process_first():  # the first process learns the vocabulary that the others read
        origin.bring_tokenizer(run)
        data = open_pairs(recipe.data, run.path)
    model = origin.build(data.tokenizer)
    origin.check_length(model, recipe.data.max_length)
    return model, data

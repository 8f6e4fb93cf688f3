"""Translation of sentences by an encoder-decoder.

    Vaswani et al. 2017, *Attention Is All You Need*, section 5.4
    https://arxiv.org/abs/1706.03762

Translations are scored by BLEU (Papineni et al. 2002) and chrF (Popović 2015), with sacreBLEU's signatures (Post 2018,
*A Call for Clarity in Reporting BLEU Scores*).
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float, Int
from sacrebleu import BLEU, CHRF
from torch import Tensor, nn

from glocal.data.columns import Encoded
from glocal.data.dataset import TokenDataset, open_splits
from glocal.data.encoding import Batch, Row
from glocal.data.pairs import Pair, collate_pairs, languages_of, open_pairs
from glocal.data.text_config import SMALLEST_VOCABULARY, TextDataConfig
from glocal.data.tokenizer import Subwords, Tokenizer
from glocal.errors import GlocalError, check_range, printable, shortened
from glocal.explain import TranslationExplanation, explain_translation
from glocal.files import write_table
from glocal.generation import DecodingConfig, GenerationOutput, Hypothesis, cut_at_stop, max_length_of
from glocal.models import Model
from glocal.tasks.objective import TokenObjective
from glocal.tasks.predictor import split_list
from glocal.tasks.spec import TaskSpec, TestRun
from glocal.tasks.text_predictor import GeneratingTextPredictor, read_texts
from glocal.training.interfaces import Metrics
from glocal.training.run import RunFolder

# ----------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class TranslationDataConfig(TextDataConfig):
    """Sentence pairs, their languages and their vocabulary."""

    SHORTEST: ClassVar[int] = 2

    source: str = "numbers-en-vi"
    """`numbers-XX-YY`: numbers below a million, written out in any two languages of num2words; a TSV, CSV, JSONL or
    Parquet file; a folder of such files, or of aligned files SPLIT.LANGUAGE, each named after its split; `FILE,FILE`,
    two aligned files; or, where no such path exists, OWNER/NAME or OWNER/NAME/SUBSET of a data set of the hub. Text
    files may be gzipped."""
    languages: tuple[str, str] | None = None
    """Names of the two columns, or suffixes of the aligned files, the source language first. `numbers-XX-YY` needs
    none."""
    tokenizer: Literal["bpe", "unigram"] = "bpe"
    """How the vocabulary of both languages is learned: byte pair encoding (Sennrich et al. 2015), or a unigram language
    model (Kudo 2018)."""
    vocab_size: int = 8000
    """Tokens to learn; small texts have fewer."""
    max_length: int = 128
    """Tokens of the longest sentence, with its end token. A pair with a longer one is left out, and counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.languages and self.languages[0] == self.languages[1]:
            raise GlocalError(f"data.languages {list(self.languages)}; expected two, such as [en, vi]")
        if self.vocab_size < SMALLEST_VOCABULARY:
            raise GlocalError(
                f"data.vocab_size {self.vocab_size}; expected {SMALLEST_VOCABULARY} or more, for all bytes and 3 tokens"
            )


def open_data(
    config: TranslationDataConfig,
    run: Path | None = None,
    tokenizer: Tokenizer | None = None,
    model: Model | None = None,
) -> TokenDataset[Pair]:
    """Open sentence pairs (see `TaskSpec.open_data`); without a tokenizer, one is learned from the training pairs.

    Batches hold `input_ids` (B, S), `attention_mask` bool (B, S), `decoder_input_ids` (B, T), the begin token and
    the target, and `labels` (B, T), the target and the end token, -100 at padding.
    """
    languages = languages_of(config.source, config.languages)
    pairs = open_pairs(config.source, languages, config.seed, model is not None, run)
    splits = open_splits(pairs, config, run)

    def learn() -> Tokenizer:
        texts = (text for pair in pairs.sample(splits["train"]) for text in pair)
        return Subwords.train(texts, config.tokenizer, config.vocab_size)

    learned = tokenizer or Tokenizer.keep(run, learn)

    def encode(items: Sequence[Pair]) -> Encoded:
        sources = learned.encode([source for source, _ in items])
        targets = learned.encode([target for _, target in items], target=True)
        rows: list[list[Row]] = []
        dtype = np.uint16 if learned.vocab_size <= 2**16 else np.int32
        for source, target in zip(sources, targets, strict=True):
            fits = max(len(source), len(target)) <= config.max_length
            rows.append([{"input_ids": np.array(source, dtype), "labels": np.array(target, dtype)}] if fits else [])
        return Encoded(rows, {"overlong": sum(not row for row in rows)})

    collate = partial(collate_pairs, bos_id=learned.bos_id)
    return TokenDataset(
        config, pairs, splits, learned, encode, run, unit="sentence pairs", collate=collate, batch_of_tokens=True
    )


# ------------------------------------------------------------------------------------------------------------ objective


@dataclass(frozen=True)
class TranslationConfig:
    """The task of translating sentences."""

    name: Literal["translation"] = "translation"
    """The task, which decides the fields of the sections `data` and `task`."""

    label_smoothing: float = 0.1
    """Share of each token that is spread over the whole vocabulary (section 5.4: ε_ls)."""

    def __post_init__(self) -> None:
        check_range("task.label_smoothing", self.label_smoothing, least=0, below=1)


class TranslationObjective(TokenObjective):
    """Cross entropy of the target's tokens, each predicted from the source and from the tokens before it."""

    def __init__(self, config: TranslationConfig) -> None:
        self.label_smoothing = config.label_smoothing

    def predictions_and_targets(
        self, model: nn.Module, batch: Batch
    ) -> tuple[Float[Tensor, "batch target vocab"], Int[Tensor, "batch target"]]:
        """Return the logits at every token of the target, and the labels."""
        return model(batch["input_ids"], batch["decoder_input_ids"], batch["attention_mask"]), batch["labels"]


# ------------------------------------------------------------------------------------------------------------ predictor

SENTENCE_END = re.compile(r"(?<=[.!?…])\s+(?=\S)|(?<=[。！？])(?=\S)")
WORD_END = re.compile(r"\s+(?=\S)")


class Translator(GeneratingTextPredictor):
    """An encoder-decoder and its tokenizer."""

    head = "translation"
    json_key = "translations"

    def predict(
        self, texts: str | Iterable[str], decoding: DecodingConfig = DecodingConfig(), batch_size: int = 32
    ) -> list[GenerationOutput]:
        """Translate texts, in the order given.

        A text longer than the model's maximum is cut where its sentences end, or else between words, with a warning.
        Raises GlocalError if a single word is too long.
        """
        texts = read_texts(texts)
        parts_of_texts = [self._split(text, ids) for text, ids in zip(texts, self.tokenizer.encode(texts), strict=True)]
        if cut := sum(len(parts) > 1 for parts in parts_of_texts):
            warnings.warn(
                f"{cut} of {len(texts)} texts have more than the {max_length_of(self.model)} tokens that the model "
                "takes, and were translated in parts",
                stacklevel=2,
            )
        generated = self.generate([ids for parts in parts_of_texts for ids in parts], decoding, batch_size)
        return [self._join(parts, decoding) for parts in split_list(generated, map(len, parts_of_texts))]

    def stream(
        self,
        lines: Iterable[str],
        decoding: DecodingConfig = DecodingConfig(),
        batch_size: int = 32,
        chunk: int = 1024,
    ) -> Iterator[GenerationOutput]:
        """Translate any number of lines, `chunk` at a time."""
        lines = iter(lines)
        while texts := list(islice(lines, chunk)):
            yield from self.predict(texts, decoding, batch_size)

    def explain(self, sentence: str) -> TranslationExplanation:
        """Return the translation of a sentence, and the attention of every head."""
        (text,) = read_texts([sentence])
        return explain_translation(self, text)

    @staticmethod
    def format(given: str, result: GenerationOutput) -> str:
        """Return the translations, with a tab between them."""
        return "\t".join(printable(text) for text, _ in result.nbest)

    def _split(self, text: str, ids: list[int]) -> list[list[int]]:
        """Return the ids of a text, halved until each part fits the model; a blank text has no parts."""
        text = text.strip()
        if not text:
            return []
        if len(ids) <= max_length_of(self.model):
            return [ids]
        ends = [*SENTENCE_END.finditer(text)] or [*WORD_END.finditer(text)]
        if not ends:
            raise GlocalError(
                f"the word {text[:20]}... has {len(ids)} tokens, and the model takes {max_length_of(self.model)}; "
                "shorten it"
            )
        middle = min((end.end() for end in ends), key=lambda place: abs(place - len(text) / 2))
        first, second = text[:middle], text[middle:]
        first_ids, second_ids = self.tokenizer.encode([first, second])
        return self._split(first, first_ids) + self._split(second, second_ids)

    def _join(self, parts: list[list[Hypothesis]], decoding: DecodingConfig) -> GenerationOutput:
        """Join the best hypotheses of the parts of a text, the second best, ...; their scores are added."""
        nbest: list[tuple[str, float | None]] = []
        for hypotheses in zip(*parts, strict=False):  # a part may have fewer hypotheses than another
            texts = self.tokenizer.decode([hypothesis.ids for hypothesis in hypotheses])
            scores = [hypothesis.score for hypothesis in hypotheses if hypothesis.score is not None]
            joined = " ".join(cut_at_stop(text, decoding.stop) for text in texts)
            nbest.append((joined, sum(scores) if len(scores) == len(hypotheses) else None))
        text, score = nbest[0] if nbest else ("", 0.0)
        return GenerationOutput(text, score, nbest)


# ----------------------------------------------------------------------------------------------------------------- test


def bleu_chrf(translations: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Score translations against one reference each: corpus `bleu` and `chrf` by sacreBLEU, from 0 to 100.

    Only scores with equal `bleu_signature` or `chrf_signature` are comparable (Post 2018). `exact` is the share of
    translations that equal their reference. Raises GlocalError if the lists have different lengths.
    """
    if len(translations) != len(references) or not references:
        counts = f"{len(translations)} translations against {len(references)} references"
        raise GlocalError(f"{counts}; give one reference per translation, and at least one")
    bleu, chrf = BLEU(), CHRF()
    return {
        "bleu": bleu.corpus_score(translations, [references]).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf": chrf.corpus_score(translations, [references]).score,
        "chrf_signature": str(chrf.get_signature()),
        "exact": sum(map(str.__eq__, translations, references)) / len(references),
    }


SHOWN = 100
"""Characters of a sentence in the log; an untrained model may repeat a word up to the maximum length."""


def sample(model: nn.Module, data: TokenDataset[Pair], number: int) -> str:
    """Translate a sentence of the validation split, which depends on the number."""
    numbers = data.splits["val"]
    ((source, reference),) = data.source.read([numbers[number % min(len(numbers), 100)]])
    assert isinstance(model, Model)
    translator = Translator(model, data.tokenizer, str(next(model.parameters()).device))
    (result,) = translator.predict([source], DecodingConfig(beams=1))
    mark = " ✓" if result.text == reference else f"  (reference: {shortened(reference, SHOWN)})"
    return f"{shortened(source, SHOWN)} → {shortened(result.text, SHOWN)}{mark}"


def further_metrics(test: TestRun[TokenDataset[Pair], Translator]) -> Metrics:
    """Translate every test sentence, score the translations, and write translations.tsv."""
    pairs = test.data.examples("test")
    sources, references = [source for source, _ in pairs], [reference for _, reference in pairs]
    assert test.decoding is not None
    config = test.data.config
    assert isinstance(config, TranslationDataConfig)
    outputs = test.predictor.predict(sources, test.decoding, batch_size=128)  # twice as fast as 32 on two cores
    translations = [output.text for output in outputs]
    columns = [*languages_of(config.source, config.languages), "translation"]
    rows = ([*pair, translation] for pair, translation in zip(pairs, translations, strict=True))
    write_table(test.run.path / "translations.tsv", columns, rows)
    return bleu_chrf(translations, references)


def format_test(metrics: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield BLEU and chrF with their signatures, which say what they are comparable with."""
    yield f"{metrics['examples']} test sentences, {metrics['exact']:.2%} of the translations exactly right"
    yield f"BLEU {metrics['bleu']:.2f}  {metrics['bleu_signature']}"
    yield f"chrF {metrics['chrf']:.2f}  {metrics['chrf_signature']}"
    yield f"perplexity {metrics['perplexity']:.3f} per token"
    yield f"translations: {run.path / 'translations.tsv'}"


TRANSLATION = TaskSpec(
    name="translation",
    description="sentences → their translations",
    data=TranslationDataConfig,
    config=TranslationConfig,
    open_data=open_data,
    objective=lambda config, data, teacher: TranslationObjective(config),
    predictor=Translator,
    decoding=DecodingConfig(),
    further_metrics=further_metrics,
    format_test=format_test,
    sample=sample,
)

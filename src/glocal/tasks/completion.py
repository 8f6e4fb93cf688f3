"""Completion: prompts, and the texts that a model generates after them.

    Radford et al. 2019, *Language Models are Unsupervised Multitask Learners*, section 2

The objective and the predictor are the same as in causal language modelling; the prompt's tokens have no label.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from glocal.data.columns import Encoded
from glocal.data.dataset import TokenDataset, open_splits
from glocal.data.files import TABLES, Record, check_columns, compose, read_records
from glocal.data.labels import is_visible
from glocal.data.text_config import TextDataConfig
from glocal.data.text_sources import LeftOut, ReadingCache, examples_of
from glocal.data.tokenizer import Tokenizer
from glocal.files import write_table
from glocal.generation import DecodingConfig
from glocal.models import Model
from glocal.ops import IGNORED
from glocal.tasks.causal_lm import CausalLMConfig, CausalLMObjective, TextGenerator
from glocal.tasks.spec import TaskSpec, TestRun
from glocal.training.interfaces import Metrics
from glocal.training.run import RunFolder


@dataclass(frozen=True)
class CompletionDataConfig(TextDataConfig):
    """Prompts and their completions.

    `source` is a TSV or CSV with a header, a JSONL or Parquet file, a folder of them, or, where no such path exists,
    OWNER/NAME or OWNER/NAME/SUBSET of a data set of the hub. A prompt that is too long loses its beginning; such
    prompts are counted.
    """

    max_length: int = 512
    """Tokens of the longest prompt and completion together, with the end token."""
    columns: tuple[str, str] = ("prompt", "completion")
    """Names of the two columns. Nothing is put between prompt and completion: begin a completion with a space where its
    prompt ends without one."""


class Completion(NamedTuple):
    """A prompt and its completion."""

    prompt: str
    completion: str


def open_data(
    config: CompletionDataConfig,
    run: Path | None = None,
    tokenizer: Tokenizer | None = None,
    model: Model | None = None,
) -> TokenDataset[Completion]:
    """Open prompts and completions (see `TaskSpec.open_data`).

    Batches hold `input_ids`, `attention_mask` and `labels`, each (B, L). The label of a token is the next token, -100
    within the prompt; the last label is the end token.
    """
    assert tokenizer is not None
    examples = examples_of(
        config.source,
        TABLES,
        lambda path: read_examples(config, str(path), read_records(path)),
        "prompts",
        partial(read_examples, config),
        testing=model is not None,
        reasons=("misaligned", "empty"),
        reading_cache=ReadingCache.of(run, config.source, config),
    )

    def encode(items: Sequence[Completion]) -> Encoded:
        return encode_completions(tokenizer, items, config.max_length)

    splits = open_splits(examples, config, run)
    return TokenDataset(config, examples, splits, tokenizer, encode, run, unit="prompts")


def read_examples(config: CompletionDataConfig, name: str, records: Iterable[Record]) -> Iterator[Completion | LeftOut]:
    """Turn the records of a table into examples."""
    for number, record in enumerate(records):
        if number == 0:
            check_columns(name, record, config.columns, "data.columns")
        prompt, completion = (record.get(column) for column in config.columns)
        if not (isinstance(prompt, str) and isinstance(completion, str)):
            yield LeftOut("misaligned")
        elif not (is_visible(prompt) and is_visible(completion)):
            yield LeftOut("empty")
        else:
            yield Completion(compose(prompt), compose(completion))


def encode_completions(tokenizer: Tokenizer, items: Sequence[Completion], max_length: int) -> Encoded:
    """Encode prompts with their completions, in at most `max_length` tokens.

    A long prompt loses its beginning, down to one token; then the completion loses its end.
    """
    prompts = tokenizer.encodings([item.prompt for item in items], special=False)
    completions = tokenizer.encodings([item.completion for item in items], special=False)
    rows = []
    truncated = 0
    for before, after in zip(prompts, completions, strict=True):
        completion = [*after.ids, tokenizer.eos_id]
        prompt = before.ids[-max(max_length + 1 - len(completion), 1) :]
        ids = np.array([*prompt, *completion][: max_length + 1], dtype=np.int32)  # the last is only a label
        labels = ids[1:].copy()
        labels[: len(prompt) - 1] = IGNORED
        truncated += len(before.ids) + len(completion) > max_length + 1
        rows.append([{"input_ids": ids[:-1], "labels": labels}])
    return Encoded(rows, {"truncated": truncated})


def further_metrics(test: TestRun[TokenDataset[Completion], TextGenerator]) -> Metrics:
    """Complete every test prompt, count the exact completions, and write completions.tsv."""
    assert test.decoding is not None
    examples = test.data.examples("test")
    outputs = test.predictor.predict([example.prompt for example in examples], test.decoding)
    predictions = [output.text.strip() for output in outputs]
    pairs = list(zip(examples, predictions, strict=True))
    config = test.data.config
    assert isinstance(config, CompletionDataConfig)
    rows = ([*example, prediction] for example, prediction in pairs)
    write_table(test.run.path / "completions.tsv", [*config.columns, "prediction"], rows)
    right = [example.completion.strip() == prediction for example, prediction in pairs]
    return {"exact": sum(right) / len(right)}


def format_test(metrics: Metrics, run: RunFolder) -> Iterator[str]:
    """Yield the share of exact completions and the perplexity."""
    yield f"{metrics['examples']} test prompts, {metrics['exact']:.2%} of the completions exactly right"
    yield f"perplexity {metrics['perplexity']:.3f} per token"
    yield f"predicted completions: {run.path / 'completions.tsv'}"


COMPLETION = TaskSpec(
    name="completion",
    description="prompts → the texts after them",
    pipeline_tag="text-generation",
    data=CompletionDataConfig,
    config=CausalLMConfig,
    open_data=open_data,
    objective=lambda config, data, teacher: CausalLMObjective(),
    predictor=TextGenerator,
    needs_pretrained=True,
    decoding=DecodingConfig(beams=1),
    further_metrics=further_metrics,
    format_test=format_test,
)

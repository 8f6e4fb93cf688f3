"""Text regression: a number for each sentence, or pair of sentences, such as a rating or a similarity.

    Cer et al. 2017, *SemEval-2017 Task 1: Semantic Textual Similarity* (STS-B), https://arxiv.org/abs/1708.00055

The data is read as in text classification, with a number in place of the class; the objective is in
`glocal.tasks.regression`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glocal.data.columns import Encoded
from glocal.data.dataset import TokenDataset, open_splits
from glocal.data.labels import number
from glocal.data.tokenizer import Tokenizer
from glocal.models import Model
from glocal.tasks.regression import RegressionConfig, RegressionObjective, Regressor, format_test, root_of_error
from glocal.tasks.spec import TaskSpec
from glocal.tasks.text_classification import (
    LabelledText,
    TextClassificationDataConfig,
    TextLogits,
    encode_examples,
    open_examples,
)
from glocal.tasks.text_predictor import Text


@dataclass(frozen=True)
class TextRegressionDataConfig(TextClassificationDataConfig):
    """Sentences, or pairs of them, and the number of each; see text classification for the sources."""


def open_data(
    config: TextRegressionDataConfig,
    run: Path | None = None,
    tokenizer: Tokenizer | None = None,
    model: Model | None = None,
) -> TokenDataset[LabelledText]:
    """Open texts with numbers (see `TaskSpec.open_data`); batches are as in text classification, but `labels` float."""
    assert tokenizer is not None
    examples = open_examples(config, testing=model is not None, parse=number, are_classes=False, run=run)

    def encode(items: Sequence[LabelledText]) -> Encoded:
        return encode_examples(tokenizer, items, config.max_length, lambda item: np.array(item.label, dtype=np.float32))

    return TokenDataset(config, examples, open_splits(examples, config, run), tokenizer, encode, run, unit="sentences")


class TextRegressor(Regressor, TextLogits[float]):
    """A model with one output, and its tokenizer."""

    def predict(self, texts: Text | Iterable[Text], batch_size: int = 32) -> list[float]:
        """Return the number of each text, or of each pair of texts, which is a tuple, in the order given."""
        return self.logits(texts, batch_size)[:, 0].tolist()


TEXT_REGRESSION = TaskSpec(
    name="text-regression",
    description="texts, or pairs of texts → a number",
    pipeline_tag="text-classification",
    data=TextRegressionDataConfig,
    config=RegressionConfig,
    open_data=open_data,
    objective=lambda config, data, teacher: RegressionObjective(),
    predictor=TextRegressor,
    problem_type="regression",
    num_outputs=1,
    needs_pretrained=True,
    further_metrics=root_of_error,
    format_test=format_test,
)

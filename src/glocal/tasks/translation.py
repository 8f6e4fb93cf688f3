"""A sentence for a sentence: learnt a token at a time, judged by the words.

    Vaswani et al. 2017, *Attention Is All You Need*, section 5.4
    https://arxiv.org/abs/1706.03762

Finished text is judged by BLEU (Papineni et al. 2002) and chrF (Popović 2015), whose settings a signature tells, as
Post 2018, *A Call for Clarity in Reporting BLEU Scores*, asks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from sacrebleu import BLEU, CHRF
from torch import Tensor, nn

from glocal.errors import GlocalError, check_range
from glocal.tasks.tokens import TokenTask


@dataclass(frozen=True)
class TranslationConfig:
    """What is asked of a translator."""

    name: Literal["translation"] = "translation"
    """The kind of task, by which a recipe knows its sections."""

    label_smoothing: float = 0.1
    """Share of each token that is spread over the whole vocabulary (section 5.4: ε_ls)."""

    def __post_init__(self) -> None:
        check_range("task.label_smoothing", self.label_smoothing, least=0, below=1)


class Translation(TokenTask):
    """The objective: the target's tokens, each from the source and from those before it.

    A batch holds `input_ids` and `attention_mask` (B, S), `decoder_input_ids` and `labels` (B, T); a label of -100 is
    padding and counts nowhere.
    """

    def __init__(self, config: TranslationConfig) -> None:
        self.label_smoothing = config.label_smoothing

    def answers(
        self, model: nn.Module, batch: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "batch target vocab"], Int[Tensor, "batch target"]]:
        """The model's logits at every token, the true ones before it given, and the labels."""
        return model(batch["input_ids"], batch["decoder_input_ids"], batch["attention_mask"]), batch["labels"]


def bleu_chrf(translations: Sequence[str], references: Sequence[str]) -> dict[str, float | str]:
    """Judge finished text, one reference a sentence: corpus `bleu` and `chrf` by sacreBLEU, from 0 to 100.

    `bleu_signature` and `chrf_signature` say how they were computed (Post 2018): scores compare where these are equal.
    `exact` is the share of sentences that are their reference, letter by letter. Raises GlocalError where the two lists
    do not pair up.
    """
    if len(translations) != len(references) or not references:
        raise GlocalError(
            f"{len(translations)} translations against {len(references)} references; give one reference a translation, "
            "and at least one"
        )
    bleu, chrf = BLEU(), CHRF()
    return {
        "bleu": bleu.corpus_score(translations, [references]).score,
        "bleu_signature": str(bleu.get_signature()),
        "chrf": chrf.corpus_score(translations, [references]).score,
        "chrf_signature": str(chrf.get_signature()),
        "exact": sum(map(str.__eq__, translations, references)) / len(references),
    }

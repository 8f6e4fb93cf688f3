"""The next token, from those before it.

    Radford et al. 2018, *Improving Language Understanding by Generative Pre-Training*, equation 1

It serves pre-training on packed documents, and completions, whose prompts are read but not learnt: labels of -100.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from glocal.ops import IGNORED, cross_entropy
from glocal.tasks.tokens import TokenTask, inputs


@dataclass(frozen=True)
class CausalConfig:
    """What is asked of a language model."""

    name: Literal["causal", "completion"] = "causal"
    """The kind of task, by which a recipe knows its sections: on documents, or on prompts and what follows them."""


class CausalLanguage(TokenTask):
    """The objective: a batch's `labels` (B, L) are the tokens that follow those of its `input_ids` (B, L)."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Cross entropy in nats, mean over the tokens that count, computed in float32.

        Where the processor would have to wait to learn how many these are, or torch.compile would break its graph, all
        tokens get logits.
        """
        if batch["labels"].device.type == "cpu" and not torch.compiler.is_compiling():
            return super().loss(model, batch)
        logits = model.logits(model.forward_features(**inputs(batch)))  # type: ignore[operator]
        return cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

    def answers(
        self, model: nn.Module, batch: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "tokens vocab"], Int[Tensor, " tokens"]]:
        """Logits and labels where there is a label: a prompt costs no product with the vocabulary."""
        real = batch["labels"] != IGNORED
        x = model.forward_features(**inputs(batch))  # type: ignore[operator]
        return model.logits(x[real]), batch["labels"][real]  # type: ignore[operator]

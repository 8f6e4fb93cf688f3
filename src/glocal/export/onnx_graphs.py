"""Models as functions of tensors alone, which a graph can hold; `onnx_steps` has those with a cache.

Inputs have the names and types that others expect of ONNX files: `input_ids` and `attention_mask` in int64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glocal.models import BERT, GPT, Baseline, Transformer, ViT

Inputs = dict[str, Tensor | list[Tensor]]
"""Arguments of a graph's module by their names: tensors, and lists of them."""
Axes = dict[str, dict[int, str] | list[dict[int, str]]]
"""Names of the axes of each argument that vary, as `torch.export` takes them."""
TOKENS = 512
"""Tokens of the longest example where a model has no longest text of its own."""


@dataclass(frozen=True)
class Graph:
    """One file: a module, and what is known of its inputs and outputs."""

    name: str
    """Of the file."""
    module: nn.Module
    example: Callable[[int, int], Inputs]
    """`example(batch, tokens)` returns arguments of that size; images have a size of their own."""
    axes: Axes
    inputs: list[str]
    """Names of the inputs: of each argument, or of each tensor of one that is a list."""
    outputs: list[str]
    """Names of the outputs."""
    longest: int = TOKENS
    """Tokens that it takes at most."""


# --------------------------------------------------------------------------------------------------------------- inputs


def some_ids(model: BERT | GPT | Transformer, batch: int, tokens: int) -> Tensor:
    """Return ids of all kinds."""
    return torch.randint(model.config.vocab_size, (batch, tokens))


def some_mask(batch: int, tokens: int) -> Tensor:
    """Return a mask of texts of unequal lengths, the first one the longest, padded on the right."""
    lengths = torch.arange(tokens, tokens - batch, -1).clamp(min=1)
    return (torch.arange(tokens) < lengths[:, None]).long()


def text_axes(*names: str) -> Axes:
    """Return the axes of ids and masks (B, N)."""
    return {name: {0: "batch", 1: "tokens"} for name in names}


# --------------------------------------------------------------------------------------------------------- one function


def image_graph(model: ViT | Baseline) -> Graph:
    """Pixel values (B, C, H, W) → logits (B, K)."""
    config = model.config
    height, width = config.image_size
    return Graph(
        name="model",
        module=model,
        example=lambda batch, tokens: {"pixel_values": torch.randn(batch, config.in_chans, height, width)},
        axes={"pixel_values": {0: "batch"}},
        inputs=["pixel_values"],
        outputs=["logits" if config.num_classes else "features"],
    )


class BERTFunction(nn.Module):
    """BERT with a mask of integers; of spans, the two logits apart."""

    def __init__(self, model: BERT) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, ...]:
        """Return the logits."""
        logits = self.model(input_ids, attention_mask != 0, token_type_ids)
        return logits.unbind(dim=-1) if self.model.config.head == "spans" else (logits,)


def bert_graph(model: BERT) -> Graph:
    """Ids, mask and segments (B, N) → logits, by head: (B, K), (B, N, K), (B, N, V); of spans, two of (B, N)."""
    names = ["input_ids", "attention_mask", "token_type_ids"]

    def example(batch: int, tokens: int) -> Inputs:
        segments = (torch.arange(tokens) >= tokens // 2).long() % model.config.type_vocab_size
        given = some_ids(model, batch, tokens), some_mask(batch, tokens), segments.repeat(batch, 1)
        return dict(zip(names, given, strict=True))

    spans = model.config.head == "spans"
    features = model.config.head == "classification" and not model.config.num_classes
    outputs = ["start_logits", "end_logits"] if spans else ["features" if features else "logits"]
    return Graph("model", BERTFunction(model), example, text_axes(*names), names, outputs, model.config.max_length)


class ClassifierFunction(nn.Module):
    """A GPT that classifies, with a mask of integers."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits."""
        return self.model(input_ids, attention_mask != 0)


def classifier_graph(model: GPT) -> Graph:
    """Ids and mask (B, N) → logits (B, K)."""

    def example(batch: int, tokens: int) -> Inputs:
        return {"input_ids": some_ids(model, batch, tokens), "attention_mask": some_mask(batch, tokens)}

    names = ["input_ids", "attention_mask"]
    axes = text_axes(*names)
    return Graph("model", ClassifierFunction(model), example, axes, names, ["logits"], model.config.max_length)


class TranslationFunction(nn.Module):
    """The Transformer with a mask of integers."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:
        """Return the logits."""
        return self.model(input_ids, decoder_input_ids, attention_mask != 0)


def transformer_graph(model: Transformer) -> Graph:
    """Source and mask (B, N), target (B, M) → logits (B, M, V)."""

    def example(batch: int, tokens: int) -> Inputs:
        return {
            "input_ids": some_ids(model, batch, tokens),
            "attention_mask": some_mask(batch, tokens),
            "decoder_input_ids": some_ids(model, batch, tokens + 1),
        }

    axes = text_axes("input_ids", "attention_mask") | {"decoder_input_ids": {0: "batch", 1: "decoder_tokens"}}
    longest = model.config.max_length - 1
    return Graph("model", TranslationFunction(model), example, axes, [*axes], ["logits"], longest)

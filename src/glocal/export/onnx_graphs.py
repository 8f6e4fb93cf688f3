"""Models as functions of tensors alone, which a graph can hold: named inputs and outputs, and a cache that is returned.

Names and types are those that others expect of ONNX files: int64 for ids and masks, `past_key_values.0.key` and
`present.0.key` for the keys and values of a block.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from glocal.layers.attention import Cache, KeysValues
from glocal.layers.block import Block, BlockList
from glocal.models import BERT, GPT, Baseline, Model, Transformer, ViT

Inputs = dict[str, Any]
"""Arguments of a graph's module by their names: tensors, and lists of them."""
TOKENS = 512
"""Tokens of the longest example where a model has no longest text of its own."""


@dataclass(frozen=True)
class Graph:
    """One file: a module, and what is known of its inputs and outputs."""

    name: str
    """Of the file."""
    module: nn.Module
    example: Callable[[int, int], Inputs]
    """`example(batch, tokens)` returns inputs of that size; images have a size of their own."""
    axes: dict[str, Any]
    """Names of the axes that vary, as `torch.export` takes them."""
    outputs: list[str]
    """Names of the outputs."""
    longest: int = TOKENS
    """Tokens that it takes at most."""

    def names(self) -> list[str]:
        """Return the names of the inputs; those of a list's tensors are of keys and values."""
        listed = {"past": "past_key_values", "context": "encoder"}
        found = self.example(2, 2)
        return [
            one
            for name, value in found.items()
            for one in (cache_names(listed[name], len(value) // 2) if isinstance(value, list) else [name])
        ]


def graphs_of(model: Model, cache: bool) -> list[Graph]:
    """Return the graphs of a model: all of it, and with `cache` what generates token by token."""
    if isinstance(model, ViT | Baseline):
        return [image_graph(model)]
    if isinstance(model, BERT):
        return [bert_graph(model)]
    if isinstance(model, GPT) and model.config.head == "classification":
        return [classifier_graph(model)]
    if isinstance(model, GPT):
        return [gpt_graph(model, cache), *([gpt_step_graph(model)] if cache else [])]
    assert isinstance(model, Transformer)
    return [transformer_graph(model), *([encoder_graph(model), decoder_step_graph(model)] if cache else [])]


# --------------------------------------------------------------------------------------------------------------- inputs


def some_ids(model: Any, batch: int, tokens: int) -> Tensor:
    """Return ids of all kinds."""
    return torch.randint(model.config.vocab_size, (batch, tokens))


def some_mask(batch: int, tokens: int) -> Tensor:
    """Return a mask of texts of unequal lengths, the first the longest, padded behind."""
    lengths = torch.arange(tokens, tokens - batch, -1).clamp(min=1)
    return (torch.arange(tokens) < lengths[:, None]).long()


def cache_names(prefix: str, blocks: int) -> list[str]:
    """Return the names of the keys and values of blocks, in the order of the blocks."""
    return [f"{prefix}.{number}.{part}" for number in range(blocks) for part in ("key", "value")]


def text_axes(*names: str) -> dict[str, Any]:
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
    names = ("input_ids", "attention_mask", "token_type_ids")

    def example(batch: int, tokens: int) -> Inputs:
        segments = (torch.arange(tokens) >= tokens // 2).long() % model.config.type_vocab_size
        given = some_ids(model, batch, tokens), some_mask(batch, tokens), segments.repeat(batch, 1)
        return dict(zip(names, given, strict=True))

    spans = model.config.head == "spans"
    features = model.config.head == "classification" and not model.config.num_classes
    outputs = ["start_logits", "end_logits"] if spans else ["features" if features else "logits"]
    return Graph("model", BERTFunction(model), example, text_axes(*names), outputs, model.config.max_length)


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

    axes = text_axes("input_ids", "attention_mask")
    return Graph("model", ClassifierFunction(model), example, axes, ["logits"], model.config.max_length)


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
    return Graph("model", TranslationFunction(model), example, axes, ["logits"], longest)


# --------------------------------------------------------------------------------------------------------- with a cache


class GrowingCache(Cache):
    """A cache that becomes longer by concatenation, and is a function of what it was: what a graph can hold."""

    def append(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Add tokens, and return keys and values of all."""
        self.keys = torch.cat([self.keys, keys], dim=2)
        self.values = torch.cat([self.values, values], dim=2)
        self.length = self.keys.shape[2]
        return KeysValues(self.keys, self.values)


def caches_of(past: Sequence[Tensor]) -> list[GrowingCache]:
    """Return a cache for each two tensors, keys and values."""
    return [GrowingCache(keys, values, keys.shape[2]) for keys, values in pairs(past)]


def pairs(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values of each block."""
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def flat(caches: Iterable[Cache]) -> tuple[Tensor, ...]:
    """Return the keys and values of all blocks."""
    return tuple(chain.from_iterable((cache.keys, cache.values) for cache in caches))


def empty_past(blocks: BlockList, batch: int) -> list[Tensor]:
    """Return keys and values of no tokens, (B, H, 0, d_k), of each block."""
    return some_past(blocks, batch, 0)


def some_past(blocks: Iterable[Block], batch: int, tokens: int) -> list[Tensor]:
    """Return keys and values of so many tokens, (B, H, N, d_k), of each block."""
    past = []
    for block in blocks:
        like = block.new_cache(batch, tokens).keys
        past += [torch.randn_like(like), torch.randn_like(like)]
    return past


def past_axes(blocks: Sequence[Any], tokens: str) -> list[dict[int, str]]:
    """Return the axes of keys and values."""
    return [{0: "batch", 2: tokens} for _ in range(2 * len(blocks))]


class GPTFunction(nn.Module):
    """GPT over texts of one length, and its keys and values, for the single step to go on from."""

    def __init__(self, model: GPT, cache: bool) -> None:
        super().__init__()
        self.model = model
        self.cache = cache

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Return the logits, and with `cache` the keys and values of each block."""
        if not self.cache:
            return (self.model(input_ids),)
        caches = caches_of(empty_past(self.model.blocks, input_ids.shape[0]))
        return gpt_logits(self.model, input_ids, caches), *flat(caches)


class GPTStep(nn.Module):
    """One more token of each text."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, past: list[Tensor]) -> tuple[Tensor, ...]:
        """Return the logits, and the keys and values of all tokens."""
        caches = caches_of(past)
        return gpt_logits(self.model, input_ids, caches), *flat(caches)


def gpt_logits(model: GPT, input_ids: Tensor, caches: Sequence[Cache]) -> Tensor:
    """Return the logits of tokens that follow those in the caches, and add them there."""
    x = model.embed(input_ids, before=caches[0].length)
    for block, cache in zip(model.blocks, caches, strict=True):
        x = block(x, cache=cache)
    return model.logits(model.norm(x))


def gpt_graph(model: GPT, cache: bool) -> Graph:
    """Ids (B, N) → logits (B, N, V), and with `cache` the keys and values of each block."""
    outputs = ["logits", *(cache_names("present", len(model.blocks)) if cache else [])]
    return Graph(
        name="model",
        module=GPTFunction(model, cache),
        example=lambda batch, tokens: {"input_ids": some_ids(model, batch, tokens)},
        axes=text_axes("input_ids"),
        outputs=outputs,
        longest=model.config.max_length,
    )


def gpt_step_graph(model: GPT) -> Graph:
    """A token (B, 1), and the keys and values of those before it → logits (B, 1, V), keys and values of all."""
    return Graph(
        name="step",
        module=GPTStep(model),
        example=lambda batch, tokens: {
            "input_ids": some_ids(model, batch, 1),
            "past": some_past(model.blocks, batch, tokens),
        },
        axes={"input_ids": {0: "batch"}, "past": past_axes(model.blocks, "past_tokens")},
        outputs=["logits", *cache_names("present", len(model.blocks))],
        longest=model.config.max_length - 1,
    )


class EncoderFunction(nn.Module):
    """The encoder, and each decoder block's projection of what it returns."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Return the keys and values for the cross-attention of each block."""
        context = self.model.encode(input_ids, attention_mask != 0)
        return tuple(chain.from_iterable(block.keys_values(context) for block in self.model.decoder))


class DecoderStep(nn.Module):
    """One more token of each translation."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, decoder_input_ids: Tensor, attention_mask: Tensor, past: list[Tensor], context: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the logits, and the keys and values of all tokens of the translation."""
        mask = (attention_mask != 0)[:, None, None]
        caches = caches_of(past)
        x = self.model.embed(decoder_input_ids, start=caches[0].length)
        for block, cache, keys_values in zip(self.model.decoder, caches, pairs(context), strict=True):
            x = block(x, context=KeysValues(*keys_values), context_mask=mask, cache=cache)
        return self.model.logits(self.model.decoder_norm(x)), *flat(caches)


def encoder_graph(model: Transformer) -> Graph:
    """Source and mask (B, N) → the keys and values for each decoder block."""
    return Graph(
        name="encoder",
        module=EncoderFunction(model),
        example=lambda batch, tokens: {
            "input_ids": some_ids(model, batch, tokens),
            "attention_mask": some_mask(batch, tokens),
        },
        axes=text_axes("input_ids", "attention_mask"),
        outputs=cache_names("encoder", len(model.decoder)),
        longest=model.config.max_length,
    )


def decoder_step_graph(model: Transformer) -> Graph:
    """A token (B, 1), the source's mask, past and source as keys and values → logits (B, 1, V), keys and values."""

    def example(batch: int, tokens: int) -> Inputs:
        return {
            "decoder_input_ids": some_ids(model, batch, 1),
            "attention_mask": some_mask(batch, tokens + 1),
            "past": some_past(model.decoder, batch, tokens),
            "context": some_past(model.decoder, batch, tokens + 1),
        }

    return Graph(
        name="step",
        module=DecoderStep(model),
        example=example,
        axes={
            "decoder_input_ids": {0: "batch"},
            "attention_mask": {0: "batch", 1: "tokens"},
            "past": past_axes(model.decoder, "past_tokens"),
            "context": past_axes(model.decoder, "tokens"),
        },
        outputs=["logits", *cache_names("present", len(model.decoder))],
        longest=model.config.max_length - 1,
    )

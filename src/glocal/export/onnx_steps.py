"""Generative models with a cache of keys and values, as functions of tensors: the cache is an input and an output.

The keys of block 0 are called `past_key_values.0.key` as an input and `present.0.key` as an output, as others expect of
ONNX files.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor, nn

from glocal.export.onnx_graphs import Graph, Inputs, some_ids, some_mask, text_axes
from glocal.layers.attention import Cache, KeysValues
from glocal.layers.block import Block
from glocal.layers.mixer import MixerCache
from glocal.models import GPT, Transformer


class GrowingCache(Cache):
    """A cache that becomes longer by concatenation, and is a function of what it was: what a graph can hold."""

    def append(self, keys: Tensor, values: Tensor) -> KeysValues:
        """Add tokens, and return keys and values of all."""
        self.keys = torch.cat([self.keys, keys], dim=2)
        self.values = torch.cat([self.values, values], dim=2)
        self.length = self.keys.shape[2]
        return KeysValues(self.keys, self.values)


def caches_of(past: Sequence[Tensor]) -> list[MixerCache]:
    """Return a cache for each two tensors, keys and values."""
    return [MixerCache(GrowingCache(keys, values, keys.shape[2]), None) for keys, values in pairs(past)]


def pairs(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values of each block."""
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def flat(caches: Iterable[MixerCache]) -> tuple[Tensor, ...]:
    """Return the keys and values of all blocks."""
    attentions = [cache.attention for cache in caches if cache.attention is not None]
    return tuple(chain.from_iterable((cache.keys, cache.values) for cache in attentions))


def length_of(caches: Sequence[MixerCache]) -> int:
    """Return the tokens in the caches."""
    first = caches[0].attention
    return 0 if first is None else first.length


def some_past(blocks: Iterable[Block], batch: int, tokens: int) -> list[Tensor]:
    """Return keys and values of so many tokens, (B, H, N, d_k), of each block, all of whose heads are global."""
    caches = [block.new_cache(batch, tokens) for block in blocks]
    return [torch.randn_like(tensor) for tensor in flat(caches)]


def cache_names(prefix: str, blocks: int) -> list[str]:
    """Return the names of the keys and values of blocks, in the order of the blocks."""
    return [f"{prefix}.{number}.{part}" for number in range(blocks) for part in ("key", "value")]


def past_axes(blocks: int, tokens: str) -> list[dict[int, str]]:
    """Return the axes of keys and values."""
    return [{0: "batch", 2: tokens} for _ in range(2 * blocks)]


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
        caches = caches_of(some_past(self.model.blocks, input_ids.shape[0], 0))
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


def gpt_logits(model: GPT, input_ids: Tensor, caches: Sequence[MixerCache]) -> Tensor:
    """Return the logits of tokens that follow those in the caches, and add them there."""
    x = model.embed(input_ids, before=length_of(caches))
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
        inputs=["input_ids"],
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
        axes={"input_ids": {0: "batch"}, "past": past_axes(len(model.blocks), "past_tokens")},
        inputs=["input_ids", *cache_names("past_key_values", len(model.blocks))],
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
        x = self.model.embed(decoder_input_ids, start=length_of(caches))
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
        inputs=["input_ids", "attention_mask"],
        outputs=cache_names("encoder", len(model.decoder)),
        longest=model.config.max_length,
    )


def decoder_step_graph(model: Transformer) -> Graph:
    """A token (B, 1), the source's mask, past and source as keys and values → logits (B, 1, V), keys and values."""
    blocks = len(model.decoder)

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
            "past": past_axes(blocks, "past_tokens"),
            "context": past_axes(blocks, "tokens"),
        },
        inputs=[
            "decoder_input_ids",
            "attention_mask",
            *cache_names("past_key_values", blocks),
            *cache_names("encoder", blocks),
        ],
        outputs=["logits", *cache_names("present", blocks)],
        longest=model.config.max_length - 1,
    )

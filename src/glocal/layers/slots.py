"""Slots: a static cache whose rows hold texts of different lengths, which join and leave the batch.

Each text stands at the beginning of its row, so that a step costs what the texts are long, however many have come and
gone. The texts take the first rows; when one leaves, the last one may take its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from glocal.errors import GlocalError
from glocal.layers.attention import Cache, KeysValues
from glocal.layers.decoder import DecoderState
from glocal.layers.mixer import MixerCache


@dataclass
class SlotCache(Cache):
    """Keys and values of texts of different lengths; `length` is that of the longest."""

    pads: Int[Tensor, " texts"] = field(kw_only=True)
    """Tokens that each text has fewer than the longest."""

    @property
    def lengths(self) -> Int[Tensor, " texts"]:
        """Tokens of each text."""
        return self.length - self.pads

    def append(
        self, keys: Float[Tensor, "texts heads 1 d_k"], values: Float[Tensor, "texts heads 1 d_v"]
    ) -> KeysValues:
        """Add a token to each text, and return keys and values up to the longest text's end.

        Behind the end of a shorter text stands what a mask has to hide. Raises GlocalError where the cache is full.
        """
        end = self.end_of(1)
        rows = torch.arange(len(keys), device=keys.device)
        places = self.lengths
        self.keys[rows, :, places] = keys[:, :, 0]
        self.values[rows, :, places] = values[:, :, 0]
        self.length = end
        return KeysValues(self.keys[: len(rows), :, :end], self.values[: len(rows), :, :end])

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Replace the texts by those of the given rows. Only texts that change their row are copied."""
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().flatten()
        for tensor in (self.keys, self.values):
            tensor[moved, :, : self.length] = tensor[rows[moved], :, : self.length]
        self.set_lengths(self.lengths[rows])

    def add(self, text: Cache) -> None:
        """Add the text of a cache of one row. Raises GlocalError where all rows are taken."""
        row = len(self.pads)
        if row == len(self.keys):
            raise GlocalError(f"text {row + 1} in a cache of {row} rows; let one leave before the next joins")
        self.keys[row, :, : text.length] = text.keys[0, :, : text.length]
        self.values[row, :, : text.length] = text.values[0, :, : text.length]
        self.set_lengths(torch.cat([self.lengths, self.pads.new_tensor([text.length])]))

    def set_lengths(self, lengths: Int[Tensor, " new"]) -> None:
        """Say how many tokens each text has."""
        self.length = max(lengths.tolist(), default=0)
        self.pads = self.length - lengths


class SlotState(DecoderState):
    """State between two tokens of texts that join and leave: a row a text, in the order of the rows."""

    pads: Int[Tensor, " texts"]

    def __init__(self, caches: Sequence[MixerCache]) -> None:
        """Take empty caches of one block each, with a row for each slot."""
        none = torch.empty(0, dtype=torch.long, device=caches[0].device)
        super().__init__([_without_texts(cache, none) for cache in caches], none)

    @property
    def lengths(self) -> Int[Tensor, " rows"]:
        """Tokens of each text."""
        return self.length - self.pads

    def mask(self, new: int) -> Bool[Tensor, "rows 1 new keys"]:
        """Return True up to the end of each text, its new token included; `new` is 1."""
        key = torch.arange(self.length + new, device=self.pads.device)
        return (key <= self.lengths[:, None])[:, None, None]

    def token_mask(self, new: int) -> None:
        """Return None: each new token is its text's."""

    def add(self, text: DecoderState) -> None:
        """Add a text, the only one of its state. Raises GlocalError where all rows are taken."""
        for cache, own in zip(self.caches, text.caches, strict=True):
            if isinstance(cache.attention, SlotCache) and own.attention is not None:
                cache.attention.add(own.attention)
            if cache.local is not None and own.local is not None:
                self.stack = None  # their tensors are replaced
                for part, own_part in zip(cache.local.parts, own.local.parts, strict=True):
                    part.add(own_part)
        self._set_lengths(torch.cat([self.lengths, self.pads.new_tensor([text.length])]))

    def select(self, rows: Int[Tensor, " rows"], inputs: Int[Tensor, " inputs"] | None = None) -> None:
        """Keep the texts of these rows, in this order; `inputs`, those of other states, are the same here."""
        for cache in self.caches:
            cache.select(rows)
        self._set_lengths(self.lengths[rows])

    def _set_lengths(self, lengths: Int[Tensor, " new"]) -> None:
        """Set the tokens of each text."""
        self.length = max(lengths.tolist(), default=0)
        self.pads = self.length - lengths


def _without_texts(cache: MixerCache, none: Int[Tensor, "0"]) -> MixerCache:
    """Return an empty cache in which texts have slots."""
    attention = cache.attention
    if cache.local is not None:
        cache.local.select(none)
    if attention is None:
        return MixerCache(None, cache.local)
    # attention multiplies what a mask hides by 0, which has to be a number
    return MixerCache(SlotCache(attention.keys.zero_(), attention.values.zero_(), pads=none), cache.local)

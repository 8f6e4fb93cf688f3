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

    caches: Sequence[SlotCache]

    def __init__(self, caches: Sequence[Cache]) -> None:
        """Take empty caches of one block each, with a row for each slot."""
        pads = torch.empty(0, dtype=torch.long, device=caches[0].keys.device)
        # attention multiplies what a mask hides by 0, which has to be a number
        slots = [SlotCache(cache.keys.zero_(), cache.values.zero_(), pads=pads) for cache in caches]
        super().__init__(slots, pads)

    @property
    def lengths(self) -> Int[Tensor, " rows"]:
        """Tokens of each text."""
        return self.caches[0].lengths

    def mask(self, new: int) -> Bool[Tensor, "rows 1 new keys"]:
        """Return True up to the end of each text, its new token included; `new` is 1."""
        key = torch.arange(self.length + new, device=self.caches[0].pads.device)
        return (key <= self.lengths[:, None])[:, None, None]

    def add(self, text: DecoderState) -> None:
        """Add a text, the only one of its state. Raises GlocalError where all rows are taken."""
        for cache, own in zip(self.caches, text.caches, strict=True):
            cache.add(own)
        self.pads = self.caches[0].pads

    def select(self, rows: Int[Tensor, " rows"], inputs: Int[Tensor, " inputs"] | None = None) -> None:
        """Keep the texts of these rows, in this order; `inputs`, those of other states, are the same here."""
        for cache in self.caches:
            cache.select(rows)
        self.pads = self.caches[0].pads

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
    """Keys and values of texts of different lengths in the first rows; `length` is the longest text's."""

    pads: Int[Tensor, " texts"] = field(kw_only=True)
    """Tokens that each text has fewer than the longest."""

    def append(
        self, keys: Float[Tensor, "texts heads 1 d_k"], values: Float[Tensor, "texts heads 1 d_v"]
    ) -> KeysValues:
        """Add a token to each text, and return keys and values up to the longest text's end.

        Behind the end of a shorter text stands what a mask has to hide. Raises GlocalError if the cache is full.
        """
        end = self.end_of(1)
        rows = torch.arange(len(keys), device=keys.device)
        places = self.length - self.pads
        self.keys[rows, :, places] = keys[:, :, 0].to(self.keys.dtype)
        self.values[rows, :, places] = values[:, :, 0].to(self.values.dtype)
        self.length = end
        return KeysValues(self.keys[: len(rows), :, :end], self.values[: len(rows), :, :end])

    def put(self, rows: Int[Tensor, " rows"], source: Cache, source_rows: Int[Tensor, " rows"]) -> None:
        """Copy rows of a cache, which may be this one, into rows of this one."""
        self.keys[rows, :, : source.length] = source.keys[source_rows, :, : source.length]
        self.values[rows, :, : source.length] = source.values[source_rows, :, : source.length]


class SlotState(DecoderState):
    """State between two tokens of texts that join and leave. Each text has one of the first rows of the caches."""

    pads: Int[Tensor, " rows"]
    """Tokens that each text has fewer than the longest, which has `length`."""

    def __init__(self, caches: Sequence[MixerCache], slots: int) -> None:
        """Take an empty cache of each block, with a row for each of `slots` texts."""
        pads = torch.empty(0, dtype=torch.long, device=caches[0].device)
        super().__init__([_with_slots(cache, pads) for cache in caches], pads)
        self.slots = slots

    @property
    def lengths(self) -> Int[Tensor, " rows"]:
        """Tokens of each text."""
        return self.length - self.pads

    def mask(self, new: int) -> Bool[Tensor, "rows 1 new keys"]:
        """Return True up to the end of each text, its new token included; `new` is 1."""
        key = torch.arange(self.length + new, device=self.pads.device)
        return (key <= self.lengths[:, None])[:, None, None]

    def token_mask(self, new: int) -> None:
        """Return None: no row has padding in front of its text."""

    def add(self, text: DecoderState) -> None:
        """Add a text, the only one of its state. Raises GlocalError if all slots are taken."""
        lengths = self.lengths.tolist()
        if len(lengths) == self.slots:
            raise GlocalError(f"text {self.slots + 1} in {self.slots} slots; let a text leave before the next joins")
        row = torch.tensor([len(lengths)], device=self.pads.device)
        self._put(row, text.caches, torch.zeros_like(row))
        self._set_lengths([*lengths, text.length])

    def select(self, rows: Int[Tensor, " rows"], inputs: Int[Tensor, " inputs"] | None = None) -> None:
        """Keep the texts of these rows, in this order; only texts that change their row are copied.

        `inputs`, which other states leave out with their rows, are the same here.
        """
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero().flatten()
        self._put(moved, self.caches, rows[moved])
        self._set_lengths(self.lengths[rows].tolist())

    def _put(self, rows: Tensor, caches: Sequence[MixerCache], source_rows: Tensor) -> None:
        for own, source in zip(self.caches, caches, strict=True):
            if isinstance(own.attention, SlotCache) and source.attention is not None:
                own.attention.put(rows, source.attention, source_rows)
            if own.local is not None and source.local is not None:
                for part, other in zip(own.local.parts, source.local.parts, strict=True):
                    part.put(rows, other, source_rows)

    def _set_lengths(self, lengths: list[int]) -> None:
        self.length = max(lengths, default=0)
        self.pads = self.length - torch.tensor(lengths, dtype=torch.long, device=self.pads.device)
        for cache in self.caches:
            if isinstance(cache.attention, SlotCache):
                cache.attention.length = self.length
                cache.attention.pads = self.pads


def _with_slots(cache: MixerCache, pads: Int[Tensor, "0"]) -> MixerCache:
    """Return an empty cache as one whose rows may have different lengths."""
    if cache.attention is None:
        return cache
    # attention multiplies what a mask hides by 0, which has to be a number
    keys, values = cache.attention.keys.zero_(), cache.attention.values.zero_()
    return MixerCache(SlotCache(keys, values, pads=pads), cache.local)

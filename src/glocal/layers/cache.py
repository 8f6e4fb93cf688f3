"""Caches of heads that read few tokens: they keep only the last tokens of each row.

The tokens of all rows end at the same place of the buffer, however many tokens a row has had, so that rows of different
lengths share a batch. The places before a row's first token are zero, or marked as missing.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

SPARE = 32
"""Least number of further tokens that a new buffer holds before the last ones are moved to its front."""


@runtime_checkable
class RowCache(Protocol):
    """A cache with a row for each row of a batch."""

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Replace the rows by the given ones, each of which may occur once, never or many times."""

    def repeat(self, beams: int) -> None:
        """Replace each row by `beams` copies."""

    def advance(self) -> None:
        """Count a token that was written behind the last ones."""


class CacheGroup(ABC):
    """Caches of the same rows and tokens."""

    @property
    @abstractmethod
    def parts(self) -> Sequence[RowCache]:
        """The caches."""

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Replace the rows by the given ones, each of which may occur once, never or many times."""
        for part in self.parts:
            part.select(rows)

    def repeat(self, beams: int) -> None:
        """Replace each row by `beams` copies."""
        for part in self.parts:
            part.repeat(beams)

    def advance(self) -> None:
        """Count a token that was written behind the last ones."""
        for part in self.parts:
            part.advance()


@dataclass
class LastTokens:
    """The last `size` tokens of each row: `tokens[:, end - size : end]`.

    New tokens are written behind them. Where the buffer is full, the last `size` tokens are moved to its front; a
    buffer of 2 · `size` tokens needs that once in `size` tokens.
    """

    tokens: Shaped[Tensor, "rows slots *width"]
    size: int
    end: int

    @classmethod
    def zeros(cls, like: Tensor, rows: int, size: int, *width: int, dtype: torch.dtype | None = None) -> "LastTokens":
        """Return a buffer on the device of `like`, and of its type, in which the last tokens are zero."""
        tokens = like.new_zeros(rows, size + max(size + 1, SPARE), *width, dtype=dtype)
        return cls(tokens, size, size)

    def append(self, new: Shaped[Tensor, "rows new *width"]) -> Shaped[Tensor, "rows last_and_new *width"]:
        """Add tokens, and return the last `size` tokens and the new ones behind them; a view where they fit.

        Where the buffer has more rows than `new`, the tokens belong to the first rows.
        """
        count = new.shape[1]
        last = slice(self.reserve(count) - self.size, self.end)
        tokens = self.tokens[: len(new)]
        if self.end + count > tokens.shape[1]:  # more than the buffer holds
            last_and_new = torch.cat([tokens[:, last], new.to(tokens.dtype)], dim=1)
            tokens[:, last] = last_and_new[:, count:]
            return last_and_new
        tokens[:, self.end : self.end + count] = new
        self.end += count
        return tokens[:, last.start : self.end]

    def reserve(self, new: int = 1) -> int:
        """Move the last tokens to the buffer's front if `new` more do not fit; return the index of the next token."""
        if self.end + new > self.tokens.shape[1] and self.end >= 2 * self.size:  # front and end do not overlap
            self.tokens[:, : self.size] = self.tokens[:, self.end - self.size : self.end]
            self.end = self.size
        return self.end

    def advance(self) -> None:
        """Count a token that was written behind the last ones."""
        self.end += 1

    def share(self) -> "LastTokens":
        """Return a cache over the same memory, with a separate count of the tokens."""
        return replace(self)

    @property
    def parts(self) -> tuple["LastTokens", ...]:
        """Itself, as a `WindowCache` has three."""
        return (self,)

    def put(self, rows: Int[Tensor, " rows"], source: "LastTokens", source_rows: Int[Tensor, " rows"]) -> None:
        """Copy rows of a buffer of the same size, which may be this one, into rows of this one."""
        last = source.tokens[source_rows, source.end - source.size : source.end]
        self.tokens[rows, self.end - self.size : self.end] = last

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Replace the rows by the given ones, each of which may occur once, never or many times, in the same memory."""
        last = slice(self.end - self.size, self.end)
        self.tokens[: len(rows), last] = self.tokens[:, last].index_select(0, rows)
        self.tokens = self.tokens[: len(rows)]

    def repeat(self, beams: int) -> None:
        """Replace each row by `beams` copies."""
        self.tokens = self.tokens.repeat_interleave(beams, dim=0)


class Window(NamedTuple):
    """Keys and values of the last tokens and of the new ones, and which of them a row has."""

    keys: Float[Tensor, "rows heads tokens d_k"]
    values: Float[Tensor, "rows heads tokens d_v"]
    mask: Bool[Tensor, "rows 1 1 tokens"]


@dataclass
class WindowCache(CacheGroup):
    """Keys and values of the last W - 1 tokens of each row, for causal attention to W tokens."""

    keys: LastTokens
    values: LastTokens
    own: LastTokens
    """True at a row's own tokens, False at padding and where it has had fewer tokens."""

    @property
    def parts(self) -> tuple[LastTokens, ...]:
        """The three of them."""
        return self.keys, self.values, self.own

    def append(
        self,
        keys: Float[Tensor, "rows heads new d_k"],
        values: Float[Tensor, "rows heads new d_v"],
        mask: Bool[Tensor, "#rows 1 1 new"] | None = None,
    ) -> Window:
        """Add tokens, which are padding where the mask is False; return the last W - 1 tokens and the new ones."""
        if mask is None:
            mask = torch.ones(1, 1, 1, keys.shape[2], dtype=torch.bool, device=keys.device)
        return Window(
            self.keys.append(keys.transpose(1, 2)).transpose(1, 2),
            self.values.append(values.transpose(1, 2)).transpose(1, 2),
            self.own.append(mask[:, 0, 0].expand(len(keys), -1))[:, None, None],
        )

    def reserve(self) -> int:
        """Reserve space for one more token in each buffer, and return its index."""
        return max(part.reserve() for part in self.parts)

    def share(self) -> "WindowCache":
        """Return a cache over the same memory, with a separate count of the tokens."""
        return WindowCache(*(part.share() for part in self.parts))

"""Models that write, a token at a time: what decoding asks of them, and what those have in common that translate."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glocal import ops
from glocal.models.pretrained import Model


@runtime_checkable
class State(Protocol):
    """Where a model stands between two tokens: as many rows for each input, those of one together."""

    def select(self, rows: Int[Tensor, " rows"], inputs: Int[Tensor, " inputs"] | None = None, /) -> None:
        """Go on with these rows, and with fewer inputs where some are done."""


class Generative(Model, ABC):
    """A model that reads inputs once, and then writes token by token."""

    is_decoder_only: ClassVar[bool]
    """Whether what is written goes on from the input's last token, or stands apart from it, begun by `bos_id`."""

    @abstractmethod
    def start(
        self,
        input_ids: Int[Tensor, "inputs tokens"],
        attention_mask: Bool[Tensor, "inputs tokens"],
        beams: int,
        room: int,
    ) -> State:
        """Read inputs, but for a token that writing goes on from, and make room for `beams` texts of `room` tokens."""

    @abstractmethod
    def step(self, ids: Int[Tensor, " rows"], state: Any) -> Float[Tensor, "rows vocab"]:
        """Add a token to every row, and return the logits of the next."""


class EncoderDecoder(Generative):
    """An encoder that reads the source, a decoder that writes the target, and one matrix of embeddings for both.

    A family builds `embedding` and, where its config has one, `logit_bias`.
    """

    is_decoder_only = False
    embedding: nn.Embedding
    logit_bias: nn.Parameter | None

    @abstractmethod
    def forward_features(
        self,
        input_ids: Int[Tensor, "batch source"],
        decoder_input_ids: Int[Tensor, "batch target"],
        attention_mask: Bool[Tensor, "batch source"] | None = None,
    ) -> Float[Tensor, "batch target dim"]:
        """Refined tokens of the decoder, each of which has seen the source and those before it."""

    def forward(
        self,
        input_ids: Int[Tensor, "batch source"],
        decoder_input_ids: Int[Tensor, "batch target"],
        attention_mask: Bool[Tensor, "batch source"] | None = None,
    ) -> Float[Tensor, "batch target vocab"]:
        """Logits of the token that follows each of the decoder's; the mask is True at the source's own tokens."""
        return self.logits(self.forward_features(input_ids, decoder_input_ids, attention_mask))

    def logits(self, x: Float[Tensor, "batch target dim"]) -> Float[Tensor, "batch target vocab"]:
        """Ask the embeddings themselves: which token is most like what the decoder has made (Vaswani et al., 3.4)?"""
        return ops.linear(x, self.embedding.weight, self.logit_bias)

    def no_weight_decay(self) -> set[str]:
        """Names of matrices that are embeddings."""
        return {"embedding.weight"}

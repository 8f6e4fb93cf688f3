"""Models that generate text token by token: the interface of decoding, and what translation models have in common."""

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glocal import ops
from glocal.layers.decoder import DecoderState
from glocal.layers.encoder import BlockList
from glocal.layers.slots import SlotState
from glocal.models.base import Model


@runtime_checkable
class GenerationState(Protocol):
    """State of a model between two tokens. Each input has the same number of consecutive rows, one per beam."""

    def select(self, rows: Int[Tensor, " rows"], inputs: Int[Tensor, " inputs"] | None = None, /) -> None:
        """Keep these rows, and these inputs where some are finished."""


S = TypeVar("S", bound=GenerationState)


class Generative(Model, ABC, Generic[S]):
    """A model that reads inputs once, and then generates token by token."""

    is_decoder_only: ClassVar[bool]
    """Whether the generated text continues the input; otherwise it is another text, which starts with `bos_id`."""

    @abstractmethod
    def start(
        self,
        input_ids: Int[Tensor, "inputs tokens"],
        attention_mask: Bool[Tensor, "inputs tokens"],
        beams: int,
        max_new_tokens: int,
    ) -> S:
        """Read inputs, and return the state for `beams` texts of each, of up to `max_new_tokens` tokens.

        A decoder-only model does not read the last token, which is given to the first `step`.
        """

    @abstractmethod
    def step(self, ids: Int[Tensor, " rows"], state: S) -> Float[Tensor, "rows vocab"]:
        """Append a token to every row of the state, and return the logits of the next."""


class DecoderOnly(Generative[DecoderState]):
    """A stack of causal blocks, which continues its input. A family defines `blocks`."""

    is_decoder_only = True
    blocks: BlockList

    @abstractmethod
    def forward_cached(self, ids: Int[Tensor, "rows new"], state: DecoderState) -> Float[Tensor, "rows new dim"]:
        """Return the refined new tokens of every row, and add them to the caches."""

    def new_slots(self, slots: int, max_length: int) -> SlotState:
        """Return an empty state for up to `slots` texts of up to `max_length` tokens, which join it by `add`."""
        caches = [block.new_cache(slots, max_length) for block in self.blocks]
        return SlotState(caches, slots)


class EncoderDecoder(Generative[S]):
    """An encoder that reads the source, a decoder that generates the target, and one embedding matrix for both.

    A family defines `embedding` and `logit_bias`.
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
        """Return the refined tokens of the decoder, each of which depends on the source and on earlier tokens."""

    def forward(
        self,
        input_ids: Int[Tensor, "batch source"],
        decoder_input_ids: Int[Tensor, "batch target"],
        attention_mask: Bool[Tensor, "batch source"] | None = None,
    ) -> Float[Tensor, "batch target vocab"]:
        """Return the logits of the token after each of the decoder's; the mask is True at the source's own tokens."""
        return self.logits(self.forward_features(input_ids, decoder_input_ids, attention_mask))

    def logits(self, x: Float[Tensor, "batch target dim"]) -> Float[Tensor, "batch target vocab"]:
        """Return the logits; the output layer is tied to the embeddings (Vaswani et al. 2017, section 3.4)."""
        return ops.linear(x, self.embedding.weight, self.logit_bias)

    def no_weight_decay(self) -> set[str]:
        """Return the name of the embeddings."""
        return {"embedding.weight"}

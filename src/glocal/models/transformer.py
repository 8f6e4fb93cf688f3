"""The Transformer: attention is all you need.

    Vaswani et al. 2017, *Attention Is All You Need*
    https://arxiv.org/abs/1706.03762

Section 3 of the paper, in its order: an encoder refines the tokens of the source, each of which attends to all others.
A decoder generates the target: each of its tokens attends to earlier ones and, by cross-attention, to the source.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.layers.block import Block, BlockConfig, half_local, interleave_windows, uniform_blocks
from glocal.layers.decoder import DecoderState, decode
from glocal.layers.dropout import Dropout
from glocal.layers.encoder import BlockList
from glocal.layers.positions import SinusoidLayout, sinusoids
from glocal.models.base import check_ids
from glocal.models.config import check_tokens
from glocal.models.generative import EncoderDecoder


def _stack(
    embed_dim: int, depth: int, num_heads: int, dropout: float = 0.1, mlp_ratio: float = 4.0, **kind: bool
) -> tuple[BlockConfig, ...]:
    shape = {"embed_dim": embed_dim, "num_heads": num_heads, "dropout": dropout, "mlp_ratio": mlp_ratio}
    return uniform_blocks(depth, **shape, **kind, activation="relu", norm="post", norm_eps=1e-5)


@dataclass(frozen=True)
class TransformerConfig:
    """An architecture. The defaults are the base model's (Vaswani et al. 2017, table 3)."""

    vocab_size: int = 37000
    """Tokens that source and target share (section 5.1: byte pairs of English and German)."""
    max_length: int = 512
    """Tokens of the longest sentence. Positions are computed, so it may be longer than in training."""
    encoder: tuple[BlockConfig, ...] = _stack(512, 6, 8)
    """The encoder's blocks, post-norm as the paper's; pre-norm ones train without warm-up (Xiong et al. 2020)."""
    decoder: tuple[BlockConfig, ...] = _stack(512, 6, 8, causal=True, cross=True)
    """The decoder's."""
    positions: SinusoidLayout = "interleaved"
    """Order of sines and cosines in the vector of a position: in pairs (the paper), or in halves (its code, Marian)."""
    dropout: float = 0.1
    """Rate on the sum of embedding and position (section 5.4)."""
    logit_bias: bool = False
    """Whether each token has a bias before the softmax (Marian's models have)."""
    pad_id: int = 0
    """The token that pads the sentences of a batch."""
    bos_id: int = 1
    """The first token of the decoder."""
    eos_id: int = 2
    """The token that ends a sentence, source and target."""


def _transformer(
    embed_dim: int, depth: int, num_heads: int, dropout: float, mlp_ratio: float = 4.0
) -> TransformerConfig:
    shape = embed_dim, depth, num_heads, dropout, mlp_ratio
    return TransformerConfig(encoder=_stack(*shape), decoder=_stack(*shape, causal=True, cross=True), dropout=dropout)


def _stacks(change: Callable[[tuple[BlockConfig, ...]], tuple[BlockConfig, ...]]) -> TransformerConfig:
    """Return the tiny Transformer with both stacks changed."""
    return replace(TINY, encoder=change(TINY.encoder), decoder=change(TINY.decoder))


TINY = _transformer(128, 4, 4, 0.3, 2.0)  # for some ten thousand sentences; ours
NAMED_CONFIGS = {  #                            d_model N  heads P_drop d_ff
    "transformer-base":   _transformer(    512, 6,    8,  0.1),  # Vaswani et al. 2017, table 3
    "transformer-big":    _transformer(   1024, 6,   16,  0.3),
    "transformer-tiny":   TINY,
    # Baselines of a search, made by hand: half of the heads local; five blocks of windows to one of full attention.
    "transformer-tiny-half":    _stacks(partial(half_local, kernel_size=7)),
    "transformer-tiny-windows": _stacks(partial(interleave_windows, window=9)),
}  # fmt: skip


class Transformer(EncoderDecoder[DecoderState]):
    """Encoder and decoder with one embedding matrix, which is also the output layer (section 3.4).

    | part                     | initialised                                                      |
    | ------------------------ | ---------------------------------------------------------------- |
    | embeddings               | normal, σ = 1/√d_model, so that √d_model times them are of size 1 |
    | linear weights           | uniform, Glorot and Bengio 2010; of stacked ones, as one matrix  |
    | biases                   | 0                                                                |
    | kernels of local heads   | as torch's: uniform, ± 1/√K                                      |
    """

    family = "transformer"
    Config = TransformerConfig
    config: TransformerConfig
    positions: Tensor

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        dim = config.encoder[0].embed_dim
        if {block.embed_dim for block in config.encoder + config.decoder} != {dim}:
            raise GlocalError("encoder and decoder share their embeddings, so all blocks need the same embed_dim")
        encoder_has_cross = any(block.cross for block in config.encoder)
        if encoder_has_cross or not all(block.causal and block.cross for block in config.decoder):
            raise GlocalError("a decoder's blocks need causal=True and cross=True, and an encoder's cross=False")
        check_tokens(config, config.vocab_size)
        self.embedding = nn.Embedding(config.vocab_size, dim, padding_idx=config.pad_id)
        self.register_buffer("positions", sinusoids(config.max_length, dim, config.positions), persistent=False)
        self.drop = Dropout(config.dropout)
        self.encoder = BlockList(map(Block, config.encoder))
        self.decoder = BlockList(map(Block, config.decoder))
        self.encoder_norm, self.decoder_norm = (  # the output of pre-norm blocks is a sum that is not normalised
            nn.LayerNorm(dim, blocks[-1].norm_eps) if blocks[-1].norm == "pre" else nn.Identity()
            for blocks in (config.encoder, config.decoder)
        )
        self.logit_bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.logit_bias else None
        self.init_weights()

    def forward_features(
        self,
        input_ids: Int[Tensor, "batch source"],
        decoder_input_ids: Int[Tensor, "batch target"],
        attention_mask: Bool[Tensor, "batch source"] | None = None,
    ) -> Float[Tensor, "batch target dim"]:
        """Return the refined tokens of the decoder, each of which depends on the source and on earlier tokens."""
        mask = None if attention_mask is None else attention_mask[:, None, None]
        context = self.encode(input_ids, attention_mask)
        x = self.embed(decoder_input_ids)
        x = self.decoder(x, context=context, context_mask=mask)
        return self.decoder_norm(x)

    def encode(
        self, input_ids: Int[Tensor, "batch source"], attention_mask: Bool[Tensor, "batch source"] | None = None
    ) -> Float[Tensor, "batch source dim"]:
        """Return the refined tokens of the encoder; the mask is True at a sentence's own tokens."""
        mask = None if attention_mask is None else attention_mask[:, None, None]
        x = self.embed(input_ids)
        x = self.encoder(x, mask=mask, token_mask=attention_mask)
        return self.encoder_norm(x)

    def embed(self, ids: Int[Tensor, "batch tokens"], start: int = 0) -> Float[Tensor, "batch tokens dim"]:
        """Return √d_model times the embeddings, plus the positions from `start` on (sections 3.4 and 3.5).

        Raises GlocalError for a longer sentence than the config's.
        """
        check_ids(ids)
        end = start + ids.shape[1]
        if end > len(self.positions):
            raise GlocalError(
                f"a sentence of {end} tokens; this model takes {len(self.positions)}: split it, or load the model with "
                "another max_length"
            )
        x = self.embedding(ids) * math.sqrt(self.embedding.embedding_dim)
        return self.drop(x + self.positions[start:end].to(x.dtype))

    def start(
        self,
        input_ids: Int[Tensor, "sentences source"],
        attention_mask: Bool[Tensor, "sentences source"],
        beams: int,
        max_new_tokens: int,
    ) -> DecoderState:
        """Encode sentences, and return the state for `beams` translations of each, of up to `max_new_tokens` tokens."""
        context = self.encode(input_ids, attention_mask)
        rows = beams * len(input_ids)
        caches = [block.new_cache(rows, max_new_tokens) for block in self.decoder]
        contexts = [block.keys_values(context) for block in self.decoder]
        return DecoderState(caches, contexts=contexts, context_mask=attention_mask[:, None, None])

    def step(self, ids: Int[Tensor, " rows"], state: DecoderState) -> Float[Tensor, "rows vocab"]:
        """Append a token to every row of the state, and return the logits of the next."""
        x = decode(self.decoder, self.embed(ids[:, None], start=state.length), state)
        return self.logits(self.decoder_norm(x))[:, 0]

    def init_weights(self) -> None:
        """Initialise all weights as the table above says."""
        self.init_linears(self)
        nn.init.normal_(self.embedding.weight, std=self.embedding.embedding_dim**-0.5)

    def init_linears(self, part: nn.Module) -> None:
        """Initialise the linear layers of the model or of a part."""
        for module in part.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

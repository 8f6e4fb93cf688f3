"""The LSTM encoder-decoder with attention, which preceded the Transformer: a baseline for it.

    Bahdanau et al. 2015, *Neural Machine Translation by Jointly Learning to Align and Translate*
    https://arxiv.org/abs/1409.0473
    Luong et al. 2015, *Effective Approaches to Attention-based Neural Machine Translation*
    https://arxiv.org/abs/1508.04025

The encoder reads the source in both directions (Bahdanau et al., section 3.2). The decoder starts from its last states,
generates the target from left to right, and at each token attends to the whole source (Luong et al., section 3.1). The
attention's output is not an input of the next step (their section 3.3), so that in training the LSTM runs over the
whole target in one kernel.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from glocal import ops
from glocal.errors import GlocalError
from glocal.layers.attention import Mask, attention, attention_weights
from glocal.layers.dropout import Dropout
from glocal.models.base import check_ids
from glocal.models.config import check_tokens
from glocal.models.generative import EncoderDecoder


@dataclass(frozen=True)
class LSTMConfig:
    """An architecture. The defaults are those of Luong et al. 2015, section 4.1, with the Transformer's vocabulary."""

    vocab_size: int = 37000
    """Tokens that source and target share."""
    embed_dim: int = 1000
    """Width of an embedding, and of the input of the output layer, which is tied to the embeddings."""
    hidden_dim: int = 1000
    """Cells of a layer of the decoder; a layer of the encoder has half as many in each direction."""
    depth: int = 4
    """Layers of the encoder, and of the decoder."""
    dropout: float = 0.2
    """Rate on the embeddings, between layers, and before the softmax (Zaremba et al. 2014)."""
    pad_id: int = 0
    """The token that pads the sentences of a batch."""
    bos_id: int = 1
    """The first token of the decoder."""
    eos_id: int = 2
    """The token that ends a sentence, source and target."""


#                                         D_e   D_h   N  dropout
NAMED_CONFIGS = {
    "lstm-luong":   LSTMConfig(37000,    1000, 1000, 4, 0.2),  # Luong et al. 2015, section 4.1
    "lstm-base":    LSTMConfig(37000,     512, 1024, 3, 0.2),  # as many parameters as transformer-base; ours
    "lstm-tiny":    LSTMConfig(37000,     128,  224, 2, 0.3),  # as many as transformer-tiny; ours
}  # fmt: skip


class GlobalAttention(nn.Module):
    """Each token of the decoder attends to all of the encoder's: a_t(s) = softmax(h_tᵀ W_a h̄_s), c_t = Σ_s a_t(s) h̄_s.

    This is `general` of Luong et al. 2015, equations 7 and 8, except that scores are divided by √d as in the
    Transformer: W_a can undo it, and training starts where the softmax has a gradient.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = ops.Linear(dim, dim, bias=False)

    def forward(
        self, x: Float[Tensor, "batch queries dim"], context: Float[Tensor, "batch keys dim"], mask: Mask | None = None
    ) -> Float[Tensor, "batch queries dim"]:
        """Return c_t of each token of `x`; the mask is True where a token may attend."""
        tokens = context[:, None]  # one head
        return attention(self.score(x)[:, None], tokens, tokens, mask)[:, 0]

    def weights(
        self, x: Float[Tensor, "batch queries dim"], context: Float[Tensor, "batch keys dim"], mask: Mask | None = None
    ) -> Float[Tensor, "batch 1 queries keys"]:
        """Return the attention weights a_t(s) of the same arguments; every row sums to one."""
        return attention_weights(self.score(x)[:, None], context[:, None], mask)


HiddenStates = tuple[Float[Tensor, "layers rows hidden"], Float[Tensor, "layers rows hidden"]]
"""Output h and cells c of each layer of an LSTM after a token."""


@dataclass
class LSTMState:
    """State between two tokens. Each sentence has `beams` consecutive rows."""

    states: HiddenStates
    """Of the decoder's layers, for each row."""
    context: Float[Tensor, "sentences tokens hidden"]
    """Output of the encoder."""
    mask: Bool[Tensor, "sentences 1 1 tokens"]
    """True at the sentences' own tokens."""

    def select(self, rows: Int[Tensor, " rows"], sentences: Int[Tensor, " sentences"] | None = None) -> None:
        """Keep these rows, and these sentences where some are finished."""
        hidden, cells = self.states
        self.states = hidden[:, rows], cells[:, rows]
        if sentences is not None:
            self.context = self.context[sentences]
            self.mask = self.mask[sentences]


class LSTM(EncoderDecoder[LSTMState]):
    """Encoder and decoder with one embedding matrix, which is also the output layer, as in the Transformer.

    | part                     | initialised                                                       |
    | ------------------------ | ----------------------------------------------------------------- |
    | embeddings               | normal, σ = 1/√d, so that √d times them are of size 1             |
    | input and other weights  | uniform, Glorot and Bengio 2010                                   |
    | recurrent weights        | orthogonal, a gate at a time (Saxe et al. 2014)                   |
    | biases                   | 0, but 1 for the forget gates (Jozefowicz et al. 2015)            |
    """

    family = "lstm"
    Config = LSTMConfig
    config: LSTMConfig

    def __init__(self, config: LSTMConfig) -> None:
        super().__init__(config)
        dim = config.embed_dim
        hidden = config.hidden_dim
        if hidden % 2:
            raise GlocalError(f"hidden_dim {hidden} is odd; each of the encoder's two directions has half of it")
        between = config.dropout if config.depth > 1 else 0.0
        check_tokens(config, config.vocab_size)
        self.embedding = nn.Embedding(config.vocab_size, dim, padding_idx=config.pad_id)
        self.encoder = nn.LSTM(dim, hidden // 2, config.depth, batch_first=True, dropout=between, bidirectional=True)
        self.decoder = nn.LSTM(dim, hidden, config.depth, batch_first=True, dropout=between)
        self.cross = GlobalAttention(hidden)
        self.combine = ops.Linear(2 * hidden, dim, bias=False)
        self.drop = Dropout(config.dropout)
        self.logit_bias = None
        self.init_weights()

    def forward_features(
        self,
        input_ids: Int[Tensor, "batch source"],
        decoder_input_ids: Int[Tensor, "batch target"],
        attention_mask: Bool[Tensor, "batch source"] | None = None,
    ) -> Float[Tensor, "batch target dim"]:
        """Return h̃_t of each token of the decoder."""
        mask = None if attention_mask is None else attention_mask[:, None, None]
        context, states = self.encode(input_ids, attention_mask)
        return self.decode(decoder_input_ids, states, context, mask)[0]

    def encode(
        self, input_ids: Int[Tensor, "batch source"], attention_mask: Bool[Tensor, "batch source"] | None = None
    ) -> tuple[Float[Tensor, "batch source hidden"], HiddenStates]:
        """Return the outputs of both directions, concatenated, and their last states.

        The mask is True at a sentence's own tokens; neither direction reads the padding behind them.
        """
        x = self.embed(input_ids)
        if attention_mask is None:
            context, (hidden, cells) = self.encoder(x)
        else:
            lengths = attention_mask.sum(dim=1).cpu()
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            packed, (hidden, cells) = self.encoder(packed)
            context, _ = pad_packed_sequence(packed, batch_first=True, total_length=input_ids.shape[1])
        # (layers · directions, B, D/2) -> (layers, B, D)
        hidden, cells = (t.unflatten(0, (-1, 2)).transpose(1, 2).flatten(2) for t in (hidden, cells))
        return context, (hidden, cells)

    def decode(
        self,
        ids: Int[Tensor, "rows target"],
        states: HiddenStates,
        context: Float[Tensor, "sentences source hidden"],
        mask: Bool[Tensor, "sentences 1 1 source"] | None,
    ) -> tuple[Float[Tensor, "rows target dim"], HiddenStates]:
        """Return h̃_t = tanh(W_c [c_t; h_t]), equation 5, of each token, and the states after the last one."""
        h, states = self.decoder(self.embed(ids), states)
        c = self.cross(h.reshape(context.shape[0], -1, h.shape[-1]), context, mask).view_as(h)  # beams share a context
        return self.drop(self.combine(torch.cat([c, h], dim=-1)).tanh()), states

    def embed(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens dim"]:
        """Return √d times the embeddings, as in the Transformer."""
        check_ids(ids)
        return self.drop(self.embedding(ids) * self.config.embed_dim**0.5)

    def start(
        self,
        input_ids: Int[Tensor, "sentences source"],
        attention_mask: Bool[Tensor, "sentences source"],
        beams: int,
        max_new_tokens: int,
    ) -> LSTMState:
        """Encode sentences, and return the state for `beams` translations of each, whatever their length."""
        context, (hidden, cells) = self.encode(input_ids, attention_mask)
        states = hidden.repeat_interleave(beams, dim=1), cells.repeat_interleave(beams, dim=1)
        return LSTMState(states, context, attention_mask[:, None, None])

    def step(self, ids: Int[Tensor, " rows"], state: LSTMState) -> Float[Tensor, "rows vocab"]:
        """Append a token to every row of the state, and return the logits of the next."""
        x, state.states = self.decode(ids[:, None], state.states, state.context, state.mask)
        return self.logits(x)[:, 0]

    def init_weights(self) -> None:
        """Initialise all weights as the table above says."""
        for name, parameter in self.named_parameters():
            if "bias_ih" in name:
                nn.init.zeros_(parameter)
                nn.init.ones_(parameter.chunk(4)[1])  # gates: input, forget, cell, output
            elif "bias_hh" in name:
                nn.init.zeros_(parameter)
            elif "weight_hh" in name:
                for gate in parameter.chunk(4):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.embedding.weight, std=self.config.embed_dim**-0.5)

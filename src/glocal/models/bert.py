"""BERT: an encoder in which every token attends to all others, pre-trained on masked words.

    Devlin et al. 2018, *BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding*
    https://arxiv.org/abs/1810.04805
    Turc et al. 2019, *Well-Read Students Learn Better: On the Importance of Pre-training Compact Models*
    https://arxiv.org/abs/1908.08962

It is pre-trained to predict masked words, and whether one sentence follows another (section 3.1); with a new head it is
fine-tuned for other tasks (section 4).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glocal import ops
from glocal.errors import GlocalError
from glocal.layers.block import Block, BlockConfig, half_local, interleave_windows, uniform_blocks
from glocal.layers.dropout import Dropout
from glocal.layers.encoder import BlockList
from glocal.layers.heads import ClassificationHead, TokenHead
from glocal.layers.mlp import ACTIVATIONS
from glocal.layers.slicing import StateDict
from glocal.models.base import Model, check_ids
from glocal.models.config import check_tokens

Head = Literal["pretraining", "classification", "tagging", "spans"]


def _blocks(embed_dim: int, depth: int) -> tuple[BlockConfig, ...]:
    shape = {"embed_dim": embed_dim, "num_heads": embed_dim // 64}
    return uniform_blocks(depth, **shape, norm="post", norm_eps=1e-12, dropout=0.1, attn_drop=0.1)


@dataclass(frozen=True)
class BERTConfig:
    """An architecture and its head. The defaults are BERT-Base's (Devlin et al. 2018, section 3)."""

    vocab_size: int = 30522
    """Word pieces: 30,522 in the published uncased English vocabulary, 28,996 in the cased one."""
    max_length: int = 512
    """Tokens of the longest text: the number of learned position embeddings."""
    type_vocab_size: int = 2
    """Kinds of segments: sentence A and sentence B."""
    blocks: tuple[BlockConfig, ...] = _blocks(768, 12)
    """The encoder."""
    dropout: float = 0.1
    """Rate on the sum of the embeddings, and before a classifier."""
    head: Head = "pretraining"
    """Output: masked words and next sentence; the class of a text; the class of each token; start and end of a span."""
    num_classes: int = 2
    """Classes of a text or of a token; 2 for the other heads (next or not, start and end). 0 classes of a text are an
    encoder without a classifier, which returns the vector that the classifier would read."""
    pad_id: int = 0
    """The token that pads the texts of a batch, behind them."""


#                                      D    depth, with heads of 64
NAMED_CONFIGS = {
    "bert-base":   BERTConfig(),                          # Devlin et al. 2018, section 3
    "bert-large":  BERTConfig(blocks=_blocks(1024, 24)),
    "bert-tiny":   BERTConfig(blocks=_blocks( 128,  2)),  # Turc et al. 2019, table 1
    "bert-mini":   BERTConfig(blocks=_blocks( 256,  4)),
    "bert-small":  BERTConfig(blocks=_blocks( 512,  4)),
    "bert-medium": BERTConfig(blocks=_blocks( 512,  8)),
    # Baselines of a search, made by hand: half of the heads local, with the kernel of ConvBERT (Jiang et al. 2020);
    # five blocks of windows to one of full attention.
    "bert-mini-half":    BERTConfig(blocks=half_local(_blocks(256, 4), kernel_size=9)),
    "bert-mini-windows": BERTConfig(blocks=interleave_windows(_blocks(256, 4), window=33)),
}  # fmt: skip


class MLMHead(nn.Module):
    """The masked language model's head: a layer, then an output layer tied to the embeddings (the authors' code)."""

    def __init__(self, config: BERTConfig) -> None:
        super().__init__()
        block = config.blocks[-1]
        self.transform = ops.Linear(block.embed_dim, block.embed_dim)
        self.act = ACTIVATIONS[block.activation]()
        self.norm = nn.LayerNorm(block.embed_dim, block.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, x: Float[Tensor, "*tokens dim"], embeddings: Float[Tensor, "vocab dim"]
    ) -> Float[Tensor, "*tokens vocab"]:
        """Return the logits of the vocabulary; `embeddings` are the input's, to which the output layer is tied."""
        return ops.linear(self.norm(self.act(self.transform(x))), embeddings, self.bias)


class BERT(Model):
    """Token + segment + position → encoder → head.

    | part                     | initialised                                               |
    | ------------------------ | --------------------------------------------------------- |
    | weights and embeddings   | normal, σ = 0.02, cut at 2σ (the authors' code)           |
    | biases                   | 0                                                         |
    | kernels of local heads   | as torch's: uniform, ± 1/√K                               |
    """

    family = "bert"
    Config = BERTConfig
    config: BERTConfig

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config)
        dim = config.blocks[0].embed_dim
        if any(block.causal or block.cross or block.embed_dim != dim for block in config.blocks):
            raise GlocalError("a BERT's blocks need causal=False, cross=False and the same embed_dim")
        classifies = config.head in ("classification", "tagging")
        if not classifies and config.num_classes != 2:
            raise GlocalError(
                f"num_classes {config.num_classes} of a head for {config.head}, which has 2; give num_classes=2, or "
                "another head: 'classification' or 'tagging'"
            )
        if config.head == "tagging" and not config.num_classes:
            raise GlocalError("num_classes 0 of a head for tagging; give the number of tags")
        check_tokens(config, config.vocab_size)
        self.embedding = nn.Embedding(config.vocab_size, dim)
        self.token_type_embed = nn.Embedding(config.type_vocab_size, dim)
        self.pos_embed = nn.Parameter(torch.zeros(config.max_length, dim))
        self.embedding_norm = nn.LayerNorm(dim, config.blocks[0].norm_eps)
        self.drop = Dropout(config.dropout)
        self.blocks = BlockList(map(Block, config.blocks))
        # the output of pre-norm blocks is a sum that is not normalised
        self.norm = nn.LayerNorm(dim, config.blocks[-1].norm_eps) if config.blocks[-1].norm == "pre" else nn.Identity()
        self.mlm_head = MLMHead(config) if config.head == "pretraining" else None
        dropout = config.dropout if classifies else 0.0
        if config.head in ("pretraining", "classification"):
            self.head: nn.Module = ClassificationHead(dim, config.num_classes, pooler=True, dropout=dropout)
        else:
            self.head = TokenHead(dim, config.num_classes, dropout)
        self.init_weights()

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Bool[Tensor, "batch tokens"] | None = None,
        token_type_ids: Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch *outputs"]:
        """Return the logits, by head: (B, N, V) of words, (B, K) of texts, (B, N, K) of tokens, (B, N, 2) of spans."""
        num_queries = 1 if self.config.head == "classification" else None  # the head reads the first token
        x = self.forward_features(input_ids, attention_mask, token_type_ids, num_queries)
        if self.config.head == "pretraining":
            return self.mlm_logits(x)
        return self.head(x)[:, 0] if self.config.head == "classification" else self.head(x)

    def forward_features(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Bool[Tensor, "batch tokens"] | None = None,
        token_type_ids: Int[Tensor, "batch tokens"] | None = None,
        num_queries: int | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return the refined tokens, or the first `num_queries` of them.

        The mask is True at a text's own tokens; without `token_type_ids`, all are 0.
        """
        mask = None if attention_mask is None else attention_mask[:, None, None]
        x = self.embed(input_ids, token_type_ids)
        x = self.blocks(x, mask=mask, num_queries=num_queries, token_mask=attention_mask)
        return self.norm(x)

    def mlm_logits(self, x: Float[Tensor, "*tokens dim"]) -> Float[Tensor, "*tokens vocab"]:
        """Return the logits of the words at refined tokens `x`: all of them, or the masked ones only.

        Raises GlocalError if the model has another head.
        """
        if self.mlm_head is None:
            raise GlocalError(f"a BERT with a head for {self.config.head} predicts no words; load head='pretraining'")
        return self.mlm_head(x, self.embedding.weight)

    def nsp_logits(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch 2"]:
        """Return the logits that sentence B follows A, and that it does not, from all refined tokens."""
        return self.head(x)[:, 0]

    def embed(
        self, input_ids: Int[Tensor, "batch tokens"], token_type_ids: Int[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return token + segment + position, normalised (section 3, figure 2). Raises GlocalError for a longer text."""
        check_ids(input_ids)
        length = input_ids.shape[1]
        if length > self.config.max_length:
            raise GlocalError(
                f"a text of {length} tokens; this BERT has learned {self.config.max_length} positions: cut it or split "
                "it into windows"
            )
        types = self.token_type_embed.weight[0] if token_type_ids is None else self.token_type_embed(token_type_ids)
        return self.drop(self.embedding_norm(self.embedding(input_ids) + types + self.pos_embed[:length]))

    def init_weights(self) -> None:
        """Initialise all weights as the table above says."""
        nn.init.trunc_normal_(self.pos_embed, std=0.02, a=-0.04, b=0.04)
        self.init_linears(self)

    def init_linears(self, part: nn.Module) -> None:
        """Initialise the embeddings and the linear layers of the model or of a part."""
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def fresh_names(self, state: StateDict) -> list[str]:
        """Return the heads' names; the pooler, pre-trained with the encoder, is kept if both models have one."""
        pooler = "head.pooler.weight"
        both = pooler in state and pooler in self.state_dict()
        return ["mlm_head.*", "head.classifier.*"] if both else ["mlm_head.*", "head.*"]

    def adapt_state(self, state: StateDict, source: BERTConfig) -> StateDict:
        """Return the weights, completed by this model's own next-sentence head and pooler where they lack them.

        transformers' BertForMaskedLM and BertModel do.
        """
        if self.mlm_head is None and self.config.num_classes:
            return state
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith("head.")} | state

"""BERT: words are understood from both sides.

    Devlin et al. 2018, *BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding*
    https://arxiv.org/abs/1810.04805
    Turc et al. 2019, *Well-Read Students Learn Better: On the Importance of Pre-training Compact Models*
    https://arxiv.org/abs/1908.08962

An encoder in which every token sees all others. It is pre-trained to guess words that were masked, and whether one
sentence follows another (section 3.1); a new head and some further training make it answer other questions (section 4).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glocal import ops
from glocal.errors import GlocalError
from glocal.layers.block import Block, BlockConfig, stack
from glocal.layers.dropout import Dropout
from glocal.layers.heads import ClassificationHead, TokenHead
from glocal.layers.mlp import ACTIVATIONS
from glocal.models.config import check_tokens
from glocal.models.folders import State
from glocal.models.pretrained import Model, check_ids

Head = Literal["pretraining", "classification", "tagging", "spans"]


def _blocks(embed_dim: int, depth: int) -> tuple[BlockConfig, ...]:
    shape = {"embed_dim": embed_dim, "num_heads": embed_dim // 64}
    return stack(depth, **shape, norm="post", norm_eps=1e-12, dropout=0.1, attn_drop=0.1)


@dataclass(frozen=True)
class BERTConfig:
    """An architecture and the question that it answers. The defaults are BERT-Base's (Devlin et al., section 3)."""

    vocab_size: int = 30522
    """Word pieces: 30,522 of the published uncased English vocabulary, 28,996 of the cased one."""
    max_length: int = 512
    """Tokens of the longest text; each place has a learned embedding, so there is no more."""
    type_vocab_size: int = 2
    """Kinds of segments: sentence A and sentence B."""
    blocks: tuple[BlockConfig, ...] = _blocks(768, 12)
    """The encoder."""
    dropout: float = 0.1
    """Rate on the sum of the embeddings, and before a classifier."""
    head: Head = "pretraining"
    """What is answered: masked words and the next sentence; a text's class; each token's; where a span is."""
    num_classes: int = 2
    """Classes of a text or of a token. The other heads have two: next or not, start and end. A text of 0 classes gets
    what a classifier would read: this is an encoder without a classifier."""
    pad_id: int = 0
    """The token that fills a batch, behind a text."""


#                                      D    depth, with heads of 64
NAMED = {
    "bert-base":   BERTConfig(),                          # Devlin et al. 2018, section 3
    "bert-large":  BERTConfig(blocks=_blocks(1024, 24)),
    "bert-tiny":   BERTConfig(blocks=_blocks( 128,  2)),  # Turc et al. 2019, table 1
    "bert-mini":   BERTConfig(blocks=_blocks( 256,  4)),
    "bert-small":  BERTConfig(blocks=_blocks( 512,  4)),
    "bert-medium": BERTConfig(blocks=_blocks( 512,  8)),
}  # fmt: skip


class WordHead(nn.Module):
    """Which word is it? A layer transforms the token, and is compared with all embeddings (the authors' code)."""

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
        """Logits of each word; the embeddings are the input's own."""
        return ops.linear(self.norm(self.act(self.transform(x))), embeddings, self.bias)


class BERT(Model):
    """Token + segment + position → encoder → head.

    | part                     | initialised                                               |
    | ------------------------ | --------------------------------------------------------- |
    | weights and embeddings   | normal, σ = 0.02, cut at 2σ (the authors' code)           |
    | biases                   | 0                                                         |
    """

    family = "bert"
    Config = BERTConfig
    config: BERTConfig

    def __init__(self, config: BERTConfig) -> None:
        super().__init__(config)
        dim = config.blocks[0].embed_dim
        if any(block.causal or block.cross or block.embed_dim != dim for block in config.blocks):
            raise GlocalError("an encoder's blocks have causal and cross false, and one embed_dim: set them so")
        chosen = config.head in ("classification", "tagging")
        if not chosen and config.num_classes != 2:
            raise GlocalError(
                f"num_classes {config.num_classes} of a head for {config.head}, which has 2; give num_classes=2, or "
                "another head: 'classification' or 'tagging'"
            )
        if config.head == "tagging" and not config.num_classes:
            raise GlocalError("num_classes 0 of a head for tagging; give the number of tags")
        check_tokens(config)
        self.embedding = nn.Embedding(config.vocab_size, dim)
        self.segments = nn.Embedding(config.type_vocab_size, dim)
        self.positions = nn.Parameter(torch.zeros(config.max_length, dim))
        self.embedding_norm = nn.LayerNorm(dim, config.blocks[0].norm_eps)
        self.drop = Dropout(config.dropout)
        self.blocks = nn.ModuleList(map(Block, config.blocks))
        # a stack of pre-norm blocks ends in a sum that nothing normalised
        self.norm = nn.LayerNorm(dim, config.blocks[-1].norm_eps) if config.blocks[-1].norm == "pre" else nn.Identity()
        self.words = WordHead(config) if config.head == "pretraining" else None
        dropout = config.dropout if chosen else 0.0
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
    ) -> Float[Tensor, "batch *answer"]:
        """Logits, by the head: words (B, N, V); a text's classes (B, K); tokens' (B, N, K); start and end (B, N, 2)."""
        keep = 1 if self.config.head == "classification" else None  # the last block works for the one that is read
        x = self.encode(input_ids, attention_mask, token_type_ids, keep)
        if self.config.head == "pretraining":
            return self.predict_words(x)
        return self.head(x)[:, 0] if self.config.head == "classification" else self.head(x)

    def forward_features(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        attention_mask: Bool[Tensor, "batch tokens"] | None = None,
        token_type_ids: Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Refined tokens. The mask is True at a text's own tokens, and segments are all 0 where they are not given."""
        return self.encode(input_ids, attention_mask, token_type_ids)

    def predict_words(self, x: Float[Tensor, "*tokens dim"]) -> Float[Tensor, "*tokens vocab"]:
        """Logits of the words that stood where refined tokens `x` stand: all of them, or the masked ones alone."""
        if self.words is None:
            raise GlocalError(f"a BERT with a head for {self.config.head} guesses no words; load head='pretraining'")
        return self.words(x, self.embedding.weight)

    def predict_next(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch 2"]:
        """Logits of sentence B being the next after A, and of its being none, from all refined tokens."""
        return self.head(x)[:, 0]

    def encode(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None, keep: int | None = None
    ) -> Tensor:
        """Refine the tokens, or the first `keep` of them."""
        mask = None if attention_mask is None else attention_mask[:, None, None]
        x = self.embed(input_ids, token_type_ids)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, mask=mask)
        return self.norm(last(x, mask=mask, num_queries=keep))

    def embed(
        self, input_ids: Int[Tensor, "batch tokens"], token_type_ids: Int[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Token + segment + position, normalised (section 3, figure 2)."""
        check_ids(input_ids)
        length = input_ids.shape[1]
        if length > self.config.max_length:
            raise GlocalError(
                f"a text of {length} tokens; this BERT has learned {self.config.max_length} positions: cut it or split "
                "it into windows"
            )
        segment = self.segments.weight[0] if token_type_ids is None else self.segments(token_type_ids)
        return self.drop(self.embedding_norm(self.embedding(input_ids) + segment + self.positions[:length]))

    def init_weights(self) -> None:
        """Draw the table above."""
        nn.init.trunc_normal_(self.positions, std=0.02, a=-0.04, b=0.04)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def fresh_names(self, state: State) -> list[str]:
        """What answers; the pooler was pre-trained with the encoder, and stays where both models have one."""
        pooler = "head.pooler.weight"
        both = pooler in state and pooler in self.state_dict()
        return ["words.*", "head.classifier.*"] if both else ["words.*", "head.*"]

    def adapt_state(self, state: State, source: BERTConfig) -> State:
        """What a pre-trained encoder may come without starts anew: the next sentence's head, or the pooler.

        transformers' BertForMaskedLM and BertModel lack them.
        """
        if self.words is None and self.config.num_classes:
            return state
        return {name: tensor for name, tensor in self.state_dict().items() if name.startswith("head.")} | state

"""GPT: each token is predicted from the tokens before it.

    Radford et al. 2018, *Improving Language Understanding by Generative Pre-Training* (GPT-1)
    https://cdn.openai.com/research-covers/language-unsupervised/language_understanding_paper.pdf
    Radford et al. 2019, *Language Models are Unsupervised Multitask Learners* (GPT-2)
    https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf
    Brown et al. 2020, *Language Models are Few-Shot Learners* (GPT-3)
    https://arxiv.org/abs/2005.14165

A stack of causal blocks between an embedding and an output layer tied to it. It continues a text; with a classifier on
the last token, which attends to all others, it classifies texts.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from glocal import ops
from glocal.errors import GlocalError
from glocal.layers.block import Block, BlockConfig, half_local, interleave_windows, uniform_blocks
from glocal.layers.decoder import DecoderState, decode
from glocal.layers.dropout import Dropout
from glocal.layers.encoder import BlockList
from glocal.layers.heads import ClassificationHead
from glocal.layers.slicing import StateDict
from glocal.models.base import check_ids
from glocal.models.config import check_tokens
from glocal.models.generative import DecoderOnly


def _blocks(embed_dim: int, depth: int, num_heads: int, dropout: float = 0.1, **kind: Any) -> tuple[BlockConfig, ...]:
    shape = {"embed_dim": embed_dim, "num_heads": num_heads, "dropout": dropout, "attn_drop": dropout}
    return uniform_blocks(depth, **shape, norm_eps=1e-5, activation="gelu_tanh", causal=True, **kind)


@dataclass(frozen=True)
class GPTConfig:
    """An architecture and its head. The defaults are the smallest GPT-2's (Radford et al. 2019, table 2)."""

    vocab_size: int = 50257
    """Tokens: 256 bytes, 50,000 merges of them, and the end of a text."""
    max_length: int = 1024
    """Tokens of the longest text: the number of learned position embeddings."""
    blocks: tuple[BlockConfig, ...] = _blocks(768, 12, 12)
    """The decoder, without cross-attention."""
    dropout: float = 0.1
    """Rate on the sum of the embeddings, and before a classifier."""
    head: Literal["language", "classification"] = "language"
    """Output: the next token after each token; or the class of a text."""
    num_classes: int = 2
    """Classes of a text."""
    pad_id: int | None = 50256
    """The token that pads the texts of a batch; None where any may."""
    bos_id: int | None = 50256
    """The token that starts a text; None where there is none."""
    eos_id: int | None = 50256
    """The token that ends a text; None where there is none."""


def _gpt3(embed_dim: int, depth: int, num_heads: int) -> GPTConfig:
    return GPTConfig(max_length=2048, blocks=_blocks(embed_dim, depth, num_heads))


def _tiny(blocks: tuple[BlockConfig, ...]) -> GPTConfig:
    return GPTConfig(max_length=64, blocks=blocks, dropout=0.0)


TINY = _blocks(128, 4, 4, dropout=0.0)  # nanoGPT's for a CPU
_gpt1 = partial(GPTConfig, vocab_size=40478, max_length=512, pad_id=None, bos_id=None, eos_id=None)
#                                         D depth heads
NAMED_CONFIGS = {
    "gpt":         _gpt1(blocks=_blocks(768, 12, 12, norm="post")),  # Radford et al. 2018, section 4.1
    "gpt2":        GPTConfig(),                            # Radford et al. 2019, table 2; heads of 64: the code
    "gpt2-medium": GPTConfig(blocks=_blocks(1024, 24, 16)),
    "gpt2-large":  GPTConfig(blocks=_blocks(1280, 36, 20)),
    "gpt2-xl":     GPTConfig(blocks=_blocks(1600, 48, 25)),
    # Brown et al. 2020, table 2.1, with dense attention in all blocks; theirs is locally banded in every other one.
    "gpt3-small":  _gpt3(  768, 12, 12),
    "gpt3-medium": _gpt3( 1024, 24, 16),
    "gpt3-large":  _gpt3( 1536, 24, 16),
    "gpt3-xl":     _gpt3( 2048, 24, 16),  # the table's 24 heads of 128 are not 2048 wide, nor 1.3 billion parameters
    "gpt3-2.7b":   _gpt3( 2560, 32, 32),
    "gpt3-6.7b":   _gpt3( 4096, 32, 32),
    "gpt3-13b":    _gpt3( 5120, 40, 40),  # the table's 5140 is no multiple of its 40 heads of 128
    "gpt3-175b":   _gpt3(12288, 96, 96),
    "gpt-tiny":    _tiny(TINY),
    # Baselines of a search, made by hand: half of the heads local; five blocks of windows to one of full attention.
    "gpt-tiny-half":    _tiny(half_local(TINY, kernel_size=7)),
    "gpt-tiny-windows": _tiny(interleave_windows(TINY, window=16)),
    "gpt2-half":        GPTConfig(blocks=half_local(_blocks(768, 12, 12), kernel_size=7)),
    "gpt2-windows":     GPTConfig(blocks=interleave_windows(_blocks(768, 12, 12), window=256)),
}  # fmt: skip


LAST_OF_SUBLAYER = (
    "mixer.attention.proj.weight",
    "mixer.local.proj.weight",
    "mixer.local.contract.weight",
    "mlp.fc2.weight",
)
"""Ends of the names of matrices whose output is added to the tokens."""


class GPT(DecoderOnly):
    """Token + position → causal blocks → output layer tied to the embeddings.

    | part                        | initialised                                                              |
    | --------------------------- | ------------------------------------------------------------------------ |
    | weights and embeddings      | normal, σ = 0.02 (Radford et al. 2018, section 4.1)                      |
    | last of a pre-norm sublayer | normal, σ = 0.02/√(2 · depth), as depth adds (Radford et al. 2019, 2.3)  |
    | biases                      | 0                                                                        |
    | kernels of local heads      | as torch's: uniform, ± 1/√K                                              |
    """

    family = "gpt"
    Config = GPTConfig
    config: GPTConfig

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        dim = config.blocks[0].embed_dim
        last = config.blocks[-1]
        if any(not block.causal or block.cross or block.embed_dim != dim for block in config.blocks):
            raise GlocalError("a GPT's blocks need causal=True, cross=False and the same embed_dim")
        if config.head == "language" and config.num_classes != 2:
            raise GlocalError(f"num_classes {config.num_classes} of a language model; give head='classification' too")
        check_tokens(config, config.vocab_size)
        self.embedding = nn.Embedding(config.vocab_size, dim)
        self.pos_embed = nn.Parameter(torch.zeros(config.max_length, dim))
        self.drop = Dropout(config.dropout)
        self.blocks = BlockList(map(Block, config.blocks))
        # the output of pre-norm blocks is a sum that is not normalised
        self.norm = nn.LayerNorm(dim, last.norm_eps) if last.norm == "pre" else nn.Identity()
        if config.head == "classification":
            self.head = ClassificationHead(dim, config.num_classes, pool="last", dropout=config.dropout, bias=False)
        self.init_weights()

    def forward(
        self, input_ids: Int[Tensor, "batch tokens"], attention_mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch *outputs"]:
        """Return the logits of the token after each token, (B, N, V), or of the classes of each text, (B, K).

        The mask is True at a text's own tokens; padding comes behind them. No token attends to later ones, so the mask
        only determines the last token of a text.
        """
        x = self.forward_features(input_ids)
        return self.logits(x) if self.config.head == "language" else self.head(x, attention_mask)[:, 0]

    def forward_features(
        self, input_ids: Int[Tensor, "batch tokens"], attention_mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the refined tokens, which depend on earlier ones only, so that padding behind a text needs no mask."""
        x = self.embed(input_ids)
        return self.norm(self.blocks(x))

    def embed(
        self, ids: Int[Tensor, "rows tokens"], before: int = 0, pads: Int[Tensor, " rows"] | None = None
    ) -> Float[Tensor, "rows tokens dim"]:
        """Return token + position, for tokens that follow `before` others; the first `pads` of a row are padding.

        Padding has no position. Raises GlocalError if a text is longer than the learned positions.
        """
        check_ids(ids)
        end = length = before + ids.shape[1]
        positions = self.pos_embed[before:end]
        if pads is not None:
            index = torch.arange(before, end, device=ids.device) - pads[:, None]
            length -= int(pads.min())
            positions = self.pos_embed[index.clamp(0, self.config.max_length - 1)]
        if length > self.config.max_length:
            raise GlocalError(
                f"a text of {length} tokens; this GPT has learned {self.config.max_length} positions: cut the prompt, "
                "or generate fewer tokens"
            )
        return self.drop(self.embedding(ids) + positions)

    def logits(self, x: Float[Tensor, "*tokens dim"]) -> Float[Tensor, "*tokens vocab"]:
        """Return the logits of the next token; the output layer is tied to the embeddings."""
        return ops.linear(x, self.embedding.weight, None)

    def start(
        self,
        input_ids: Int[Tensor, "prompts tokens"],
        attention_mask: Bool[Tensor, "prompts tokens"],
        beams: int,
        max_new_tokens: int,
    ) -> DecoderState:
        """Read prompts, padded in front, except their last token, which is given to the first `step`.

        Each prompt is read once for all `beams`. The last token of the prompt counts as one of `max_new_tokens`. Raises
        GlocalError for a prompt that is empty or padded on the right.
        """
        if not attention_mask[:, -1].all():
            raise GlocalError(
                "a prompt that is empty, or padded on the right; give a token or more, and pad on the left"
            )
        pads = (~attention_mask).sum(dim=1)
        past = input_ids[:, :-1]
        caches = [block.new_cache(len(past), past.shape[1] + max_new_tokens) for block in self.blocks]
        state = DecoderState(caches, pads if pads.any() else None)
        if past.shape[1]:
            self.forward_cached(past, state)
        if beams > 1:
            state.repeat(beams)
        return state

    def step(self, ids: Int[Tensor, " rows"], state: DecoderState) -> Float[Tensor, "rows vocab"]:
        """Append a token to every row of the state, and return the logits of the next."""
        return self.logits(self.forward_cached(ids[:, None], state))[:, 0]

    def forward_cached(self, ids: Int[Tensor, "rows new"], state: DecoderState) -> Float[Tensor, "rows new dim"]:
        """Return the refined new tokens of every row, and add them to the caches."""
        x = self.embed(ids, state.length, state.pads)
        return self.norm(decode(self.blocks, x, state))

    def init_weights(self) -> None:
        """Initialise all weights as the table above says."""
        nn.init.normal_(self.pos_embed, std=0.02)
        self.init_linears(self)

    def init_linears(self, part: nn.Module) -> None:
        """Initialise the embeddings and the linear layers of the model or of a part."""
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.config.blocks[-1].norm == "pre":
            for name, parameter in part.named_parameters():
                if name.endswith(LAST_OF_SUBLAYER):
                    nn.init.normal_(parameter, std=0.02 / (2 * len(self.config.blocks)) ** 0.5)

    def fresh_names(self, state: StateDict) -> list[str]:
        """Return the names of the classifier; a language model's output layer is the embedding, which is loaded."""
        return ["head.*"]

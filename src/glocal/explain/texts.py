"""The attention between the tokens of a text, in BERT and in GPT, and the patterns of each head over many texts.

    Clark et al. 2019, *What Does BERT Look At? An Analysis of BERT's Attention*
    https://arxiv.org/abs/1906.04341
    Voita et al. 2019, *Analyzing Multi-Head Self-Attention: Specialized Heads Do the Heavy Lifting*
    https://arxiv.org/abs/1905.09418
    Xiao et al. 2023, *Efficient Streaming Language Models with Attention Sinks*
    https://arxiv.org/abs/2309.17453

Many heads attend to the same position in every text: to a neighbour, or to a special token.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from glocal.data.encoding import Batch, collate, encode_sentences
from glocal.data.files import compose
from glocal.data.progress import progress
from glocal.errors import GlocalError
from glocal.explain.attention import TextModel, TokenAttention, attention_weights, readable
from glocal.models import Model

Text = str | tuple[str, str]
"""A text, or a pair of them."""


@dataclass(frozen=True)
class HeadPatterns:
    """How each head distributes its attention over positions, as a mean over the tokens of some texts; on the CPU.

    A token may have two of these positions, such as the previous and the first. A causal model does not attend to the
    next token, and its texts have no separator; their first token, which attends to itself alone, is left out.
    """

    shares: dict[str, Float[Tensor, "layers heads"]] = field(repr=False)
    """The attention, 0 to 1, that goes to the `previous`, the `next` and the `same` token (Clark et al. 2019, section
    3.1); to the `separator`, BERT's [SEP], which heads attend to if no other token matters to them (section 3.2); and
    to the `first`, BERT's [CLS] or the first token of GPT, for the same reason (Xiao et al. 2023)."""
    entropy: Float[Tensor, "layers heads"] = field(repr=False)
    """Entropy of the attention weights in nats: 0 for one token, log n for n equal weights (section 3.3)."""


@torch.inference_mode()
def explain_text(predictor: TextModel, text: Text) -> TokenAttention:
    """Return the attention of every head of a BERT or a GPT for a text, or a pair of texts.

    Raises GlocalError if it has no token, or more than the model takes.
    """
    inputs = encode_text(predictor, text)
    tokens = readable(predictor.tokenizer.tokens(inputs["input_ids"][0].tolist()))
    local_heads = [block.local_heads for block in predictor.model.config.blocks]
    return TokenAttention(tokens, tokens, _weights(predictor.model, inputs).cpu(), local_heads)


def encode_text(predictor: TextModel, text: Text) -> Batch:
    """Return a text, or a pair of texts, as a batch of one on the model's device.

    Raises GlocalError if it has no token, or more than the model takes.
    """
    inputs, overlong = _encode(predictor, text)
    if overlong:
        longest = predictor.model.config.max_length
        raise GlocalError(f"a text of more than the {longest} tokens that the model takes; shorten it")
    return inputs


@torch.inference_mode()
def head_patterns(predictor: TextModel, texts: Sequence[Text]) -> HeadPatterns:
    """Return the patterns of each head of a BERT or a GPT over some texts; longer ones are cut, with a warning."""
    config = predictor.model.config
    sums: dict[str, Tensor] = {}
    tokens: Counter[str] = Counter()
    cut = 0
    for text in progress(texts):
        inputs, overlong = _encode(predictor, text)
        cut += overlong
        separators = inputs["input_ids"][0] == predictor.tokenizer.eos_id
        shares = pattern_shares(_weights(predictor.model, inputs), separators, config.blocks[0].causal)
        for name, share in shares.items():
            sums[name] = sums.get(name, 0) + share.sum(dim=-1)
            tokens[name] += share.shape[-1]
    if cut:
        warnings.warn(f"{cut} of {len(texts)} texts were cut to {config.max_length} tokens", stacklevel=2)
    if not tokens["previous"]:
        raise GlocalError(f"{len(texts)} texts, and in none a token that follows another; give longer ones")
    means = {name: (sums[name] / tokens[name]).cpu() for name in sums}
    return HeadPatterns(entropy=means.pop("entropy"), shares=means)


def strongest(values: Float[Tensor, "layers heads"], count: int = 5) -> list[tuple[int, int, float]]:
    """Return the heads of the greatest values: layer, head, value."""
    heads = values.shape[1]
    best = values.flatten().topk(min(count, values.numel()))
    return [
        (i // heads, i % heads, value) for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]


def pattern_shares(
    weights: Float[Tensor, "layers heads tokens tokens"], separators: Bool[Tensor, " tokens"], causal: bool
) -> dict[str, Float[Tensor, "layers heads _tokens"]]:
    """Return the attention weight of each token to the token of a pattern, if there is one, and its weights' entropy.

    The patterns are those of `HeadPatterns`.
    """
    shares = {
        "previous": weights.diagonal(-1, dim1=2, dim2=3),
        "next": weights.diagonal(1, dim1=2, dim2=3),
        "same": weights.diagonal(0, dim1=2, dim2=3),
        "first": weights[..., 0],
        "separator": weights[..., separators].sum(dim=-1),
        "entropy": torch.special.entr(weights).sum(dim=-1),
    }
    if not causal:
        return shares
    return {"previous": shares["previous"]} | {name: shares[name][..., 1:] for name in ("same", "first", "entropy")}


def _encode(predictor: TextModel, text: Text) -> tuple[Batch, bool]:
    """A batch of one, on the model's device, and whether its text had to be cut."""
    first, *second = [compose(text)] if isinstance(text, str) else map(compose, text)
    ((row, overlong),) = encode_sentences(
        predictor.tokenizer,
        [first],
        second or None,
        predictor.model.config.max_length,
        parse_special=getattr(predictor.model.config, "head", None) == "pretraining",
    )
    if not len(row["input_ids"]):
        raise GlocalError(f"{text!r} has no tokens; give a text with a word in it")
    return {name: tensor.to(predictor.device) for name, tensor in collate([row], pad_id=0).items()}, overlong


def _weights(model: Model, inputs: Batch) -> Float[Tensor, "layers heads tokens tokens"]:
    given = [inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs]
    return attention_weights(model, *given)["blocks"][:, 0].float()

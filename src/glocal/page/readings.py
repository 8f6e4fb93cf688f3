"""An input as a model reads it: the tensors, and the names of their tokens."""

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from glocal.data.decoding import ImageLike
from glocal.explain import AttentionKind, encode_text
from glocal.explain.attention import readable
from glocal.explain.texts import Text
from glocal.page.contract import Input
from glocal.tasks import ImagePredictor, SingleStackTextPredictor, TextGenerator, Translator

AnyReader = SingleStackTextPredictor[Any, Any]
AnyImagePredictor = ImagePredictor[Any]
Given = Text | ImageLike
"""An input of a predictor."""
SMALL = 96
"""Pixels of an image that is kept without loss; the page enlarges it."""


@dataclass(frozen=True)
class Reading:
    """An input as a model reads it."""

    given: Input
    """What the page shows of it."""
    inputs: tuple[Tensor | None, ...]
    """Arguments of the model's `forward_features`, a batch of one."""
    tokens: dict[AttentionKind, tuple[list[str], list[str]]]
    """The tokens that attend, and those that are attended to, by the kind of attention."""
    separators: Bool[Tensor, " tokens"] | None = None
    """Which tokens of a text separate its parts; None of an image, whose heads are not sorted by such patterns."""


def read_image(predictor: AnyImagePredictor, image: ImageLike) -> Reading:
    """Read an image: its tokens are the class token and the patches, named by row and column from 1."""
    pixel_values = predictor.pixels([image])
    prefix = getattr(predictor.model, "num_prefix_tokens", 0)
    rows, columns = getattr(predictor.model, "grid", (0, 0))
    patches = [f"{row},{column}" for row in range(1, rows + 1) for column in range(1, columns + 1)]
    tokens = [*["[CLS]", "[DIST]"][:prefix], *patches]
    given: Input = {
        "image": data_url(predictor.picture(pixel_values[0].float())),
        "grid": [rows, columns],
        "prefix": prefix,
    }
    return Reading(given, (pixel_values,), {"blocks": (tokens, tokens)})


def read_text(predictor: AnyReader, text: Text) -> Reading:
    """Read a text or a pair of texts."""
    batch = encode_text(predictor, text)
    ids = batch["input_ids"][0]
    tokens = readable(predictor.tokenizer.tokens(ids.tolist()))
    inputs = tuple(batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch)
    given: Input = {"text": text} if isinstance(text, str) else {"text": text[0], "pair": text[1]}
    return Reading(given, inputs, {"blocks": (tokens, tokens)}, ids == predictor.tokenizer.eos_id)


def read_written(predictor: TextGenerator, prompt: str, ids: list[int]) -> Reading:
    """Read a prompt with the text that follows it."""
    tokens = readable(predictor.tokenizer.tokens(ids))
    input_ids = torch.tensor([ids], device=predictor.device)
    separators = torch.zeros(len(ids), dtype=torch.bool, device=predictor.device)
    return Reading({"text": prompt}, (input_ids,), {"blocks": (tokens, tokens)}, separators)


def read_translation(predictor: Translator, source: str, source_ids: list[int], written: list[int]) -> Reading:
    """Read a sentence with its translation; the decoder's tokens are named as in `explain.TokenAttention`."""
    decoder_ids = [predictor.tokenizer.bos_id, *written[:-1]]
    inputs = tuple(torch.tensor([ids], device=predictor.device) for ids in (source_ids, decoder_ids))
    sources, decoder_inputs, targets = (
        readable(predictor.tokenizer.tokens(ids)) for ids in (source_ids, decoder_ids, written)
    )
    tokens: dict[AttentionKind, tuple[list[str], list[str]]] = {
        "cross": (targets, sources),
        "encoder": (sources, sources),
        "decoder": (targets, decoder_inputs),
    }
    return Reading({"text": source}, inputs, tokens)


def data_url(picture: Float[np.ndarray, "height width ..."]) -> str:
    """Return an image of numbers from 0 to 1 as a data URL: PNG where it is small, else JPEG."""
    image = Image.fromarray((picture * 255).round().astype(np.uint8))
    file, kind = BytesIO(), "png" if max(image.size) <= SMALL else "jpeg"
    image.save(file, kind, quality=88)
    return f"data:image/{kind};base64,{b64encode(file.getvalue()).decode()}"

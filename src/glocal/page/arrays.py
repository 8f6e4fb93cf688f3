"""Numbers as the page is given them: few bytes, in base64."""

from base64 import b64decode, b64encode

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from glocal.page.contract import Array

LEVELS = 255
"""The largest weight of a row, as a byte."""
REACH = 32767
"""The largest number, as an int16."""


def pack_weights(weights: Float[Tensor, "*rows keys"]) -> Array:
    """Return rows that sum to one as bytes: a row is divided by its sum again, so that its largest weight may be 255.

    A weight is off by at most 1/510 of the largest one of its row, and a little for the sum.
    """
    largest = weights.amax(dim=-1, keepdim=True)
    levels = (weights / largest * LEVELS).round().to(torch.uint8)
    return {"shape": [*weights.shape], "data": encode(levels), "scale": 0.0}


def pack_numbers(numbers: Float[Tensor, "*shape"]) -> Array:
    """Return numbers as int16: one is off by at most 1/65534 of the largest."""
    scale = max(numbers.abs().max().item(), 1e-30) / REACH
    return {"shape": [*numbers.shape], "data": encode((numbers / scale).round().to(torch.int16)), "scale": scale}


def unpack(array: Array) -> Float[np.ndarray, "*shape"]:
    """Return the numbers that were packed, as the page reads them."""
    kind = "<i2" if array["scale"] else "u1"
    values = np.frombuffer(b64decode(array["data"]), kind).reshape(array["shape"]).astype(np.float64)
    return values * array["scale"] if array["scale"] else values / values.sum(axis=-1, keepdims=True)


def encode(integers: Tensor) -> str:
    """Return integers in base64, least significant byte first."""
    values = integers.contiguous().cpu().numpy()
    return b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()

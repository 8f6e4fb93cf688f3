"""Position embeddings. Attention alone is equivariant: permuted tokens give the same outputs, permuted."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from glocal.errors import GlocalError

SinusoidLayout = Literal["interleaved", "halves"]


def sinusoids(length: int, dim: int, layout: SinusoidLayout = "interleaved") -> Float[Tensor, "length dim"]:
    """Return PE(t, 2k) = sin(t/10000^(2k/d)), PE(t, 2k+1) = cos(t/10000^(2k/d)) (Vaswani et al. 2017, section 3.5).

    The wavelengths are 2π to 10000·2π positions: PE(t + n) is a fixed rotation of PE(t). In `halves`, all sines precede
    all cosines: the same numbers in another order (the authors' code).

    Raises GlocalError for an odd `dim`.
    """
    if dim % 2:
        raise GlocalError(f"sinusoidal positions of odd width {dim}; sines and cosines come in pairs")
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    axis = -1 if layout == "interleaved" else 1
    return torch.stack([angle.sin(), angle.cos()], dim=axis).flatten(1).float()


def resize_positions(
    positions: Float[Tensor, "1 tokens dim"], grid: tuple[int, int], size: tuple[int, int], num_prefix_tokens: int
) -> Float[Tensor, "1 new_tokens dim"]:
    """Return learned positions of a (rows, columns) `grid` interpolated to the grid `size`, bicubic and antialiased.

    This is how a ViT is fine-tuned at another resolution (Dosovitskiy et al. 2020, section 3.2). The positions of class
    and distillation tokens, in front of the grid, are unchanged. The target is given as a size, never as a scale
    factor, so that odd and non-square grids come out exact.
    """
    special = positions[:, :num_prefix_tokens]
    patches = positions[:, num_prefix_tokens:]
    if grid == size:
        return positions
    image = patches.unflatten(1, grid).movedim(-1, 1).float()  # (1, D, rows, columns)
    image = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([special, image.flatten(2).mT.to(positions.dtype)], dim=1)

"""Where a token stands. Attention alone sees a set: shuffle its tokens and it only shuffles its answers."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def resize_positions(
    positions: Float[Tensor, "1 tokens dim"], grid: tuple[int, int], size: tuple[int, int], num_prefix_tokens: int
) -> Float[Tensor, "1 new_tokens dim"]:
    """Interpolate learned positions of a (rows, columns) `grid` to the grid `size`, bicubic and antialiased.

    This is how a ViT is fine-tuned at another resolution (Dosovitskiy et al. 2020, section 3.2). Class and
    distillation tokens stand in front of the grid and keep their position. The target is given as a size, never as a
    scale factor, so that odd and non-square grids come out exact.
    """
    prefix, patches = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
    if grid == size:
        return positions
    image = patches.unflatten(1, grid).movedim(-1, 1).float()  # (1, D, rows, columns)
    image = F.interpolate(image, size=size, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([prefix, image.flatten(2).mT.to(positions.dtype)], dim=1)

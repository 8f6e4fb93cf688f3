"""From pixels to tokens: patches, and a convolutional stem before them."""

import math
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from glocal import ops
from glocal.errors import GlocalError


class PatchEmbedding(nn.Module):
    """z_i = W x_i + b: an image is cut into P×P patches, each flattened and projected (Dosovitskiy et al. 2020, eq. 1).

    The image may be the feature map of a CNN (the hybrid form, section 3.1): then `in_chans` is the width of the map,
    and P may be 1.
    """

    def __init__(self, in_chans: int, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = ops.Linear(in_chans * patch_size**2, embed_dim)

    def forward(self, images: Float[Tensor, "batch chans height width"]) -> Float[Tensor, "batch patches dim"]:
        """Return the projected patches, row by row from left to right; a patch is flattened channel by channel."""
        size = self.patch_size
        patches = images.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # (B, C, rows, P, columns, P)
        return self.proj(patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2))


class ConvStem(nn.Sequential):
    """3×3 convolutions of stride 2 in place of large patches (Xiao et al. 2021, *Early Convolutions*).

    Each halves the image and doubles the width, and is followed by BatchNorm and ReLU. Their strides multiply to
    `stride`. Raises GlocalError if it is no power of two.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        steps = int(math.log2(stride))
        if 2**steps != stride or steps < 1:
            raise GlocalError(
                f"a convolutional stem halves the image repeatedly: its stride is a power of two, not {stride}"
            )
        widths = [in_chans, *(max(out_chans >> (steps - 1 - i), 8) for i in range(steps))]
        super().__init__(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, kernel_size=3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(b),
                    nn.ReLU(inplace=True),
                )
                for a, b in pairwise(widths)
            )
        )
        self.out_chans = out_chans
        self.stride = stride

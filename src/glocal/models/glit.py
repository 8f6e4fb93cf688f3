"""GLiT: a Vision Transformer whose blocks have global and local heads, in proportions that were searched.

    Chen et al. 2021, *GLiT: Neural Architecture Search for Global and Local Image Transformer*
    https://arxiv.org/abs/2107.02960

It is ViT's patches, class token, positions and head around other blocks: `layers.mixer` holds what is new. Which block
gets which heads is data, here the authors' found model; `glocal search` finds another for other images and budgets.
"""

from math import prod

from glocal.layers.block import BlockConfig
from glocal.layers.convolution import LocalConvolution
from glocal.models.vit import ViT, ViTConfig

D, N = 192, 3  # width and heads of GLiT-Tiny, as of DeiT-Tiny


def _all_global(d_k: float, d_z: float) -> BlockConfig:
    return BlockConfig(embed_dim=D, num_heads=N, qkv_ratio=d_k, mlp_ratio=d_z)


def _all_local(k: int, e: int) -> BlockConfig:
    return BlockConfig(embed_dim=D, num_heads=N, local_heads=N, kernel_size=k, expand_ratio=e)


def _mixed(e: int, d_z: float) -> BlockConfig:
    return BlockConfig(embed_dim=D, num_heads=N, local_heads=N - 1, expand_ratio=e, mlp_ratio=d_z)


# The released architecture, block by block: 7,264,456 parameters and 1472.9 M MACs at 224². The paper's table 3 says
# 1.4 G, and the authors' formula 1332.5 M, because it counts half of the pointwise convolution that is gated. Their
# paper writes Swish in the MLP, their code GELU, which the released weights need.
NAMED = {
    "glit-tiny": ViTConfig(
        blocks=(
            _all_global(0.5, 4.0),
            _all_local(31, 2),
            _mixed(4, 6.0),
            _all_global(1.0, 4.0),
            _all_local(45, 4),
            _mixed(4, 6.0),
            _all_global(1.0, 2.0),
            _mixed(4, 2.0),
            _all_local(45, 4),
            _all_global(1.0, 4.0),
            _all_local(31, 4),
            _all_global(2.0, 6.0),
        )
    ),
}


class GLiT(ViT):
    """A ViT of searched blocks. Linear weights are drawn as ViT's, convolutions as torch's (the authors' code)."""

    family = "glit"

    def unpublished_macs(self) -> int:
        """Multiply-accumulates that the authors' formula leaves out: half of each pointwise convolution that is gated.

        They are N·E·C² a block of C local channels. GLiT-Tiny has 1472.9 M at 224², of which 140.4 M are left out.
        """
        gated = (local.expand.weight for local in self.modules() if isinstance(local, LocalConvolution))
        return (self.num_prefix_tokens + prod(self.grid)) * sum(weight.numel() // 2 for weight in gated)

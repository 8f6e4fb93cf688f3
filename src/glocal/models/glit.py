"""GLiT: a Vision Transformer whose blocks have global and local heads, in proportions that were searched.

    Chen et al. 2021, *GLiT: Neural Architecture Search for Global and Local Image Transformer*
    https://arxiv.org/abs/2107.02960

Patches, class token, positions and head are ViT's; `layers.mixer` holds the new block. The heads of each block are
data: here the architecture that the authors found. `glocal search` finds others, for other images and budgets.
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


# The released architecture, block by block: 7,264,456 parameters and 1472.9 M MACs at 224². The paper's table 3 has
# 1.4 G; the authors' formula gives 1332.5 M, since it counts half of the gated pointwise convolution. The paper has
# Swish in the MLP, the code GELU, which the released weights need.
NAMED_CONFIGS = {
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
    """A ViT of searched blocks. Linear weights are initialised as ViT's, convolutions as torch's (authors' code)."""

    family = "glit"

    def unpublished_macs(self) -> int:
        """Return the multiply-accumulates that the authors' formula omits: half of each gated pointwise convolution.

        These are N·E·C² in a block of C local channels: of GLiT-Tiny's 1472.9 M at 224², 140.4 M.
        """
        gated = (local.expand.weight for local in self.modules() if isinstance(local, LocalConvolution))
        return (self.num_prefix_tokens + prod(self.grid)) * sum(weight.numel() // 2 for weight in gated)

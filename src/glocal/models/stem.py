"""The layers before the patches of a ViT: none, convolutions, or a CNN (Dosovitskiy et al. 2020, section 3.1)."""

from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from glocal.errors import GlocalError
from glocal.layers.embeddings import ConvStem
from glocal.models.config import nearest


@dataclass(frozen=True)
class StemConfig:
    """A stem. The default cuts patches from pixels."""

    kind: Literal["pixels", "conv", "timm"] = "pixels"
    """No stem; 3×3 convolutions of stride 2 (Xiao et al. 2021); or the last feature map of a CNN of timm's."""
    stride: int = 1
    """Pixels per cell of the map of a convolutional stem: a power of two."""
    name: str = ""
    """timm's name of the CNN."""


class PixelStem(nn.Identity):
    """No stem: patches are cut from the image itself."""

    stride = 1

    def __init__(self, in_chans: int) -> None:
        super().__init__()
        self.out_chans = in_chans


class FeatureMap(nn.Module):
    """The last feature map of a CNN of timm's. timm is imported when one is built, which takes seconds."""

    def __init__(self, name: str, in_chans: int) -> None:
        super().__init__()
        import timm

        if not timm.is_model(name):
            raise GlocalError(f"timm has no model {name!r}; {nearest(name, timm.list_models())}")
        self.cnn: nn.Module = timm.create_model(name, features_only=True, out_indices=(-1,), in_chans=in_chans)
        info: Any = self.cnn.feature_info
        self.out_chans: int = info.channels()[-1]
        self.stride: int = info.reduction()[-1]

    def forward(
        self, images: Float[Tensor, "batch chans height width"]
    ) -> Float[Tensor, "batch features rows columns"]:
        """Return the features of the last stage."""
        return self.cnn(images)[-1]


def build_stem(config: StemConfig, in_chans: int, embed_dim: int) -> PixelStem | ConvStem | FeatureMap:
    """Return the module; its `out_chans` are the channels of its map, its `stride` the pixels per cell.

    Raises GlocalError if a field belongs to another kind.
    """
    if config.kind != "conv" and config.stride != 1:
        raise GlocalError(f"stem.stride {config.stride} of the kind {config.kind}; only conv has one")
    if config.kind != "timm" and config.name:
        raise GlocalError(f"stem.name {config.name!r} of the kind {config.kind}; only timm has one")
    match config.kind:
        case "pixels":
            return PixelStem(in_chans)
        case "conv":
            return ConvStem(in_chans, embed_dim, config.stride)
        case "timm":
            return FeatureMap(config.name, in_chans)

"""From files, the hub or a built-in data set to batches of images."""

from glocal.data.augment import Preprocessing, eval_transform
from glocal.data.config import DEIT, LIGHT, AugmentConfig, DataConfig
from glocal.data.decoding import open_image
from glocal.data.images import Batches, Images, open_data

__all__ = [
    "DEIT",
    "LIGHT",
    "AugmentConfig",
    "Batches",
    "DataConfig",
    "Images",
    "Preprocessing",
    "eval_transform",
    "open_data",
    "open_image",
]

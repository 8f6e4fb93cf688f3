"""From files, the hub or built-in data to batches of images and of tokens."""

from glocal.data.augment import Preprocessing, eval_transform
from glocal.data.config import DEIT, LIGHT, AugmentConfig, DataConfig
from glocal.data.dataset import TokenDataset
from glocal.data.decoding import open_image
from glocal.data.images import Batches, Images, open_images
from glocal.data.text_config import DocumentsConfig, TextDataConfig, TokenizerConfig
from glocal.data.tokenizer import Subwords, Tokenizer, learn_tokenizer

__all__ = [
    "DEIT",
    "LIGHT",
    "AugmentConfig",
    "Batches",
    "DataConfig",
    "DocumentsConfig",
    "Images",
    "Preprocessing",
    "Subwords",
    "TextDataConfig",
    "TokenDataset",
    "Tokenizer",
    "TokenizerConfig",
    "eval_transform",
    "learn_tokenizer",
    "open_image",
    "open_images",
]

"""From files, the hub or numbers written out to batches of sentence pairs."""

from glocal.data.text.config import PairsConfig, TokenizerConfig
from glocal.data.text.pairs import Pairs, open_pairs
from glocal.data.text.sources import languages_of
from glocal.data.text.tokenizer import Subwords, Tokenizer, learn_tokenizer

__all__ = [
    "Pairs",
    "PairsConfig",
    "Subwords",
    "Tokenizer",
    "TokenizerConfig",
    "languages_of",
    "learn_tokenizer",
    "open_pairs",
]

"""From files, the hub or numbers written out to batches of sentence pairs."""

from glocal.data.text.config import PairsConfig
from glocal.data.text.pairs import Pairs, open_pairs
from glocal.data.text.tokenizer import Subwords, Tokenizer

__all__ = ["Pairs", "PairsConfig", "Subwords", "Tokenizer", "open_pairs"]

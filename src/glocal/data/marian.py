"""The tokenizer of Marian's models (opus-mt): a sentencepiece model for each language, and one list of pieces."""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from glocal.data.tokenizer import MARIAN_FILES, Tokenizer, check_ids, normalise
from glocal.errors import GlocalError
from glocal.files import foreign, read_object, replacing


class Marian(Tokenizer):
    """The pieces of a text by the sentencepiece model of its language; both languages share their numbers."""

    def __init__(self, folder: Path) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError:
            raise GlocalError(
                f"{folder} holds a Marian model, whose tokenizer needs sentencepiece; pip install sentencepiece"
            ) from None
        missing = [name for name in MARIAN_FILES if not (folder / name).exists()]
        if missing:
            raise GlocalError(f"{folder} lacks {missing[0]}; expected {', '.join(MARIAN_FILES)}")
        self.folder = folder
        with foreign(folder, "holds no tokenizer that can be read"):
            self.source, self.target = (
                SentencePieceProcessor(model_proto=(folder / name).read_bytes()) for name in MARIAN_FILES[:2]
            )
            self.ids: dict[str, int] = read_object(folder / MARIAN_FILES[2])
            self.vocab_size = check_ids(self.ids)
            if missing := [piece for piece in ("<pad>", "</s>", "<unk>") if piece not in self.ids]:
                raise GlocalError(f"{folder / MARIAN_FILES[2]} lacks {', '.join(missing)}")
        self.pieces = {number: piece for piece, number in self.ids.items()}
        self.pad_id, self.eos_id, self.unk_id = (self.ids[piece] for piece in ("<pad>", "</s>", "<unk>"))
        self.bos_id = self.pad_id

    def encode(self, texts: Sequence[str], target: bool = False) -> list[list[int]]:
        """Return the ids of each text and of the end. A beginning >>xx<<, the language to translate to, is one
        token.
        """
        pieces = self.target if target else self.source
        unknown = self.ids["<unk>"]
        encoded = []
        for text in map(normalise, texts):
            code, closed, rest = text.partition("<<") if text.startswith(">>") else ("", "", text)
            begun = [code + closed] if closed else []
            found = begun + pieces.encode(rest if closed else text, out_type=str)
            encoded.append([self.ids.get(piece, unknown) for piece in found] + [self.ids["</s>"]])
        return encoded

    def decode(self, ids: Iterable[Sequence[int]]) -> list[str]:
        """Return the texts of ids in the language translated to, without special tokens."""
        special = {self.pad_id, self.eos_id, self.unk_id}
        return [
            normalise(self.target.decode([self.pieces.get(number, "") for number in each if number not in special]))
            for each in ids
        ]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return each piece by itself."""
        return [self.pieces.get(number, "") for number in ids]

    def save(self, folder: str | Path) -> None:
        """Copy the three files; source.spm, by which `Tokenizer.load` recognises them, is copied last."""
        for name in reversed(MARIAN_FILES):
            if (self.folder / name).resolve() != (Path(folder) / name).resolve():
                with replacing(Path(folder) / name) as draft:
                    shutil.copy(self.folder / name, draft)

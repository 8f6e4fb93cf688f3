"""Arguments that several commands share."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from glocal.errors import GlocalError, printable

if TYPE_CHECKING:
    from glocal.models.device import Precision
    from glocal.tasks import Predictor


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the line and the command that explains the usage, and exit with 2."""
        self.exit(2, f"glocal: {printable(message)}; see `{self.prog} --help`\n")


def positive(text: str) -> int:
    """Take a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} was given; expected a whole number of 1 or more")
    return int(text)


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add --precision to a command that predicts."""
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bf16", "fp16", "int8"],
        default="auto",
        help="number format of the weights; auto is the faster one of float32 and fp16 (default %(default)s)",
    )


def load_predictor(model: str, precision: "Precision") -> "Predictor":
    """Return a model's predictor; on a terminal, print the precision that `auto` has chosen."""
    from glocal.tasks import load

    predictor: Predictor = load(model, precision=precision)
    if precision == "auto" and sys.stderr.isatty():
        print(f"weights in {predictor.precision}", file=sys.stderr)
    return predictor


def announce(command: str, to_terminal: bool = False) -> None:
    """Print the command that begins, before the seconds that the import of torch takes; rank 0 alone does.

    With `to_terminal`, the line goes to stderr, and only where that is a terminal: stdout holds results alone.
    """
    if os.environ.get("RANK", "0") == "0" and (not to_terminal or sys.stderr.isatty()):
        print(f"{printable(command)} ...", file=sys.stderr if to_terminal else sys.stdout, flush=True)


def overrides(args: argparse.Namespace) -> list[str]:
    """Return the recipe fields that the command line sets, with `--from` and `--data` as dotted names."""
    shorthands = {"--model.from": getattr(args, "start", None), "--data.source": args.data}
    return [f"{name}={value}" for name, value in shorthands.items() if value is not None] + args.fields


def check_words(words: Sequence[str]) -> None:
    """Raise GlocalError for an argument that is no text, unless it is the name of a file."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            if os.path.exists(word):  # noqa: PTH110  # pathlib's raises where a word is too long to be a name
                continue
            raise GlocalError(f"the argument {word} is not UTF-8, and no file has this name") from None
        if "\0" in word:
            raise GlocalError(f"the argument {word} has a NUL character, which no text and no file name has")

"""What the commands' arguments have in common."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from glocal.errors import GlocalError, printable


class Parser(argparse.ArgumentParser):
    """Says what is wrong with its arguments in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the line and which command explains the usage, and exit with 2."""
        self.exit(2, f"glocal: {printable(message)}; see `{self.prog} --help`\n")


def positive(text: str) -> int:
    """Take a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} was given; expected a whole number of 1 or more")
    return int(text)


def announce(doing: str, aside: bool = False) -> None:
    """Print what begins, before the seconds in which torch is imported; of several processes, the first one does.

    With `aside`, it stays out of what the command prints: it is for who watches a terminal.
    """
    if os.environ.get("RANK", "0") == "0" and (not aside or sys.stderr.isatty()):
        print(f"{printable(doing)} ...", file=sys.stderr if aside else sys.stdout, flush=True)


def overrides(args: argparse.Namespace) -> list[str]:
    """Return the recipe's fields that the command line sets, `--from` and `--data` by their dotted names."""
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

"""`glocal predict`"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glocal.cli.arguments import add_precision, announce, load_predictor, positive
from glocal.errors import GlocalError, showable

if TYPE_CHECKING:
    from glocal.generation import DecodingConfig
    from glocal.tasks import Predictor, TextGenerator

USAGE = "glocal predict RUN INPUT [INPUT ...] [--top K] [--json] [--decoding.FIELD VALUE ...]"
FILES = ("txt", "json", "tsv", "csv", "jsonl", "parquet", "conll")
"""An input with such an ending is a file's name, not a text."""
MAX_LENGTH = 2**22
"""Characters of the longest text that is accepted."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="RUN", help="a run or a model's folder")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="images: files, folders, or patterns such as 'photos/*.jpg'. Texts: a text, a file with one text a line, "
        "- for standard input, or a table (.tsv, .csv, .jsonl, .parquet, SQuAD's .json, .conll) with the columns of "
        "training. A tab separates two texts, or a question from its context. A blank line gives a blank result",
    )
    parser.add_argument("--top", type=positive, help="labels, words or answers for each input (default 5)")
    parser.add_argument(
        "--no-answer",
        action="store_true",
        help="the model may say that a text has no answer (default for models trained on SQuAD 2.0)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object for each input")
    add_precision(parser)
    parser.epilog = (
        "Decoding is set as in a recipe: --decoding.beams 8, --decoding.nbest 3, --decoding.extra_length 200, "
        "--decoding.temperature 0.7, --decoding.top_k 40, --decoding.stop '[\".\"]'."
    )


def run(args: argparse.Namespace) -> None:
    """Predict for new inputs: classes, numbers, translations, continuations, masked words, entities or answers."""
    announce(f"glocal predict {args.model}", to_terminal=True)
    from glocal.recipes import read_decoding
    from glocal.tasks import ImagePredictor, TextGenerator
    from glocal.tasks.image_predictor import find_images

    predictor = load_predictor(args.model, args.precision)
    if args.no_answer and "may_have_none" not in predictor.options:
        raise GlocalError("--no-answer needs a model that answers questions")
    if args.fields and "decoding" not in predictor.options:
        raise GlocalError(f"{' '.join(args.fields)}: --decoding.* needs a model that generates text")
    decoding = read_decoding(args.fields)
    streams = sys.stdout.isatty() and not args.json and decoding.width(is_decoder_only=True) == 1
    if isinstance(predictor, TextGenerator) and streams:
        stream(predictor, lines(args.inputs, predictor), decoding)
        return
    options: dict[str, object] = {"may_have_none": True} if args.no_answer else {}
    if "decoding" in predictor.options:
        options["decoding"] = decoding
    if "top" in predictor.options and args.top is not None:
        options["top"] = args.top
    images = isinstance(predictor, ImagePredictor)
    inputs: Iterator[object] = iter(find_images(args.inputs)) if images else lines(args.inputs, predictor)
    size = 1 if sys.stdin.isatty() and "-" in args.inputs else 1024  # someone who types a line waits for its result
    while chunk := list(islice(inputs, size)):
        results = iter(predictor.predict([given for given in chunk if given is not None], **options))
        for given in chunk:
            print_result(predictor, join(given), None if given is None else next(results), args.json)


def print_result(predictor: "Predictor", given: str, result: object, as_json: bool) -> None:
    """Print an input and its result; a blank input has the result None."""
    if as_json:
        record = {"input": given, predictor.json_key: [] if result is None else predictor.to_json(result)}
        print(json.dumps(record, ensure_ascii=False), flush=True)
    else:
        line = "" if result is None else predictor.format(given, result)
        print(showable(line) if sys.stdout.isatty() else line, flush=True)


def lines(inputs: Sequence[str], predictor: "Predictor") -> Iterator[Any]:
    """Yield a predictor's inputs: each text, each line of a file or of standard input (-), each row of a table.

    A blank line is None. The rows of a table are read as in training, which skips blank lines.
    """
    from glocal.data.files import compose, decode_lines, kind_of, read_lines
    from glocal.data.labels import is_visible

    for given in inputs:
        if given == "-":
            texts = decode_lines("standard input", sys.stdin.buffer)
        elif (path := find_file(given)) is None:
            yield predictor.read_line(check_length(str(given)))
            continue
        elif kind_of(path) in predictor.table_extensions:
            yield from (row or None for row in predictor.read_table(path))
            continue
        else:
            texts = read_lines(path)
        for text in texts:
            line = compose(text.rstrip("\n"))
            yield predictor.read_line(check_length(line)) if is_visible(text) else None


def find_file(given: str) -> Path | None:
    """Return the file that an input names, or None where the input is a text.

    Raises GlocalError for a folder, and for what looks like the name of a file that does not exist.
    """
    from glocal.data.files import kind_of

    try:
        given.encode()
    except UnicodeEncodeError:
        raise GlocalError(f"{given[:40]!r} is not UTF-8; write the text to a UTF-8 file, and give that") from None
    if os.path.isdir(given):  # noqa: PTH112  # pathlib's raises where a text is too long to be a name
        raise GlocalError(
            f"{given} is a folder; give the files in it. If it is meant as a text: echo {given} | glocal predict RUN -"
        )
    if os.path.exists(given):  # noqa: PTH110
        return Path(given)
    first, slash, _ = given.partition("/")
    named = kind_of(Path(given)) in FILES or (slash and os.path.isdir(first or "/"))  # noqa: PTH112
    if named and len(given.split()) == 1:
        raise GlocalError(f"no file {given!r}; give a text, a file of texts, or - for standard input")
    return None


def check_length(text: str) -> str:
    """Return the text. Raises GlocalError if it has more than MAX_LENGTH characters."""
    if len(text) > MAX_LENGTH:
        raise GlocalError(
            f"{text[:20]!r}... has {len(text)} characters; expected up to {MAX_LENGTH}: cut it into parts"
        )
    return text


def join(given: object) -> str:
    """Return an input as a line: tokens joined by spaces, a pair of texts by a tab."""
    if isinstance(given, list | tuple):
        return (" " if isinstance(given, list) else "\t").join(given)
    return str(given or "")


def stream(model: "TextGenerator", prompts: Iterable[str | None], decoding: "DecodingConfig") -> None:
    """Print each prompt and its continuation, token by token."""
    for prompt in prompts:
        print(showable(prompt or ""), end="", flush=True)
        for piece in () if prompt is None else model.stream(prompt, decoding):
            print(showable(piece), end="", flush=True)
        print()

"""`glocal predict`"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glocal.cli.arguments import announce, positive
from glocal.errors import GlocalError, showable

if TYPE_CHECKING:
    from glocal.generation import DecodingConfig
    from glocal.tasks import Predictor, TextGenerator

USAGE = "glocal predict RUN INPUT [INPUT ...] [--top K] [--json] [--decoding.FIELD VALUE ...]"
FILES = ("txt", "json", "tsv", "csv", "jsonl", "parquet", "conll")
"""What names end in that are files and no texts."""
LONGEST = 2**22
"""Characters of the longest text that is taken."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("model", metavar="RUN", help="a run or a model's folder")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image files, folders of them, or patterns; or texts, files with one a line, or - for standard input; "
        "two texts, or a question and the text that answers it, with a tab between them; or tables (.tsv, .csv, "
        ".jsonl, .parquet, a reader's .json, a tagger's .conll), read as in training; a blank line gets a blank answer",
    )
    parser.add_argument("--top", type=positive, default=5, help="labels, words or answers an input (default 5)")
    parser.add_argument(
        "--no-answer",
        action="store_true",
        help="that a text does not answer a question is an answer too (default where the model was trained so)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object an input")
    parser.add_argument(
        "--precision",
        choices=["auto", "float32", "bf16", "fp16", "int8"],
        default="auto",
        help="of the weights; auto is the faster one of float32 and fp16 (default %(default)s)",
    )
    parser.epilog = (
        "How a text is looked for is set as in a recipe: --decoding.beams 8, --decoding.nbest 3, "
        "--decoding.extra_length 200, --decoding.temperature 0.7, --decoding.top_k 40, --decoding.stop '[\".\"]'."
    )


def run(args: argparse.Namespace) -> None:
    """Print labels of images or texts, translations, texts that go on, masked words, entities or answers."""
    announce(f"glocal predict {args.model}", aside=True)
    from glocal.recipes import read_decoding
    from glocal.tasks import ImageClassifier, TextGenerator, load
    from glocal.tasks.image_classification import find_images

    predictor = load(args.model, precision=args.precision)
    if args.precision == "auto" and sys.stderr.isatty():
        print(f"weights in {predictor.precision}", file=sys.stderr)
    if args.no_answer and "may_have_none" not in predictor.options:
        raise GlocalError("--no-answer needs a model that answers questions")
    if args.fields and "decoding" not in predictor.options:
        raise GlocalError(f"{' '.join(args.fields)}: --decoding.* needs a model that generates text")
    decoding = read_decoding(args.fields)
    streams = sys.stdout.isatty() and not args.json and decoding.width(is_decoder_only=True) == 1
    if isinstance(predictor, TextGenerator) and streams:
        stream(predictor, lines(args.inputs, predictor), decoding)
        return
    values: dict[str, Any] = {"top": args.top, "decoding": decoding}
    options = {name: value for name, value in values.items() if name in predictor.options}
    if args.no_answer:
        options["may_have_none"] = True
    images = isinstance(predictor, ImageClassifier)
    inputs: Iterator[Any] = iter(find_images(args.inputs)) if images else lines(args.inputs, predictor)
    size = 1 if sys.stdin.isatty() and "-" in args.inputs else 1024  # a person who types a line waits for its result
    while chunk := list(islice(inputs, size)):
        results = iter(predictor.predict([given for given in chunk if given is not None], **options))
        for given in chunk:
            text, result = join(given), None if given is None else next(results)
            if args.json:
                record = {"input": text, predictor.json_key: [] if result is None else predictor.to_json(result)}
                print(json.dumps(record, ensure_ascii=False), flush=True)
            else:
                line = "" if result is None else predictor.format(text, result)
                print(showable(line) if sys.stdout.isatty() else line, flush=True)


def lines(inputs: Sequence[str], predictor: "Predictor") -> Iterator[Any]:
    """Yield the inputs of a predictor: a text each, or for a file and, for -, standard input, one a line.

    A blank line is None. A table's rows are read as in training, and a blank line is none of them.
    """
    from glocal.data.files import compose, decode_lines, kind_of, read_lines
    from glocal.data.labels import is_visible

    for given in inputs:
        if given == "-":
            texts = decode_lines("standard input", sys.stdin.buffer)
        elif (path := find_file(given)) is None:
            yield predictor.read_line(check_length(str(given)))
            continue
        elif kind_of(path) in predictor.tables:
            yield from (row or None for row in predictor.read_table(path))
            continue
        else:
            texts = read_lines(path)
        for text in texts:
            line = compose(text.rstrip("\n"))
            yield predictor.read_line(check_length(line)) if is_visible(text) else None


def find_file(given: str) -> Path | None:
    """Return the file that an input names, and None where it is a text.

    Raises GlocalError where it names a folder, or, by its ending or its beginning, a file that is not there.
    """
    from glocal.data.files import kind_of

    try:
        given.encode()
    except UnicodeEncodeError:
        raise GlocalError(f"{given[:40]!r} is not UTF-8; give such a text in a file that is") from None
    if os.path.isdir(given):  # noqa: PTH112  # pathlib's raises where a text is too long to be a name
        raise GlocalError(f"{given} is a folder; give the files in it, or give this text by: echo {given} | ... -")
    if os.path.exists(given):  # noqa: PTH110
        return Path(given)
    first, slash, _ = given.partition("/")
    named = kind_of(Path(given)) in FILES or (slash and os.path.isdir(first or "/"))  # noqa: PTH112
    if named and len(given.split()) == 1:
        raise GlocalError(f"no file {given!r}; give a text, a file of texts, or - for standard input")
    return None


def check_length(text: str) -> str:
    """Return a text. Raises GlocalError where it is longer than any model takes."""
    if len(text) > LONGEST:
        raise GlocalError(f"{text[:20]!r}... has {len(text)} characters; expected up to {LONGEST}: cut it into parts")
    return text


def join(given: Any) -> str:
    """Write an input as the line that it could have been given as."""
    if given is None or isinstance(given, (str, Path)):
        return str(given or "")
    return (" " if isinstance(given, list) else "\t").join(given)


def stream(model: "TextGenerator", prompts: Iterable[str | None], decoding: "DecodingConfig") -> None:
    """Print each prompt, and what goes on from it as it is written."""
    for prompt in prompts:
        print(showable(prompt or ""), end="", flush=True)
        for piece in () if prompt is None else model.stream(prompt, decoding):
            print(showable(piece), end="", flush=True)
        print()

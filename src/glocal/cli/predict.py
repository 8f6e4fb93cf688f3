"""`glocal predict`"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glocal.cli.arguments import positive
from glocal.errors import GlocalError

if TYPE_CHECKING:
    from glocal.inference import DecodingConfig, TextGenerator

USAGE = "glocal predict RUN INPUT [INPUT ...] [--top K] [--json] [--decoding.FIELD VALUE ...]"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("model", metavar="RUN", help="a run or a model's folder")
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="image files, folders of them, or patterns; or texts, files with one a line, or - for standard input; "
        "two texts, or a question and the text that answers it, with a tab between them",
    )
    parser.add_argument("--top", type=positive, default=5, help="labels, words or answers an input (default 5)")
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
    from glocal.inference import Predictor, TextGenerator, find_images, load
    from glocal.inference.printing import FORMS
    from glocal.recipes import read_decoding

    model = load(args.model, precision=args.precision)
    if args.precision == "auto" and sys.stderr.isatty():
        print(f"weights in {model.precision}", file=sys.stderr)
    form = FORMS[type(model)]
    if args.fields and form.option != "decoding":
        raise GlocalError(f"{' '.join(args.fields)}: only what writes texts is asked so")
    decoding = read_decoding(args.fields)
    watched = sys.stdout.isatty() and not args.json and decoding.width(continues=True) == 1
    if isinstance(model, TextGenerator) and watched:
        stream(model, args.inputs, decoding)
        return
    values: dict[str, Any] = {"top": args.top, "decoding": decoding}
    options = {form.option: values[form.option]} if form.option else {}
    inputs: Iterator[Any] = iter(find_images(args.inputs) if isinstance(model, Predictor) else lines(args.inputs))
    size = 1 if sys.stdin.isatty() and "-" in args.inputs else 1024  # who types a line waits for its answer
    while chunk := list(islice(inputs, size)):
        answers = model.predict([form.read(given) for given in chunk], **options)
        for given, answer in zip(map(str, chunk), answers, strict=True):
            record = {"input": given, form.key: form.record(answer)}
            print(json.dumps(record, ensure_ascii=False) if args.json else form.line(given, answer), flush=True)


def lines(inputs: Sequence[str]) -> Iterator[str]:
    """Texts as they were given, the lines of files, and, for -, those of standard input as they come."""
    for given in inputs:
        if given == "-":
            yield from (line.rstrip("\n") for line in sys.stdin)
        elif os.path.isfile(given):  # noqa: PTH113  # pathlib's raises where a text is too long to be a name
            yield from Path(given).read_text(encoding="utf-8").splitlines()
        else:
            yield given


def stream(model: "TextGenerator", inputs: Sequence[str], decoding: "DecodingConfig") -> None:
    """Print each prompt, and what goes on from it as it is written."""
    for prompt in lines(inputs):
        print(prompt, end="", flush=True)
        for piece in model.stream(prompt, decoding):
            print(piece, end="", flush=True)
        print()

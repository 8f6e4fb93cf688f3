"""`glocal export`"""

import argparse
from pathlib import Path
from typing import Any

from glocal.cli.arguments import announce
from glocal.export import FORMATS


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="RUN", help="a run, a model's folder, or a hub id")
    parser.add_argument("--to", choices=FORMATS, required=True, help="format to write")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder to write")
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options of how a model is written."""
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--precision",
        choices=["float32", "fp16", "bf16", "int8"],
        default="float32",
        help="number format of the weights: onnx float32 or int8; gguf float32, fp16 or int8 (f32, f16, q8_0); "
        "ctranslate2 any; the others float32 (default %(default)s)",
    )
    precision.add_argument(
        "--int8", action="store_const", const="int8", dest="precision", help="the same as --precision int8"
    )
    parser.add_argument(
        "--cache",
        action="store_true",
        help="for ONNX of a GPT or a Transformer: also write a single decoding step, with past keys and values",
    )
    parser.add_argument(
        "--license", default="unknown", metavar="ID", help="for the model's card, such as apache-2.0 (default unknown)"
    )


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of the options of `add_settings`."""
    return {"precision": args.precision, "cache": args.cache, "license": args.license}


def run(args: argparse.Namespace) -> None:
    """Write a model for transformers, timm, ONNX Runtime, llama.cpp or CTranslate2, with its tokenizer and a card."""
    announce(f"glocal export {args.model}", to_terminal=True)
    from glocal.export.exporter import export

    print(export(args.model, args.output, args.to, **settings(args)))

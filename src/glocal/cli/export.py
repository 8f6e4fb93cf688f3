"""`glocal export`"""

import argparse
from pathlib import Path

from glocal.cli.arguments import announce


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("model", metavar="RUN", help="a run or a model's folder")
    parser.add_argument("--to", choices=["transformers", "timm"], required=True, help="whose layout")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="a folder to write")


def run(args: argparse.Namespace) -> None:
    """Write a model in the layout of transformers or timm, with its tokenizer."""
    announce(f"glocal export {args.model}", to_terminal=True)
    from glocal.runner import export

    print(export(args.model, args.output, args.to))

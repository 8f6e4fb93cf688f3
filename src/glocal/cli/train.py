"""`glocal train`"""

import argparse

from glocal.cli.arguments import announce, overrides
from glocal.errors import GlocalError

USAGE = "glocal train RECIPE [--from MODEL] [--data SOURCE] [--SECTION.FIELD VALUE ...]"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("recipe", nargs="?", help="the name of a recipe, or a YAML file of your own")
    parser.add_argument(
        "--from", dest="start", metavar="MODEL", help="start from the weights of a run, a model's folder or a hub id"
    )
    parser.add_argument("--data", metavar="SOURCE", help="short for --data.source")
    parser.add_argument(
        "--resume", metavar="RUN", help="continue a stopped run, to the same weights as an uninterrupted one"
    )
    parser.epilog = (
        "Any field of a recipe is set by its dotted name (--train.epochs 3); `glocal train RECIPE --fields` lists them."
    )


def run(args: argparse.Namespace) -> None:
    """Train or fine-tune a model by a recipe, or continue a stopped run."""
    if args.resume and (args.recipe or args.fields or args.start or args.data):
        raise GlocalError(f"--resume {args.resume} continues a run with its own recipe; give no recipe and no fields")
    if not (args.resume or args.recipe):
        raise GlocalError("no recipe was given; give a name from `glocal list recipes`, or a YAML file")
    announce(f"glocal train {args.recipe}" if args.recipe else f"glocal train --resume {args.resume}")
    from glocal import runner

    if args.resume:
        runner.resume(args.resume)
    else:
        runner.train(args.recipe, overrides(args))

"""`glocal train`"""

import argparse

from glocal.cli.arguments import announce, overrides
from glocal.errors import GlocalError

USAGE = "glocal train RECIPE [--from MODEL] [--data SOURCE] [--SECTION.FIELD VALUE ...]"


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("recipe", nargs="?", help="a shipped recipe's name, or a YAML file")
    parser.add_argument("--from", dest="start", metavar="MODEL", help="fine-tune a run, a model's folder or a hub id")
    parser.add_argument("--data", metavar="SOURCE", help="short for --data.source")
    parser.add_argument("--resume", metavar="RUN", help="continue a run to the weights it would have reached unstopped")
    parser.epilog = (
        "Any field of a recipe is set by its dotted name (--train.epochs 3); `glocal train RECIPE --fields` lists them."
    )


def run(args: argparse.Namespace) -> None:
    """Train or fine-tune by a recipe, or continue a run that was stopped."""
    if args.resume and (args.recipe or args.fields or args.start or args.data):
        raise GlocalError(f"--resume {args.resume} continues a run as it was begun; give it no recipe and no fields")
    if not (args.resume or args.recipe):
        raise GlocalError("which recipe? `glocal list recipes` names them; a YAML file of yours is one too")
    announce(f"glocal train {args.recipe}" if args.recipe else f"glocal train --resume {args.resume}")
    from glocal import runner

    if args.resume:
        runner.resume(args.resume)
    else:
        runner.train(args.recipe, overrides(args))

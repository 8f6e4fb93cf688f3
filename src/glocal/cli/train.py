"""`glocal train`"""

import argparse

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
    from glocal import experiment

    if args.resume:
        if args.recipe or args.fields:
            raise GlocalError(
                f"--resume {args.resume} continues a run as it was begun; give it no recipe and no fields"
            )
        print(experiment.resume(args.resume))
    elif args.recipe:
        shorthands = {"--model.from": args.start, "--data.source": args.data}
        fields = [f"{name}={value}" for name, value in shorthands.items() if value is not None]
        print(experiment.train(args.recipe, [*fields, *args.fields]))
    else:
        raise GlocalError("which recipe? `glocal list recipes` names them; a YAML file of yours is one too")

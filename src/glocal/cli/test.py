"""`glocal test`"""

import argparse

from glocal.cli.arguments import announce


def add_options(parser: argparse.ArgumentParser) -> None:
    """What it takes."""
    parser.add_argument("model", metavar="RUN", help="a run's folder")
    parser.add_argument("--data", metavar="SOURCE", help="other data than the run's own")
    parser.add_argument(
        "--precision",
        choices=["float32", "bf16", "fp16", "int8"],
        help="of the weights, as in glocal predict (default: as in training)",
    )


def run(args: argparse.Namespace) -> None:
    """Measure a run on its test split, or on other data of the same kind."""
    announce(f"glocal test {args.model}")
    from glocal import runner
    from glocal.training import this_process

    runner.test(args.model, args.data, args.precision)
    if this_process().is_main_process:
        print(*runner.summary(args.model), sep="\n")

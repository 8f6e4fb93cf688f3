"""`glocal test`"""

import argparse

from glocal.cli.arguments import announce


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="RUN", help="a run's folder")
    parser.add_argument("--data", metavar="SOURCE", help="test on this data instead of the run's own test split")
    parser.add_argument(
        "--precision",
        choices=["float32", "bf16", "fp16", "int8"],
        help="number format of the weights, as in `glocal predict` (default: that of training)",
    )


def run(args: argparse.Namespace) -> None:
    """Measure a run's model on its test split, or on other data."""
    announce(f"glocal test {args.model}")
    from glocal import runner
    from glocal.training import this_process

    runner.test(args.model, args.data, args.precision)
    if this_process().is_main_process:
        print(*runner.summary(args.model), sep="\n")

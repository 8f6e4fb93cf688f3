"""`glocal info`"""

import argparse
from pathlib import Path

from glocal.cli.arguments import announce, positive
from glocal.errors import GlocalError, printable


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a model's name, a run or a folder")
    parser.add_argument(
        "--ops",
        action="store_true",
        help="list the implementation that each operation uses on this machine, with timings",
    )
    parser.add_argument("--image-size", type=positive, help="side of the images in pixels (default: the model's)")
    parser.add_argument(
        "--tokens", type=positive, default=25, help="length of a text, and of its translation (default 25)"
    )


def run(args: argparse.Namespace) -> None:
    """Print the parameters and MACs of a model, block by block."""
    announce(f"glocal info {args.model or '--ops'}", to_terminal=True)
    if args.ops:
        show_ops()
    if args.model is not None:
        show_model(args)
    elif not args.ops:
        raise GlocalError("no model was given; give a model's name, a run or a folder, or --ops")


def show_ops() -> None:
    """Print the implementation of each operation that was chosen on this machine, with the time of each candidate."""
    from rich.console import Console
    from rich.table import Table

    from glocal.ops import choices, kernels_state

    print(kernels_state())
    table = Table(box=None)
    for name in ("operation", "sizes and type", "threads", "implementation", "milliseconds"):
        table.add_column(name)
    for (operation, *sizes, threads), choice in sorted(choices().items(), key=lambda item: list(map(str, item[0]))):
        times = "  ".join(f"{name} {time:.3g}" for name, time in choice.milliseconds.items())
        table.add_row(str(operation), " ".join(map(str, sizes)), str(threads), choice.implementation, times)
    Console(markup=False).print(
        table if table.rows else "Nothing was timed yet: an implementation is chosen at the first use of an operation."
    )


def show_model(args: argparse.Namespace) -> None:
    """Print the parameters and MACs of each part of a model."""
    from rich.console import Console
    from rich.table import Table

    from glocal.models import GLiT, create_model, load_model
    from glocal.models.cost import count
    from glocal.models.loading import meta_device

    fields = {} if args.image_size is None else {"image_size": args.image_size}
    if Path(args.model).exists():
        model = load_model(args.model, **fields)
    else:
        with meta_device():
            model = create_model(args.model, **fields)
    size = getattr(model.config, "image_size", args.tokens)
    cost = count(model, size, getattr(model.config, "in_chans", 3))
    table = Table(box=None, title=printable(f"{args.model}, {cost.example}"), title_justify="left")
    for name in ("part", "", "parameters", "MACs"):
        table.add_column(name, justify="right" if name in ("parameters", "MACs") else "left")
    for row in cost.rows:
        table.add_row(row.name, row.part, f"{row.parameters:,}", f"{row.macs:,}")
    table.add_row("all", "", f"{cost.parameters:,}", f"{cost.macs:,}", style="bold")
    if isinstance(model, GLiT):
        table.add_row("by the authors' formula", "", "", f"{cost.macs - model.unpublished_macs():,}")
    Console(markup=False, emoji=False).print(table)

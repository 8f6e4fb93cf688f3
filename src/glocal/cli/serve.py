"""`glocal serve`"""

import argparse
from dataclasses import fields
from pathlib import Path

from glocal.cli.arguments import add_precision, announce, positive
from glocal.serve import ServeConfig

USAGE = "glocal serve RUN [RUN ...] [--host HOST] [--port PORT] [--max-batch N] [--token-file FILE] ..."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    default = ServeConfig()
    parser.add_argument(
        "models", nargs="+", metavar="RUN", help="runs or models' folders; NAME=RUN gives one a name of its own"
    )
    parser.add_argument("--host", default=default.host, help="the address to listen at (default %(default)s)")
    parser.add_argument("--port", type=int, default=default.port, help="port; 0 for any free one (default %(default)s)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the machine's accelerator, else cpu)")
    add_precision(parser)
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="file with the token that requests must send")
    for name, meaning in {
        "max_batch": "inputs of a batch",
        "slots": "texts that a causal model generates at once",
        "max_queue": "requests that wait for a model",
        "max_body": "bytes of a request",
        "max_text": "characters of an input",
        "max_pixels": "height times width of an image",
        "max_inputs": "inputs of a request",
        "max_tokens": "generated tokens for an input",
        "max_beams": "beams or samples of an input",
    }.items():
        flag, value = f"--{name.replace('_', '-')}", getattr(default, name)
        parser.add_argument(flag, type=positive, default=value, metavar="N", help=f"{meaning} (default {value})")
    parser.add_argument(
        "--max-wait",
        type=float,
        default=default.max_wait,
        metavar="MS",
        help="milliseconds to wait for a batch to fill under load (default %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=default.timeout,
        metavar="S",
        help="seconds for a request (default %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Answer requests over HTTP: predictions of any task, and OpenAI's protocol for completions and embeddings."""
    announce(f"glocal serve {' '.join(args.models)}", to_terminal=True)
    from glocal.serve.config import read_token
    from glocal.serve.server import serve

    given = {field.name: getattr(args, field.name) for field in fields(ServeConfig) if field.name != "token"}
    token = None if args.token_file is None else read_token(args.token_file)
    serve(args.models, ServeConfig(**given, token=token), args.device, args.precision)

"""What fewer bits a weight cost a trained model: its test metrics in float32, fp16, bf16 and int8.

    python benchmarks/precision.py RUN[=DATA] [RUN[=DATA] ...]

Each RUN is a run folder, as `glocal train` leaves it, tested on its own test split or on DATA. The table is printed and
written to results/precision-<processor>.csv. All rows compute in float32 but for the products that a precision rounds,
whatever the run was trained in, so that differences are those of the precision alone.
"""

import argparse
import warnings
from pathlib import Path

from timing import RESULTS, introduce, write

import glocal
from glocal.errors import GlocalError
from glocal.ops import PRECISIONS
from glocal.training import RunFolder

METRICS = ("top1", "f1", "perplexity", "accuracy", "bleu", "exact", "loss")
"""Those of all tasks that are written, where a task has them."""
COLUMNS = ("run", "recipe", "precision", "examples", *METRICS, "command", "commit", "machine", "torch_version")


def main() -> None:
    parser = argparse.ArgumentParser(description="Test trained models in each precision of their weights.")
    parser.add_argument("runs", nargs="+", metavar="RUN[=DATA]", help="run folders, and data to test them on")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table (default: results/)")
    args = parser.parse_args()
    introduce()
    rows = [row for given in args.runs for row in tested(*given.partition("=")[::2])]
    write(rows, "precision", COLUMNS, args.results)


def tested(folder: str, data: str) -> list[dict[str, object]]:
    """Test a run in each precision, and print its metrics."""
    run = Path(folder)
    rows: list[dict[str, object]] = []
    for precision in PRECISIONS:
        try:
            with warnings.catch_warnings(action="ignore"):
                test = glocal.test(run, data or None, precision)
        except GlocalError as error:
            print(f"{run.name} is left out: {error}", flush=True)
            return rows
        found = {name: test[name] for name in METRICS if isinstance(test.get(name), float)}
        print(
            f"{run.name:20} {precision:8}",
            "  ".join(f"{name} {value:.5g}" for name, value in found.items()),
            flush=True,
        )
        recipe = RunFolder.open(run).read_report().get("name", "")
        examples = test.get("examples", test.get("tokens"))
        rows.append({"run": run.name, "recipe": recipe, "precision": precision, "examples": examples} | found)
    return rows


if __name__ == "__main__":
    main()

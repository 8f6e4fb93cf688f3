"""From a run or a model's folder to a folder that another program reads."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from glocal.data.tokenizer import Tokenizer
from glocal.errors import GlocalError, check_path
from glocal.export.card import write_card
from glocal.export.format import Exported, Precision, Settings, check, find_format
from glocal.files import disk_errors, flush, remove
from glocal.models import load_model
from glocal.models.folders import find_folder
from glocal.recipes import read_fields
from glocal.tasks import TASKS, task_of
from glocal.training import RunFolder
from glocal.training.run import flat

DRAFT = ".export.tmp"
"""The folder, within the one to write, whose files take their places once all are written."""


def export(
    source: str | Path,
    folder: str | Path,
    to: str,
    *,
    precision: Precision = "float32",
    cache: bool = False,
    license: str = "unknown",
) -> Path:
    """Write a model, what belongs to it and a card as another program reads them, and return the folder.

    Args:
        source: a run, a model's folder, or a hub id.
        folder: where to write; files of the same names are replaced, others are kept.
        to: the format, one of `glocal.export.FORMATS`.
        precision: of the weights; each format has its own (docs/export.md).
        cache: also write a generative model as a single step with a cache of keys and values (onnx).
        license: the model's license, for its card, such as apache-2.0.

    Raises GlocalError if the format cannot hold the model; the error says why, and which formats can. Nothing is
    written then.
    """
    format, settings = find_format(to), Settings(precision, cache, license)
    check_path(folder, "a folder to write")
    exported = read(source)
    check(format, exported, settings)
    folder = Path(folder)
    with replacing_files(folder) as draft:
        format.write(exported, draft, settings)
        write_card(exported, format, settings, draft)
    return folder


def read(source: str | Path) -> Exported:
    """Read a model, its tokenizer, and the recipe and the report of its run, if it is a run's."""
    check_path(source, "a run, a model's folder or a hub id")
    model = load_model(source).eval()
    found = find_folder(source)
    run = RunFolder(found.parent)
    of_run = found == run.model and run.recipe.is_file()
    recipe = read_fields(run.recipe) if of_run else {}
    return Exported(
        source=str(source),
        model=model,
        task=TASKS.get(str(flat(recipe).get("task.name"))) or task_of(model),
        tokenizer=Tokenizer.load(found) if Tokenizer.is_in(found) else None,
        recipe=recipe,
        report=run.read_report() if of_run else {},
    )


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Give an empty folder, whose files take the places of those of the same names in `folder` once all are written.

    Raises WriteError, and leaves no draft, where the disk is full; a folder that was made for it is removed again.
    """
    made = not folder.exists()
    if folder.exists() and not folder.is_dir():
        raise GlocalError(f"{folder} is a file; give a folder to write")
    draft = folder / DRAFT
    with disk_errors(folder):
        remove(draft)  # of a process that was killed
        draft.mkdir(parents=True)
        try:
            yield draft
            files = sorted(path for path in draft.rglob("*") if path.is_file())
            for file in files:
                flush(file)
            for file in files:
                target = folder / file.relative_to(draft)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
            remove(draft)
        except BaseException:
            remove(folder if made else draft)
            raise

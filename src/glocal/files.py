"""Files at the boundary: how ours are written, whole or not at all, and how those that others wrote are read.

Files of others are read by `read_text`, `read_json` and `read_object`, or by a library within `foreign`; their errors
name the file. Ours are written by `replacing` and what is built on it; `locked` keeps a second process out of a folder.
"""

import csv
import errno
import fcntl
import io
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError

from glocal.errors import GlocalError

LOCK = ".lock"
"""The file of a folder that `locked` locks."""


class WriteError(GlocalError):
    """A file could not be written; what was on the disk before is whole."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the path of a draft, a file or a folder to be made, which takes the place of `path` once it is on the disk.

    Until then `path` is as it was. The draft of a process that was killed is removed first. Raises WriteError, and
    leaves no draft, where the draft cannot be written.
    """
    draft = path.with_name(f"{path.name}.tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(draft)
        try:
            yield draft
            for file in [*draft.rglob("*"), draft]:
                if file.is_file():
                    flush(file)
            if draft.is_dir():
                remove(path)  # a folder can only be renamed to a name that is free
            draft.replace(path)
        except BaseException:
            remove(draft)
            raise


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` once all of it is on the disk, as `replacing` does."""
    with replacing(path) as draft, draft.open("wb") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, in one piece."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one piece."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a TSV with a header in one piece."""
    text = io.StringIO(newline="")
    table = csv.writer(text, "excel-tab")
    table.writerow(columns)
    table.writerows(rows)
    write_text(path, text.getvalue())


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until what was written to a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the errors of a full or broken disk into one clear line, a WriteError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise WriteError(
            f"cannot write {path}: {reason}; what was saved before is whole: free some space, then repeat the command; "
            "a run continues with --resume"
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into a folder, by a lock that ends with this process, however it ends.

    Raises GlocalError, which names the process, where another one holds the lock. Where the file system has no locks,
    nothing is locked.
    """
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a child, such as a data worker, does not inherit it
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise GlocalError(f"{folder} is being written by {holder}; wait until that ends, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} ({shlex.join(sys.argv)[:200]})\n")
        file.flush()
        yield


LARGEST = 2**28
"""Bytes of the largest text file that is read whole; the largest published vocabularies have some 30 million."""


@contextmanager
def foreign(file: str | Path, problem: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads a foreign file into one GlocalError: the file, the problem, why.

    Damaged files make libraries raise nearly anything, and the tokenizers library panics, which is no Exception.
    """
    try:
        yield
    except GlocalError as error:
        message = str(error)
        if str(file) in message:
            raise
        raise GlocalError(f"{file} {problem}: {message}") from None
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise GlocalError(f"{file} {problem}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Say in one line what an error says."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{Path(error.filename).name}: " if isinstance(error.filename, str | Path) else ""
        return name + error.strerror.lower()
    said = " ".join(str(error).split())
    said = said if len(said) <= 300 else f"{said[:300]} ..."
    return said if isinstance(error, ValueError | RuntimeError) and said else f"{type(error).__name__} {said}".strip()


def read_text(file: Path) -> str:
    """Read a file of UTF-8. Raises GlocalError where it is missing, too large or no text."""
    try:
        if (size := file.stat().st_size) > LARGEST:
            raise GlocalError(f"{file} has {size:,} bytes; expected {LARGEST:,} at most")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GlocalError(f"{file} is no text in UTF-8: byte {error.start} is {error.object[error.start]:#x}") from None
    except OSError as error:
        raise GlocalError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}") from None


def read_json(file: Path) -> Any:
    """Read a file of JSON. Raises GlocalError where it cannot be read, is damaged, or is nested too deeply."""
    text = read_text(file)
    try:
        return json.loads(text)
    except RecursionError:
        raise GlocalError(f"{file} is nested too deeply") from None
    except ValueError as error:
        raise GlocalError(f"{file} is no JSON: {error}") from None


def read_object(file: Path) -> dict[str, Any]:
    """Read a file of JSON that holds an object, such as a config.json."""
    value = read_json(file)
    if not isinstance(value, dict):
        raise GlocalError(f"{file} holds {short(value)}; expected a JSON object of names and values")
    return value


def short(value: object, length: int = 60) -> str:
    """Write a value for an error, cut where it is long."""
    written = repr(value)
    return written if len(written) <= length else f"{written[:length]} ..."

"""Reading files that others wrote, with errors that name the file, and writing files whole or not at all.

Files of others are read by `read_text` and `read_object`, or by a library within `foreign`. Our files are written by
`replacing` and the functions that use it; `locked` keeps a second process from writing into a folder.
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

JSONObject = dict[str, Any]
"""A JSON object, such as a config.json, a report.json or a section of a recipe: values of any kind by their names."""

LOCK = ".lock"
"""The file of a folder that `locked` locks."""


class WriteError(GlocalError):
    """A file could not be written; what was on the disk before is unchanged."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a draft, a file or folder to be made, which replaces `path` once it is on the disk.

    Until then, `path` is unchanged. The draft of a process that was killed is removed first. Raises WriteError, and
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
    """Open a file that replaces `path` once all of it is on the disk, as `replacing` does."""
    with replacing(path) as draft, draft.open("wb") as file:
        yield file


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, all or nothing."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: object) -> None:
    """Write JSON, all or nothing."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a TSV with a header, all or nothing."""
    text = io.StringIO(newline="")
    table = csv.writer(text, "excel-tab")
    table.writerow(columns)
    table.writerows(rows)
    write_text(path, text.getvalue())


def remove(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
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
    """Turn the errors of a full or broken disk into a WriteError."""
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
    """Keep other processes from writing into a folder, by a lock that the system releases when this process ends.

    Raises GlocalError, which names the process, where another one holds the lock. Where the file system has no locks,
    nothing is locked.
    """
    with (folder / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # child processes, such as data workers, do not inherit it
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise GlocalError(f"{folder} is being written by {holder}; wait until that ends, or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} ({shlex.join(sys.argv)[:200]})\n")
        file.flush()
        yield


MAX_BYTES = 2**28
"""Bytes of the largest text file that is read whole; the largest published vocabularies have 30 million."""


@contextmanager
def foreign(file: str | Path, problem: str) -> Iterator[None]:
    """Turn any error of a library that reads a file into a GlocalError, which names the file and the problem.

    A damaged file can make a library raise any error; the tokenizers library panics, and its panic is no Exception.
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
    """Return the message of an error, on one line."""
    if isinstance(error, OSError) and error.strerror:
        name = f"{Path(error.filename).name}: " if isinstance(error.filename, str | Path) else ""
        return name + error.strerror.lower()
    message = " ".join(str(error).split())
    message = message if len(message) <= 300 else f"{message[:300]} ..."
    plain = message and isinstance(error, ValueError | RuntimeError)
    return message if plain else f"{type(error).__name__} {message}".strip()


def read_text(file: Path) -> str:
    """Read a file of UTF-8. Raises GlocalError if it is missing, too large or no text."""
    try:
        if (size := file.stat().st_size) > MAX_BYTES:
            raise GlocalError(f"{file} has {size:,} bytes; expected {MAX_BYTES:,} at most")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GlocalError(
            f"{file} is not text in UTF-8: byte {error.start} is {error.object[error.start]:#x}"
        ) from None
    except OSError as error:
        raise GlocalError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}") from None


def parse_json(text: str, where: str) -> object:
    """Return the value of a JSON text. Raises GlocalError, with `where`, where it is none or cannot be read."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise GlocalError(f"{where} is not JSON: {error}") from None
    except RecursionError:
        raise GlocalError(f"{where} is not readable JSON: it is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits, or a name that occurs twice
        raise GlocalError(f"{where} is not readable JSON: {str(error).partition(';')[0]}") from None


def _unique(pairs: list[tuple[str, object]]) -> JSONObject:
    """Return an object of JSON, of whose names Python would keep the last of equal ones."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {twice[:40]!r} twice")
    return found


def read_object(file: Path) -> JSONObject:
    """Read a file of JSON that holds an object, such as a config.json. Raises GlocalError if it holds none."""
    value = parse_json(read_text(file), str(file))
    if not isinstance(value, dict):
        raise GlocalError(f"{file} holds {short(value)}; expected a JSON object of names and values")
    return value


def short(value: object, length: int = 60) -> str:
    """Return a value as an error shows it, cut where it is long."""
    written = repr(value)
    return written if len(written) <= length else f"{written[:length]} ..."

"""What was judged stays judged: a file that remembers, so that a search that was killed goes on where it was."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from glocal.errors import GlocalError
from glocal.files import JSONObject, disk_errors

Record = Mapping[str, object]
"""What is known of a candidate, in plain values; its `fitness` above all."""
T = TypeVar("T")


class Journal:
    """An append-only file of JSON lines: the search's fingerprint, then one candidate a line.

    A line is on the disk before the next candidate is judged. A line that a kill left unfinished is dropped when the
    journal is opened again.

    Where several processes search together, all of them open it before the first candidate is judged, and one writes.

    Raises GlocalError where the file belongs to a search of another fingerprint, is no journal, or cannot be written.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, object], write: bool = True) -> None:
        self.path = path
        self.write = write
        self.records: dict[str, JSONObject] = {}  # by the key's JSON, in the order in which they were judged
        header = line({"fingerprint": fingerprint})
        content = path.read_bytes() if path.exists() else b""
        if header.startswith(content):  # new, or killed while it was begun
            self._write(header[len(content) :])
            return
        whole = content[: content.rfind(b"\n") + 1]
        try:
            first, *records = [json.loads(each) for each in whole.splitlines()]
            theirs = dict(first["fingerprint"])
            self.records = {json.dumps(record["key"]): record for record in records}
            if not all(isinstance(record["fitness"], int | float) for record in records):
                raise TypeError("a fitness is no number")
        except (ValueError, KeyError, TypeError, RecursionError):
            raise GlocalError(
                f"{path} is not the journal of a search; move it away, or search in another folder"
            ) from None
        ours = json.loads(header)["fingerprint"]
        if differing := [name for name in theirs | ours if theirs.get(name) != ours.get(name)]:
            raise GlocalError(
                f"{path} is the journal of another search, with other {', '.join(differing)}; "
                f"continue that one as it was, or search in another folder"
            )
        if write:
            os.truncate(path, len(whole))

    def append(self, key: object, record: Record) -> None:
        """Write a candidate down. `key` is a plain value that tells it from all others."""
        written = line({"key": key} | dict(record))
        self._write(written)
        self.records[json.dumps(key)] = json.loads(written)  # as it will be read, so that a resumed search is the same

    def remember(
        self, judge: Callable[[list[T]], Iterable[Record]], key: Callable[[T], object], together: bool = False
    ) -> Callable[[list[T]], list[float]]:
        """Turn `judge`, which gives a record for each candidate, into a fitness that asks it for unknown ones only.

        A judge that yields its records one by one loses no more than the candidate it is at; one that returns them
        together loses a generation. Where it judges candidates by each other, as in a race, say `together`: then a
        generation that a kill left half written is judged whole once more, for the same records.
        """

        def fitness(candidates: list[T]) -> list[float]:
            unknown = [each for each in candidates if json.dumps(key(each)) not in self.records]
            asked = candidates if unknown and together else unknown
            if asked:
                for candidate, record in zip(asked, judge(asked), strict=True):
                    if json.dumps(key(candidate)) not in self.records:
                        self.append(key(candidate), record)
            return [self.records[json.dumps(key(each))]["fitness"] for each in candidates]

        return fitness

    def _write(self, content: bytes) -> None:
        if not self.write:
            return
        with disk_errors(self.path), self.path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


def line(content: Mapping[str, object]) -> bytes:
    """Write a mapping of plain values as one line of JSON, floats exactly."""
    return json.dumps(content).encode() + b"\n"

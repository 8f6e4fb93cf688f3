"""The log of all evaluated candidates: a file, from which a search that was killed resumes without evaluating twice."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from glocal.errors import GlocalError
from glocal.files import JSONObject, disk_errors

Record = Mapping[str, object]
"""The result of a candidate, in plain values; one of them is its `fitness`."""
T = TypeVar("T")


class Journal:
    """An append-only file of JSON lines: first the search's fingerprint, then one candidate per line.

    A line is on the disk before the next candidate is evaluated. A line that a kill left unfinished is dropped when the
    journal is opened again.

    Where several processes search together, all of them open the journal before the first candidate is evaluated, and
    one of them writes.

    Raises GlocalError if the file belongs to a search of another fingerprint, is no journal, or cannot be written.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, object], write: bool = True) -> None:
        self.path = path
        self.write = write
        self.records: dict[str, JSONObject] = {}  # by the key's JSON, in the order in which they were evaluated
        header = line({"fingerprint": fingerprint})
        content = path.read_bytes() if path.exists() else b""
        if header.startswith(content):  # a new file, or one whose first line was left unfinished by a kill
            self._write(header[len(content) :])
            return
        finished = content[: content.rfind(b"\n") + 1]
        try:
            first, *records = [json.loads(each) for each in finished.splitlines()]
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
            os.truncate(path, len(finished))

    def append(self, key: object, record: Record) -> None:
        """Write a candidate's record. `key` is a plain value, and no other candidate has the same."""
        written = line({"key": key} | dict(record))
        self._write(written)
        self.records[json.dumps(key)] = json.loads(written)  # as it will be read, so that a resumed search is the same

    def cached(
        self,
        evaluator: Callable[[list[T]], Iterable[Record]],
        key: Callable[[T], object],
        whole_generations: bool = False,
    ) -> Callable[[list[T]], list[float]]:
        """Return the fitness of candidates as a function that evaluates only those that are not in the journal.

        `evaluator` returns one record per candidate. If it yields them one by one, a kill loses one candidate at most;
        if it returns them together, a kill loses a generation. Set `whole_generations` where a candidate's record
        depends on the others of its generation, as in a race: then a generation of which a kill left only a part in the
        journal is evaluated again as a whole, with the same records.
        """

        def fitness(candidates: list[T]) -> list[float]:
            unknown = [each for each in candidates if json.dumps(key(each)) not in self.records]
            evaluated = candidates if unknown and whole_generations else unknown
            if evaluated:
                for candidate, record in zip(evaluated, evaluator(evaluated), strict=True):
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

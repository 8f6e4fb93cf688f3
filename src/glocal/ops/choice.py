"""The choice of an operation's implementation: the one that is fastest on this machine.

At the first call with a class of shapes, the candidates are timed for some milliseconds. Plain torch is always one of
them, and another implementation must be 5 % faster to be taken. The choice is stored in the process, and, unless
something disturbed the timing, as a line of a file in the cache folder (GLOCAL_CACHE). There is one file for each
processor, version of torch and version of the kernels. With GLOCAL_OPS=plain, nothing is timed and every operation is
plain torch. After `keep_choices`, which training and search call, every choice is written, so that all processes and a
resumed run compute the same numbers. One process at a time measures; the others read its choices.
"""

import fcntl
import hashlib
import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import RLock
from time import monotonic, sleep
from typing import IO

import torch
from torch import Tensor

from glocal.ops.native import SOURCE, cache_dir, plain, processor

PLAIN = "plain"
GAIN = 0.95
"""An implementation is faster than another if it takes less than this share of its time. Repeated timings of the same
implementation differ by as much."""
SECONDS, ROUNDS = 0.05, 7
"""Limits of timing a class of shapes; there are at least two rounds."""
STEADY = 1.2
"""Largest ratio of a candidate's second best time to its best for a choice to be written to the file."""
FLUSHED = 2**24
"""Numbers that are read to empty the caches: 64 MB."""

LOCK = "ops.lock"
"""The file in the cache folder that a process locks while it measures."""
LOCK_TIMEOUT = 30.0
"""Seconds to wait for the lock, once: a process that was stopped by ctrl-Z may keep it."""

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Choice:
    """The implementation chosen for a class of shapes, and the milliseconds of each candidate."""

    implementation: str
    """Its name."""
    milliseconds: dict[str, float]


def size_class(number: int) -> int:
    """Round up to a power of two."""
    return 1 << (number - 1).bit_length()


@cache
def dtype_name(dtype: torch.dtype) -> str:
    """Return a type's name for a key, such as float32."""
    return str(dtype).removeprefix("torch.")


def step(function: Callable[..., Tensor], *tensors: Tensor) -> Callable[[], object]:
    """Return a candidate: a forward pass over copies of the tensors, and, in training, a backward pass."""
    training = torch.is_grad_enabled()
    leaves = [tensor.detach().clone().requires_grad_(training) for tensor in tensors]

    def run() -> None:
        with torch.set_grad_enabled(training), torch.autocast("cpu", enabled=False):
            y = function(*leaves)
        if training:
            y.backward(torch.ones_like(y))

    return run


def choose(
    key: Key,
    candidates: Callable[[], Mapping[str, Callable[[], object]]],
    cold: bool = False,
    frugal: str | None = None,
) -> str:
    """Return the name of the fastest candidate for `key`: the operation, its sizes and its type.

    `candidates` are built where the key is new. With `cold`, the caches are emptied before each run, as they are where
    an operation reads weights that a whole model has passed through since. `frugal` names a candidate that takes less
    memory than plain torch: it is chosen unless another one is 5 % faster.
    """
    key = (*key, torch.get_num_threads())
    known = _shared().choices
    made = known.get(key)
    if made is None:
        made = known[key] = Choice(PLAIN, {}) if plain() else _measured(key, candidates, cold, frugal)
    return made.implementation


def keep_choices() -> None:
    """Write every choice from now on, also one whose timings something disturbed."""
    global _keeps_all  # of the process, as the choices are
    _keeps_all = True


_keeps_all = False
_waits = True
_threads = RLock()
_depth = 0


def _measured(
    key: Key, candidates: Callable[[], Mapping[str, Callable[[], object]]], cold: bool, frugal: str | None
) -> Choice:
    """Measure a class of shapes, unless another process did meanwhile."""
    with _alone():
        shared = _shared()
        shared.read()
        if (made := shared.choices.get(key)) is not None:
            return made
        with torch.random.fork_rng(devices=[]):  # candidates draw their inputs, and dropout its mask
            made, steady = _measure(candidates(), cold, frugal)
        if made.milliseconds and (steady or _keeps_all):
            shared.add(key, made)
    return made


@contextmanager
def _alone() -> Iterator[None]:
    """Let other processes and threads that measure wait; of processes only where the cache folder can be written.

    A candidate may itself meet operations that are measured, which happens within its own.
    """
    global _depth  # of the lock, which this thread holds
    with _threads, ExitStack() as file:
        if not _depth:
            with suppress(OSError):
                cache_dir().mkdir(parents=True, exist_ok=True)
                _lock(file.enter_context((cache_dir() / LOCK).open("w")))
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1


def _lock(file: IO[str]) -> None:
    """Lock a file. After `LOCK_TIMEOUT`, this call and all later ones go on without the lock."""
    global _waits  # of the process
    until = monotonic() + LOCK_TIMEOUT
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not _waits or monotonic() > until:
                _waits = False
                return None
            sleep(0.01)


def choices() -> dict[Key, Choice]:
    """Everything that was chosen on this machine so far, by operation, sizes, type and threads."""
    return dict(_shared().choices)


def forget() -> None:
    """Forget this process's choices; those in the cache folder are read again."""
    _shared.cache_clear()


def _measure(
    candidates: Mapping[str, Callable[[], object]], cold: bool, frugal: str | None = None
) -> tuple[Choice, bool]:
    """Return the choice, and whether its timings agree with each other and nothing else took the processor."""
    if len(candidates) == 1:
        return Choice(PLAIN, {}), False
    times: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    before = _preemptions()
    for run in candidates.values():
        run()
    for count in range(ROUNDS):
        for name, run in candidates.items():
            if cold:
                _flush()
            began = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - began))
        if count and time.perf_counter() - start > SECONDS:
            break
    best = {name: min(of) for name, of in times.items()}
    fastest = min(best, key=best.__getitem__)
    agree = all(sorted(times[name])[1] < STEADY * best[name] for name in (fastest, PLAIN))
    steady = agree and _preemptions() - before < count  # threads that wait for other programs make all candidates slow
    usual = PLAIN if frugal is None or GAIN * best[frugal] > best[PLAIN] else frugal
    return Choice(fastest if best[fastest] < GAIN * best[usual] else usual, best), steady


def _preemptions() -> int:
    """How often the process lost its processor to another one."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


@cache
def _buffer() -> Tensor:
    return torch.zeros(FLUSHED)


def _flush() -> None:
    _buffer().sum()


class SharedChoices:
    """The choices of this process, which include those in the cache folder's file."""

    def __init__(self) -> None:
        self.choices: dict[Key, Choice] = {}
        self.position = 0
        """Bytes of the file that were read."""
        if not plain():
            self.read()

    def read(self) -> None:
        """Read the lines that were added since the last call; a damaged line holds no choice."""
        with suppress(OSError), _file().open("rb") as file:
            file.seek(self.position)
            *lines, unfinished = file.read().split(b"\n")
            self.position = file.tell() - len(unfinished)
            for line in lines:
                with suppress(ValueError, TypeError):
                    key, implementation, milliseconds = json.loads(line)
                    if isinstance(implementation, str):
                        self.choices.setdefault(tuple(key), Choice(implementation, dict(milliseconds)))

    def add(self, key: Key, made: Choice) -> None:
        """Add a choice to the file, after `read`. A folder that cannot be written keeps it in the process alone."""
        line = json.dumps([key, made.implementation, made.milliseconds]).encode() + b"\n"
        with suppress(OSError):
            _file().parent.mkdir(parents=True, exist_ok=True)
            with _file().open("ab", buffering=0) as file:
                # A process that was killed may have left a part of a line.
                file.write(line if file.tell() == self.position else b"\n" + line)
                self.position = file.tell()


@cache
def _shared() -> SharedChoices:
    return SharedChoices()


def _file() -> Path:
    return cache_dir() / f"ops-{_timed_with(processor(), torch.__version__)}.jsonl"


@cache
def _timed_with(processor: str, torch_version: str) -> str:
    """Return a hash of what timings depend on: the processor, and the versions of torch and of the kernels."""
    return hashlib.sha256(f"{processor}\n{torch_version}\n{SOURCE.read_text()}".encode()).hexdigest()[:16]

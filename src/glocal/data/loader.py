"""Loaders whose worker processes live from epoch to epoch."""

import atexit
import signal
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from glocal.data.encoding import Batch
from glocal.errors import GlocalError

Key = TypeVar("Key")
"""A batch's number, or its epoch and number."""


class KeyedBatches(Dataset[Batch | GlocalError], ABC, Generic[Key]):
    """Batches by their key, which worker processes make."""

    def __getitem__(self, key: Key) -> Batch | GlocalError:
        try:
            return self.make(key)
        except GlocalError as error:  # an error raised by a worker would come with its traceback
            return error

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def make(self, key: Key) -> Batch:
        """Return the batch of a key."""


class Loader(Generic[Key]):
    """The loader of all passes over some batches, so that its worker processes live from epoch to epoch."""

    def __init__(self, batches: KeyedBatches[Key], workers: int) -> None:
        self.batches = batches
        self.keys: list[Key] = []
        """The batches of the present pass."""
        self.loader: DataLoader[Batch | GlocalError] = DataLoader(
            batches,
            batch_size=None,
            sampler=self.keys,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=_leave_interrupts_to_the_parent,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else each pass would draw from the network's generator
        )

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch | GlocalError]:
        iterator = iter(self.loader)
        if self.loader not in _ENDED_AT_EXIT:
            _ENDED_AT_EXIT.add(self.loader)
            atexit.register(_end_workers, weakref.ref(self.loader))  # after torch's own, so that it runs before them
        return iterator


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach all processes: training needs its workers until it has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


_ENDED_AT_EXIT: "weakref.WeakSet[DataLoader[Batch | GlocalError]]" = weakref.WeakSet()


def _end_workers(loader: "weakref.ref[DataLoader[Batch | GlocalError]]") -> None:
    """End the workers of a loader that an error's traceback keeps alive; they ignore the SIGTERM of Python's exit."""
    iterator = getattr(loader(), "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()


class Batches(Generic[Key]):
    """One pass over some batches, each made on demand. A new pass of the same kind ends an older one."""

    def __init__(self, loader: Loader[Key], keys: Sequence[Key]) -> None:
        self.loader, self.keys = loader, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __iter__(self) -> Iterator[Batch]:
        self.loader.keys[:] = self.keys
        for batch in self.loader:
            if isinstance(batch, GlocalError):
                raise batch
            yield batch

"""Texts of a causal model, generated side by side: each joins the running batch, and leaves it, between two tokens."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import NamedTuple

from glocal.generation import ContinuousBatch, DecodingConfig, Progress
from glocal.serve.batching import OverloadError


class Prompt(NamedTuple):
    """What one text is generated from: the arguments of `ContinuousBatch.submit`."""

    input_ids: list[int]
    config: DecodingConfig
    logprobs: int | None = None
    """How many of the most probable tokens are listed beside each token; None: no probabilities."""
    sample: int = 0
    """Which of the samples that `generate` draws."""


class Texts:
    """The texts of one request. The event loop alone touches it."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts = prompts
        self.updates: dict[int, Progress] = {}
        """What has come since it was last read, by the prompt's place."""
        self.error: Exception | None = None
        self.change = asyncio.Event()
        self.loop = asyncio.get_running_loop()

    def post(self, updates: dict[int, Progress], error: Exception | None = None) -> None:
        """Take what the generating thread has made."""
        self.updates |= updates
        self.error = error or self.error
        self.change.set()

    async def read(self) -> dict[int, Progress]:
        """Wait for new tokens; raise the error that ended the texts."""
        await self.change.wait()
        self.change.clear()
        if self.error is not None:
            raise self.error
        updates, self.updates = self.updates, {}
        return updates


class Generator:
    """Generates texts in a thread of its own, which alone calls the batch."""

    def __init__(self, new_batch: Callable[[], ContinuousBatch], max_queue: int) -> None:
        """`new_batch` makes an empty batch, and is called again after an error that left one in an unknown state."""
        self.new_batch, self.max_queue = new_batch, max_queue
        self.batch = new_batch()
        self.commands: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        """What the thread is to do between two tokens; None ends it."""
        self.owners: dict[int, tuple[Texts, int]] = {}
        """Whose text has which number in the batch, and its place there."""
        self.waiting = 0
        """Texts that are not finished, of all requests."""
        self.thread = Thread(target=self.run, name="glocal-texts", daemon=True)

    def start(self) -> None:
        """Begin to generate texts for requests, until `close`."""
        self.thread.start()

    def close(self) -> None:
        """End the thread."""
        self.commands.put(None)
        self.thread.join()

    async def generate(self, prompts: Sequence[Prompt]) -> AsyncGenerator[dict[int, Progress], None]:
        """Yield how far texts are, by the prompt's place, each time that there are new tokens, until all are finished.

        A text that was not yielded is as it was. Closing the iterator early ends the texts. Raises OverloadError where
        too many texts wait, and GlocalError for a prompt that cannot be continued.
        """
        if self.waiting and self.waiting + len(prompts) > self.max_queue:
            raise OverloadError(f"{self.waiting} texts are waiting for this model; try again later")
        texts = Texts(prompts)
        unfinished = set(range(len(prompts)))
        self.waiting += len(prompts)
        self.commands.put(lambda: self.submit(texts))
        try:
            while unfinished:
                updates = await texts.read()
                unfinished -= {place for place, progress in updates.items() if progress.finished}
                yield updates
        finally:
            self.waiting -= len(prompts)
            if unfinished:
                self.commands.put(lambda: self.cancel(texts))

    def run(self) -> None:
        """Generate token after token, and follow the commands between them."""
        while self.follow_commands():
            try:
                self.deliver(self.batch.step())
            except Exception as error:  # passed to the waiting requests; the thread continues
                self.fail(error)

    def follow_commands(self) -> bool:
        """Follow what was commanded; wait for a command where no text is running. False: the thread is to end."""
        while not (self.batch.busy and self.commands.empty()):
            command = self.commands.get()
            if command is None:
                return False
            command()
        return True

    def submit(self, texts: Texts) -> None:
        """Add the texts of a request to the batch."""
        try:
            for place, prompt in enumerate(texts.prompts):
                self.owners[self.batch.submit(*prompt)] = texts, place
        except Exception as error:  # it belongs to the request, which ends with it
            self.cancel(texts)
            texts.loop.call_soon_threadsafe(texts.post, {}, error)

    def cancel(self, texts: Texts) -> None:
        """Take the texts of a request out of the batch."""
        for number in [number for number, (owner, _) in self.owners.items() if owner is texts]:
            self.batch.cancel(number)
            del self.owners[number]

    def deliver(self, made: Sequence[Progress]) -> None:
        """Give each request the new tokens of its texts."""
        posts: dict[Texts, dict[int, Progress]] = {}
        for progress in made:
            owner = self.owners.get(progress.number)
            if owner is not None:
                texts, place = owner
                posts.setdefault(texts, {})[place] = progress
                if progress.finished:
                    del self.owners[progress.number]
        for texts, updates in posts.items():
            texts.loop.call_soon_threadsafe(texts.post, updates)

    def fail(self, error: Exception) -> None:
        """End all texts with an error, and begin with an empty batch."""
        for texts in {texts for texts, _ in self.owners.values()}:
            texts.loop.call_soon_threadsafe(texts.post, {}, error)
        self.owners.clear()
        self.batch = self.new_batch()

"""The demo: models learn to read digits, to say numbers, to fill gaps and to write, in about four minutes anywhere.

It measures this machine for a few seconds, plans by that how long each part may learn, and leaves out what would learn
nothing in its time (`demo_plan.py`). Two processes learn, one from images and one from texts (`demo_parts.py`). In the
end it writes a report about what they learned, and pages to look into them (`demo_page.py`). Everything goes to
runs/demo; the last line printed is the path of the report.
"""

import argparse
import multiprocessing
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from demo_plan import Planned, plan
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

if TYPE_CHECKING:
    from demo_parts import Finished

BUDGET = 240.0
"""Seconds of the whole demo."""
PAGE = 12
"""What writing the page takes, in epochs of the ViT."""


class DemoError(Exception):
    """What ends the demo, in one line."""


class Screen:
    """What the demo prints: a line where a part begins, a line of what came of it, and bars on a terminal."""

    def __init__(self) -> None:
        self.start = time.time()
        self.console = Console(width=80, highlight=False, stderr=True)
        columns = (TextColumn("{task.description:>14}"), BarColumn(), TextColumn("{task.fields[left]}"))
        self.bars = Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal)

    def say(self, line: str) -> None:
        """Print a line with the seconds since the start."""
        seconds = f"{time.time() - self.start:4.0f} s  "
        text = textwrap.fill(line, 80, initial_indent=seconds, subsequent_indent=" " * len(seconds))
        self.console.print(text, markup=False)

    def show(self, plans: Sequence[Planned], step: Mapping[str, float]) -> None:
        """Print the plan, and what is left out."""
        table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
        table.add_column("        part")
        for name in ("ms a step", "planned", "seconds"):
            table.add_column(name, justify="right")
        for each in plans:
            name = each.part.name
            seconds = f"{each.seconds:.0f}" if each.rounds else ""
            table.add_row(f"        {name}", f"{1000 * step[name]:.0f}", each.length, seconds)
        self.console.print()
        self.console.print(table)
        self.console.print()
        if too_long := [each for each in plans if not each.rounds]:
            self.say(left_out(too_long))


def left_out(plans: Sequence[Planned]) -> str:
    """Say which parts are left out, and why."""
    parts = (f"{each.part.name} ({each.part.least} {each.part.unit}, {each.seconds:.0f} s)" for each in plans)
    return f"left out, since the least that teaches something takes too long here: {', '.join(parts)}"


def main(budget: float) -> None:
    """Measure, plan, learn, and write the page."""
    screen = Screen()
    screen.say(f"models learn from images and from texts, for {budget:.0f} seconds altogether")
    from demo_page import learned, write_looks, write_report  # loads torch, which takes seconds
    from demo_parts import FOLDER, LANES, write_texts

    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    write_texts()
    with lanes(list(LANES)) as connections:
        screen.say("measuring a few steps of each part, images and texts side by side")
        measured = [receive(connection) for connection in connections.values()]
        pace = {name: seconds for each in measured for name, seconds in each.pace.items()}
        step = {name: seconds for each in measured for name, seconds in each.step.items()}
        end = screen.start + budget - PAGE * pace["ViT"]
        left = end - time.time()
        plans = [each for lane in LANES.values() for each in plan([lesson.part for lesson in lane], pace, left)]
        screen.show(plans, step)
        if not any(each.rounds for each in plans):
            more = f"python examples/demo.py --seconds {4 * budget:.0f}"
            raise DemoError(f"{budget:.0f} seconds are too few on this machine; give it more: {more}")
        for connection in connections.values():
            connection.send(end)
        finished = watch(connections, screen, plans)
    report = write_report(plans, finished, step, screen.start)
    for name, page in write_looks(finished).items():
        screen.say(f"look into the {name}: {page}")
    runs = " ".join(map(str, learned(finished).values()))
    screen.say(f"serve all on this machine: {Path(sys.executable).parent / 'glocal'} serve {runs}")
    screen.say("the report is written")
    print(report.resolve())


@contextmanager
def lanes(names: Sequence[str]) -> Iterator[dict[str, Connection]]:
    """Start a process for each lane, and give the connections to them; in the end no process is left."""
    from demo_parts import work

    # A fork has torch loaded. Where forks are not safe, each process loads it anew.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    processes = []
    connections = {}
    try:
        for name in names:
            connections[name], theirs = context.Pipe()
            process = context.Process(target=work, args=(name, theirs))
            process.start()
            theirs.close()  # so that the connection ends with the process
            processes.append(process)
        yield connections
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join(timeout=20)
            process.kill()


def receive(connection: Connection) -> Any:
    """Return the next message. Raises DemoError if the process has failed."""
    from demo_parts import FOLDER, Failed

    try:
        message = connection.recv()
    except EOFError:
        raise DemoError(f"a process has ended without a word; {FOLDER}/*.log may say why") from None
    if isinstance(message, Failed):
        raise DemoError(f"{message.reason} ({FOLDER}/*.log has more)")
    return message


def watch(connections: Mapping[str, Connection], screen: Screen, plans: Sequence[Planned]) -> "list[Finished]":
    """Print what the processes report until both are done, and return what they have finished."""
    from demo_parts import Ended, Finished, Started

    expected = {each.part.name for each in plans if each.rounds}
    running = dict(connections)
    bars = {name: screen.bars.add_task(name, left="") for name in running}
    begun: dict[str, tuple[float, Planned]] = {}  # when a lane's part began
    finished = []
    with screen.bars:
        while running:
            ready = wait(list(running.values()), timeout=0.5)
            for lane in [lane for lane, connection in running.items() if connection in ready]:
                message = receive(running[lane])
                match message:
                    case Started(planned, about):
                        begun[lane] = (time.time(), planned)
                        name = planned.part.name
                        screen.say(f"{name} {about}: {planned.length}, about {planned.seconds:.0f} s")
                    case Finished(planned, _, result):
                        finished.append(message)
                        if planned.rounds:
                            screen.say(f"{planned.part.name}: {result}")
                        elif planned.part.name in expected:
                            screen.say(left_out([planned]))
                    case Ended():
                        screen.bars.update(bars[lane], visible=False)
                        del running[lane]
            for lane in running.keys() & begun.keys():
                start, planned = begun[lane]
                passed = time.time() - start
                left = f"{max(planned.seconds - passed, 0):.0f} s left"
                screen.bars.update(
                    bars[lane], description=planned.part.name, completed=passed, total=planned.seconds, left=left
                )
    return finished


def interrupt(number: int, frame: FrameType | None) -> None:
    """End the demo by a signal, and with it its processes."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=BUDGET, help="how long it may take (default: %(default).0f)")
    for number in (signal.SIGINT, signal.SIGTERM):  # also where SIGINT was ignored, as it is in the background
        signal.signal(number, interrupt)
    try:
        main(parser.parse_args().seconds)
    except DemoError as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit("demo: stopped")

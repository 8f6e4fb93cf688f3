"""How the demo's time is divided: what was measured and a budget of seconds in, a plan out. Nothing here trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

FIRM = 2 / 3
"""Share of the budget that the least of all parts may take: few parts that learn well are better than many that do not.
"""


@dataclass(frozen=True)
class Part:
    """What the demo may learn, counted in rounds: epochs or steps."""

    name: str
    unit: Literal["epochs", "steps"]
    """What a round is."""
    least: int
    """Fewest rounds after which a model has learned something."""
    most: int
    """Rounds after which it gains little more."""
    share: float
    """Its weight where the time that is left is divided, after each part has its least."""
    overhead: float
    """What its set-up, its test and its figures take, in rounds."""
    needs: str = ""
    """Name of the part whose model it starts from."""


@dataclass(frozen=True)
class Planned:
    """A part and the time that it is given."""

    part: Part
    rounds: int
    """0 where the part is left out."""
    training: float
    """Seconds of these rounds; where it is left out, of the fewest that teach something."""
    seconds: float
    """The same with its overhead."""

    @property
    def length(self) -> str:
        """How long it learns, in words."""
        return f"{self.rounds:,} {self.part.unit}" if self.rounds else "left out"


def plan(parts: Sequence[Part], pace: Mapping[str, float], budget: float) -> list[Planned]:
    """Divide `budget` seconds among `parts`, the most important first; `pace` maps their names to seconds a round.

    Each part gets the fewest rounds that teach something, as long as they fit: into the budget for the first part that
    does, into `FIRM` of it for others. A part for which they do not fit is left out, and with it what needs it. The
    seconds that remain are divided by the parts' shares. No part gets more than its most: others get what it leaves,
    and where all have their most the plan is shorter than the budget.
    """
    names = {part.name for part in parts}
    rounds: dict[str, float] = {}
    left = budget
    for part in parts:
        cost = (part.least + part.overhead) * pace[part.name]
        kept_free = (1 - FIRM) * budget if rounds else 0.0
        if cost <= left - kept_free and (part.needs in rounds or part.needs not in names):
            rounds[part.name] = part.least
            left -= cost

    growing = [part for part in parts if part.name in rounds]
    while growing:
        second = left / sum(part.share for part in growing)  # of each unit of a share
        full = [part for part in growing if second * part.share >= (part.most - rounds[part.name]) * pace[part.name]]
        for part in full or growing:
            gained = part.most - rounds[part.name] if full else second * part.share / pace[part.name]
            rounds[part.name] += gained
            left -= gained * pace[part.name]
        growing = [part for part in growing if part not in full] if full else []

    return [planned(part, int(rounds.get(part.name, 0) + 1e-6), pace[part.name]) for part in parts]


def planned(part: Part, rounds: int, pace: float) -> Planned:
    """Return the part with its seconds."""
    counted = rounds or part.least
    return Planned(part, rounds, counted * pace, (counted + part.overhead) * pace)

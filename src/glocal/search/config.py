"""What can be said about a search: the section `search` of a recipe."""

from dataclasses import dataclass, field
from typing import Literal

from glocal.errors import GlocalError, check_range
from glocal.search.cost import CostKind
from glocal.search.evolution import EvolutionConfig
from glocal.search.paths import Sampling
from glocal.search.space import SpaceConfig
from glocal.search.supernet import Sharing
from glocal.training import TrainConfig


@dataclass(frozen=True)
class BudgetConfig:
    """What a found model may cost, for one image or one text."""

    kind: CostKind = "macs"
    """Multiply-accumulates, parameters, or milliseconds on this machine: of one image or text in evaluation, or of a
    generated token in the middle of a text."""
    tokens: int | None = None
    """Tokens of the text; of a translation's target there are as many. null: `data.max_length`."""
    lower: float | int | None = None
    """The least. It applies to the last stage only: candidates of the first stage are too small to reach it."""
    upper: float | int | None = None
    """The most."""

    @property
    def unit(self) -> str:
        """What cost is counted in, for readers."""
        return {"macs": "MACs", "milliseconds_per_token": "milliseconds a token"}.get(self.kind, self.kind)


@dataclass(frozen=True)
class SearchConfig:
    """A search; `train` of the same recipe is how its finalists, and what they are compared with, are trained."""

    method: Literal["hierarchical", "heads", "flat", "random"] = "hierarchical"
    """Heads first and details then (GLiT); heads alone; both at once (SPOS); or both at once and no evolution. The last
    two train their one supernet for twice the epochs and judge twice the generations: as much as two stages."""
    space: SpaceConfig = SpaceConfig()
    """The values to choose from."""
    sharing: Sharing = "entangled"
    """How paths share the supernet's weights."""
    sampling: Sampling = "uniform"
    """Which paths a batch trains: one at random (SPOS); one, so that all options of a block are trained equally often
    (FairNAS), at no cost; or the largest, the smallest and two random ones, of which the first teaches the others
    (BigNAS), at four to five times the cost of a step."""
    budget: BudgetConfig = BudgetConfig()
    """What a path may cost."""
    supernet: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=50))
    """How the supernet of a stage is trained."""
    evolution: EvolutionConfig = EvolutionConfig()
    """How a stage's supernet is searched."""
    val_fraction: float = 0.1
    """Share of the *training* examples that judge paths instead of training the supernet. (The paper: 50,000 of
    ImageNet's 1.28 million.) No search sees the validation or test examples."""
    batch_size: int = 250
    """Images, rows of texts, or target tokens that a path is judged by at once; a race drops paths after each batch."""
    calibration: int = 512
    """Training examples on which each path's BatchNorm statistics are measured before it is judged."""
    race: bool = True
    """Whether a path stops being judged once it can hardly reach the best `evolution.parents` of its generation."""
    retrain: int = 5
    """Finalists that are trained from nothing; the best on validation is what the search has found."""
    halving: int = 0
    """Rounds before that (successive halving, Jamieson and Talwalkar 2016): of 2^halving times as many finalists, each
    round trains all that are left from nothing, twice as long as the round before, and keeps the better half. Each
    round costs as much as the last one."""
    seeds: int = 1
    """Trainings of each finalist, with as many seeds; the best mean decides, and the first training is what is kept."""

    @property
    def finalists(self) -> int:
        """Candidates that are trained from nothing, for however short a time."""
        return self.retrain * 2**self.halving

    def check(self) -> None:
        """Raise GlocalError where a value means nothing."""
        self.space.check()
        self.supernet.check()
        self.evolution.check()
        if self.supernet.minutes is not None:
            raise GlocalError("search.supernet needs epochs, not minutes: a search is the same on any machine")
        if self.supernet.ema or self.supernet.average or self.supernet.patience or self.supernet.tune != "all":
            raise GlocalError(
                "search.supernet takes no ema, average, patience or tune: all weights are trained, the last searched"
            )
        check_range("search.val_fraction", self.val_fraction, above=0, below=1)
        for name, least in {"batch_size": 1, "calibration": 2, "retrain": 1, "halving": 0, "seeds": 1}.items():
            check_range(f"search.{name}", getattr(self, name), least=least)
        check_range("search.budget.tokens", self.budget.tokens, least=1)
        if self.race and self.finalists > self.evolution.parents:
            raise GlocalError(
                f"search.retrain {self.retrain} and halving {self.halving} need {self.finalists} finalists, which is "
                f"more than evolution.parents {self.evolution.parents}, the places that paths race for; lower them, or "
                "set race false"
            )
        for name in ("lower", "upper"):
            check_range(f"search.budget.{name}", getattr(self.budget, name), least=0)

"""What can be said about a search: the section `search` of a recipe."""

from dataclasses import dataclass, field
from typing import Literal

from glocal.errors import GlocalError, check_range
from glocal.search.cost import CostKind
from glocal.search.evolution import EvolutionConfig
from glocal.search.space import SpaceConfig
from glocal.search.supernet import Sharing
from glocal.training import TrainConfig


@dataclass(frozen=True)
class BudgetConfig:
    """What a found model may cost, for one image."""

    kind: CostKind = "macs"
    """Multiply-accumulates, parameters, or milliseconds measured on this machine."""
    lower: float | int | None = None
    """The least. It applies to the last stage only: candidates of the first stage are too small to reach it."""
    upper: float | int | None = None
    """The most."""

    @property
    def unit(self) -> str:
        """What cost is counted in, for readers."""
        return {"macs": "MACs"}.get(self.kind, self.kind)


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
    budget: BudgetConfig = BudgetConfig()
    """What a path may cost."""
    supernet: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=50))
    """How the supernet of a stage is trained."""
    evolution: EvolutionConfig = EvolutionConfig()
    """How a stage's supernet is searched."""
    val_fraction: float = 0.1
    """Share of the *training* images that judge paths instead of training the supernet. (The paper: 50,000 of
    ImageNet's 1.28 million.) No search sees the validation or test images."""
    calibration: int = 512
    """Training images on which each path's BatchNorm statistics are measured before it is judged."""
    race: bool = True
    """Whether a path stops being judged once it can hardly reach the best `evolution.parents` of its generation."""
    retrain: int = 5
    """Finalists that are trained from nothing; the best on validation is what the search has found."""

    def check(self) -> None:
        """Raise GlocalError where a value means nothing."""
        self.space.check()
        self.supernet.check()
        self.evolution.check()
        if self.supernet.epochs is None:
            raise GlocalError("search.supernet needs epochs, not minutes: a search is the same on any machine")
        if self.supernet.ema or self.supernet.average or self.supernet.patience or self.supernet.tune != "all":
            raise GlocalError(
                "search.supernet takes no ema, average, patience or tune: all weights are trained, the last searched"
            )
        if self.race and self.retrain > self.evolution.parents:
            raise GlocalError(
                f"search.retrain {self.retrain} is more than evolution.parents {self.evolution.parents}, the places "
                "that paths race for; lower it, or set race false"
            )
        check_range("search.val_fraction", self.val_fraction, above=0, below=1)
        check_range("search.calibration", self.calibration, least=2)
        check_range("search.retrain", self.retrain, least=1)
        for name in ("lower", "upper"):
            check_range(f"search.budget.{name}", getattr(self.budget, name), least=0)

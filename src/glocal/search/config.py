"""The fields of a search: the section `search` of a recipe."""

from dataclasses import dataclass, field
from typing import Literal

from glocal.errors import GlocalError, check_range
from glocal.search.budget import Budget
from glocal.search.cost import CostKind
from glocal.search.counts import CostTable
from glocal.search.evolution import EvolutionConfig
from glocal.search.paths import Sampling
from glocal.search.space import SpaceConfig
from glocal.search.supernet import Sharing
from glocal.training import TrainConfig


@dataclass(frozen=True)
class BudgetConfig:
    """What a found model may cost, for one image or one text."""

    kind: CostKind = "macs"
    """Multiply-accumulates, parameters, or milliseconds on this machine: for one image or text in evaluation, or
    for one generated token in the middle of a text."""
    tokens: int | None = None
    """Tokens of the text; in a translation, tokens of the source and tokens of the target. null: `data.max_length`."""
    lower: float | int | None = None
    """The least cost. It applies to the last stage only: candidates of the first stage are too small to reach it."""
    upper: float | int | None = None
    """The greatest cost."""

    @property
    def unit(self) -> str:
        """The unit of cost, for readers."""
        return {"macs": "MACs", "milliseconds_per_token": "milliseconds per token"}.get(self.kind, self.kind)

    def of(self, cost: CostTable) -> Budget:
        """Return the budget for paths whose costs are in a table."""
        return Budget(cost, self.lower, self.upper, self.unit)


@dataclass(frozen=True)
class SearchConfig:
    """A search. Its finalists, and the model that it starts from, are trained by the recipe's section `train`."""

    method: Literal["hierarchical", "heads", "flat", "random", "halving"] = "hierarchical"
    """hierarchical: first the heads, then the details (GLiT); heads: the heads alone; flat: both at once (SPOS);
    random: both at once, without evolution. `flat` and `random` train one supernet for twice the epochs and evaluate
    twice the generations, which is as much as two stages. halving: no supernet; paths are drawn at random within the
    budget, and `search.halving` rounds of short trainings choose among them."""
    space: SpaceConfig = SpaceConfig()
    """The values to choose from."""
    sharing: Sharing = "entangled"
    """How paths share the supernet's weights."""
    sampling: Sampling = "uniform"
    """Which paths a batch trains. uniform: one at random (SPOS); fair: one, drawn so that all options of a block are
    trained equally often, at no extra cost (FairNAS); sandwich: the largest, the smallest and two random ones, of which
    the largest teaches the others, and each step costs 4 to 5 times as much (BigNAS)."""
    budget: BudgetConfig = BudgetConfig()
    """What a path may cost."""
    supernet: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=50))
    """How the supernet of a stage is trained."""
    evolution: EvolutionConfig = EvolutionConfig()
    """How a stage's supernet is searched."""
    val_fraction: float = 0.1
    """Share of the *training* examples on which paths are evaluated, and which do not train the supernet. (The paper:
    50,000 of ImageNet's 1.28 million.) No search reads the validation or test examples."""
    batch_size: int = 250
    """Images, rows of texts, or target tokens per batch of an evaluation; a race eliminates paths after each batch."""
    calibration: int = 512
    """Training examples on which each path's BatchNorm statistics are measured before it is evaluated."""
    race: bool = True
    """Whether to stop evaluating a path that can hardly be among the best `evolution.parents` of its generation."""
    retrain: int = 5
    """Finalists that are trained from scratch; the best one on the validation split is the result of the search."""
    halving: int = 0
    """Rounds of successive halving before the full training (Jamieson and Talwalkar 2016). With 2: start with 4 times
    the finalists, train each for a quarter of the steps, keep half, train for a half, keep half, then train fully.
    Every round trains from scratch, and costs as much as the full training."""
    seeds: int = 1
    """Trainings of each finalist, each with another seed. The best mean decides, and the first training is kept."""

    @property
    def finalists(self) -> int:
        """Candidates that are trained from scratch, in the first round of halving if there is one."""
        return self.retrain * 2**self.halving

    def check(self) -> None:
        """Raise GlocalError if a value means nothing."""
        self.space.check()
        self.supernet.check()
        self.evolution.check()
        if self.supernet.minutes is not None:
            raise GlocalError("search.supernet needs epochs, not minutes: a search is the same on any machine")
        if self.supernet.ema or self.supernet.average or self.supernet.patience or self.supernet.tune != "all":
            raise GlocalError(
                "search.supernet takes no ema, average, patience or tune: all weights are trained, and the search uses "
                "those of the last step"
            )
        check_range("search.val_fraction", self.val_fraction, above=0, below=1)
        for name, least in {"batch_size": 1, "calibration": 2, "retrain": 1, "halving": 0, "seeds": 1}.items():
            check_range(f"search.{name}", getattr(self, name), least=least)
        check_range("search.budget.tokens", self.budget.tokens, least=1)
        if self.method == "halving" and self.halving < 1:
            raise GlocalError(
                f"search.method halving chooses among paths by rounds of short trainings, and search.halving is "
                f"{self.halving}; set search.halving to 1 or more, e.g. 3"
            )
        if self.method != "halving" and self.race and self.finalists > self.evolution.parents:
            raise GlocalError(
                f"search.retrain {self.retrain} and halving {self.halving} need {self.finalists} finalists, but in a "
                f"race only the best {self.evolution.parents} paths of a generation (evolution.parents) are sure to be "
                "evaluated on all examples; lower them, raise parents, or set race false"
            )
        for name in ("lower", "upper"):
            check_range(f"search.budget.{name}", getattr(self.budget, name), least=0)

"""What can be said about training, and nothing that needs a model to say it."""

from dataclasses import dataclass
from typing import Literal

from glocal.errors import GlocalError, check_range


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2017). Biases, norms, tokens and positions do not decay."""

    weight_decay: float = 0.05
    """Share of a weight that a step at learning rate 1 takes away."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Memory of the gradient's mean and of its square."""
    eps: float = 1e-8
    """Added to the root of that square, which divides. (With 1e-9, betas 0.9, 0.98 and no decay: the Adam of Vaswani
    et al. 2017, section 5.3.)"""
    clip_norm: float = 0.0
    """Largest norm of the gradient of all weights together; 0 is off."""

    def check(self) -> None:
        """Raise GlocalError where a value is out of its range."""
        check_range("train.optimizer.weight_decay", self.weight_decay, least=0)
        for beta in self.betas:
            check_range("one of train.optimizer.betas", beta, least=0, below=1)
        check_range("train.optimizer.eps", self.eps, above=0)
        check_range("train.optimizer.clip_norm", self.clip_norm, least=0)


@dataclass(frozen=True)
class ScheduleConfig:
    """A linear rise to `train.lr`, then a fall."""

    kind: Literal["cosine", "inverse_sqrt"] = "cosine"
    """The fall: half a cosine to the end of the run (Loshchilov and Hutter 2016), or by the inverse square root of the
    step (Vaswani et al. 2017, equation 3, where `train.lr` is (d_model · warmup_steps)^-0.5)."""
    warmup_epochs: float = 0.0
    """Length of the rise; or `warmup_steps`, never both."""
    warmup_steps: int = 0
    """The same in steps."""
    min_lr: float = 0.0
    """Where the cosine ends."""

    def check(self) -> None:
        """Raise GlocalError where a value is out of its range, or the values contradict each other."""
        for name in ("warmup_epochs", "warmup_steps", "min_lr"):
            check_range(f"train.schedule.{name}", getattr(self, name), least=0)
        if self.warmup_epochs and self.warmup_steps:
            raise GlocalError(
                f"train.schedule has both warmup_epochs={self.warmup_epochs:g} and warmup_steps={self.warmup_steps}; "
                "give it one of them, and set the other to 0"
            )
        if self.kind == "inverse_sqrt" and not (self.warmup_epochs or self.warmup_steps):
            raise GlocalError(
                "train.schedule.kind is inverse_sqrt, which falls from the end of its warm-up, and it has none; "
                "give warmup_epochs or warmup_steps"
            )
        if self.kind == "inverse_sqrt" and self.min_lr:
            raise GlocalError(
                f"train.schedule.min_lr is {self.min_lr:g}, where a cosine ends, and kind is inverse_sqrt, which has "
                "no end; set min_lr to 0"
            )


@dataclass(frozen=True)
class LoRAConfig:
    """Small matrices beside those that stay: h = W₀x + (α/r) B A x (Hu et al. 2021, equation 3)."""

    rank: int = 8
    """r, the inner width of B A."""
    alpha: int = 16
    """α; α/r scales what they add."""
    dropout: float = 0.0
    """Rate on what goes into A."""
    targets: tuple[str, ...] = ("qkv", "q", "kv")
    """Names of the matrices that get one; by default those of queries, keys and values (section 4.2). With `all-linear`
    alone, it is every matrix outside the head."""

    def check(self) -> None:
        """Raise GlocalError where a value means nothing."""
        check_range("train.lora.rank", self.rank, least=1)
        check_range("train.lora.alpha", self.alpha, least=1)
        check_range("train.lora.dropout", self.dropout, least=0, below=1)


@dataclass(frozen=True)
class TrainConfig:
    """How a model learns."""

    epochs: int | None = None
    """Passes over the training data; or `steps`, or `minutes`, never two of them."""
    steps: int | None = None
    """Optimizer steps; the last epoch is cut where they end."""
    minutes: float | None = None
    """A budget: the first epoch is timed, validation included, and the number of epochs that fits is fixed."""
    batch_size: int = 64
    """What one process takes at once: images or texts; of translations, target tokens, padding included. A step's batch
    is `batch_size` × `accumulate` × processes."""
    accumulate: int = 1
    """Batches whose gradients make one step."""
    lr: float = 1e-3
    """Highest learning rate."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Its course."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """What it is given to."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then what is validated and kept; 0 is off. It rises to this
    value as 1 - (1 + step)^(-2/3), so that short runs forget their start."""
    average: int = 0
    """Last epochs at whose ends the weights are averaged (Vaswani et al. 2017, section 6.1); 0 is off. Their average so
    far is what these epochs validate, and in the end what is kept, whichever epoch was better. Where `steps` or
    `minutes` allow fewer epochs, all are averaged."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """`auto`: bf16 where the hardware has it, float32 elsewhere. Weights are kept in float32 in every case."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Whether torch.compile makes one graph of a step's forward and backward pass. `auto`: on CUDA, in a run of 3,000
    steps or more (of `epochs` or `steps`, not of `minutes`), where a compiler is found. The graph is for the shapes of
    the first batch; batches of other shapes, such as texts padded to their own length, and validation are computed
    without it. The supernets of a search are never compiled."""
    validate_every: int = 0
    """Steps between validations, beside the one after each epoch; 0 is off."""
    patience: int = 0
    """Validations without a better one after which training stops; 0 is off."""
    tune: Literal["all", "head", "lora"] = "all"
    """`head` freezes everything but the model's head, `lora` everything but the head and the matrices of `lora`."""
    lora: LoRAConfig = LoRAConfig()
    """They are merged into the weights in the end, and kept by themselves in the run's `adapter/`."""
    seed: int = 0
    """Fixes the first weights and every draw of the network."""
    save_every: int = 500
    """Steps between checkpoints, beside the one after each epoch; 0 is off."""

    def check(self) -> None:
        """Raise GlocalError where the values contradict each other or mean nothing."""
        given = {name: getattr(self, name) for name in ("epochs", "steps", "minutes")}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            named = " and ".join(f"{name}={value:g}" for name, value in given.items()) or "no length"
            raise GlocalError(f"train has {named}; give it epochs, steps or minutes, and set the others to null")
        for name in ("epochs", "steps", "minutes", "batch_size", "accumulate", "lr"):
            check_range(f"train.{name}", getattr(self, name), above=0)
        for name in ("validate_every", "patience", "save_every"):
            check_range(f"train.{name}", getattr(self, name), least=0)
        check_range("train.ema", self.ema, least=0, below=1)
        check_range("train.seed", self.seed, least=0, below=2**63)
        if self.schedule.min_lr > self.lr:
            raise GlocalError(
                f"train.schedule.min_lr is {self.schedule.min_lr:g}, where the learning rate ends, and train.lr is "
                f"{self.lr:g}, its highest; lower min_lr, or raise lr"
            )
        if self.average < 0 or (self.epochs is not None and self.average > self.epochs):
            raise GlocalError(f"train.average is {self.average}; it is 0 (off) or up to train.epochs, {self.epochs}")
        if self.average and (self.ema or self.patience or self.validate_every):
            raise GlocalError(
                f"train.average is {self.average} beside ema {self.ema:g}, patience {self.patience} and validate_every "
                f"{self.validate_every}; it averages once, at the ends of epochs whose last is known: set it to 0, or "
                "the three"
            )
        self.optimizer.check()
        self.schedule.check()
        self.lora.check()

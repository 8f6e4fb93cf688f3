"""The config of training: a recipe's section `train`."""

from dataclasses import dataclass
from typing import Literal

from glocal.errors import GlocalError, check_range


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2017). Biases, norms, tokens and positions do not decay."""

    weight_decay: float = 0.05
    """Share of each weight that a step subtracts, times the learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the moving averages of the gradient and of its square."""
    eps: float = 1e-8
    """Added to the divisor, the root of that square. (With 1e-9, betas 0.9, 0.98 and no decay, this is the Adam of
    Vaswani et al. 2017, section 5.3.)"""
    clip_norm: float = 0.0
    """Largest norm of the gradient of all weights together; 0 is off."""

    def check(self) -> None:
        """Raise GlocalError if a value is out of its range."""
        check_range("train.optimizer.weight_decay", self.weight_decay, least=0)
        for beta in self.betas:
            check_range("one of train.optimizer.betas", beta, least=0, below=1)
        check_range("train.optimizer.eps", self.eps, above=0)
        check_range("train.optimizer.clip_norm", self.clip_norm, least=0)


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate: a linear warm-up to `train.lr`, then a decay."""

    kind: Literal["cosine", "inverse_sqrt"] = "cosine"
    """The decay: half a cosine to the end of the run (Loshchilov and Hutter 2016), or with the inverse square root of
    the step (Vaswani et al. 2017, equation 3, where `train.lr` is (d_model · warmup_steps)^-0.5)."""
    warmup_epochs: float = 0.0
    """Length of the warm-up; or `warmup_steps`, never both."""
    warmup_steps: int = 0
    """Length of the warm-up in steps."""
    min_lr: float = 0.0
    """Learning rate at the end of the cosine."""

    def check(self) -> None:
        """Raise GlocalError if a value is out of its range, or the values contradict each other."""
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
    """Small trained matrices beside frozen ones: h = W₀x + (α/r) B A x (Hu et al. 2021, equation 3)."""

    rank: int = 8
    """r, the rank of B A."""
    alpha: int = 16
    """α; α/r scales B A x."""
    dropout: float = 0.0
    """Dropout rate of the inputs of A."""
    targets: tuple[str, ...] = ("qkv", "q", "kv")
    """Names of the matrices W₀; by default the matrices of queries, keys and values (section 4.2). `all-linear` alone
    stands for every matrix outside the head."""

    def check(self) -> None:
        """Raise GlocalError if a value is out of its range."""
        check_range("train.lora.rank", self.rank, least=1)
        check_range("train.lora.alpha", self.alpha, least=1)
        check_range("train.lora.dropout", self.dropout, least=0, below=1)


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained."""

    epochs: int | None = None
    """Passes over the training data. Give one of `epochs`, `steps` and `minutes`."""
    steps: int | None = None
    """Optimizer steps; the last epoch may be cut short."""
    minutes: float | None = None
    """A budget of time: the first epoch and its validation are timed, and as many epochs are trained as fit."""
    batch_size: int = 64
    """Images or texts that one process computes at once. In translation it counts tokens of the longer side, with
    padding. A step has `batch_size` × `accumulate` × processes of them."""
    accumulate: int = 1
    """Batches whose gradients are added up for one step."""
    lr: float = 1e-3
    """Highest learning rate."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The course of the learning rate."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is validated and kept in place of the weights; 0 is off. The
    decay rises to this value as 1 - (1 + step)^(-2/3), so that the first weights soon count for little."""
    average: int = 0
    """Number of last epochs whose final weights are averaged (Vaswani et al. 2017, section 6.1); 0 is off. Each of
    these epochs validates the average so far, and the last average is kept, whichever epoch was best. Where `steps` or
    `minutes` allow fewer epochs, all are averaged."""
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"
    """Numbers that the forward and backward pass computes in. `auto` is bf16 where the hardware computes in it, else
    float32. Weights are always kept in float32."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Whether torch.compile compiles the forward and backward pass of a step. `auto` does on CUDA, in runs of 3,000
    steps or more (of `epochs` or `steps`, not of `minutes`), where a compiler is found. Batches of other shapes than
    the first one, such as texts padded to another length, and validation are not compiled, nor are the supernets of a
    search."""
    validate_every: int = 0
    """Steps between validations, in addition to the one after each epoch; 0 is off."""
    patience: int = 0
    """Validations without a better score after which training stops; 0 is off."""
    tune: Literal["all", "head", "lora"] = "all"
    """`head` freezes everything but the model's head, `lora` everything but the head and the matrices of `lora`."""
    lora: LoRAConfig = LoRAConfig()
    """LoRA's matrices. At the end, they are merged into the weights, and saved alone in the run's `adapter/`."""
    seed: int = 0
    """Seed of the initial weights and of the network's random numbers (dropout, drop path)."""
    save_every: int = 500
    """Steps between checkpoints, in addition to the one after each epoch; 0 is off."""

    def check(self) -> None:
        """Raise GlocalError if a value is out of its range, or the values contradict each other."""
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

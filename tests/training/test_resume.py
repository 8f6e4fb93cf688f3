"""A stopped and resumed run equals one that was never stopped, to the bit."""

import io
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import ToyBatches, ToyData, ToyModel, toy_config, toy_task, train_toy

from glocal.errors import GlocalError
from glocal.training import Interrupted, LoRAConfig, RunFolder, ScheduleConfig, fit
from glocal.training.checkpoint import Progress, read_checkpoint
from glocal.training.log import Log

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

CLOCK = ("logged", "seconds", "cpu_seconds")


def rows(run: RunFolder) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in ("seconds", "labels_per_second")}
        for row in run.history()
    ]


def assert_same(one: Any, other: Any) -> None:
    """Equal tensors, equal everything, at any depth; a clock may differ."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            if name not in CLOCK:
                assert_same(one[name], other[name])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def assert_same_run(one: RunFolder, other: RunFolder) -> None:
    assert_same(read_checkpoint(one.last), read_checkpoint(other.last))
    assert_same(read_checkpoint(one.best), read_checkpoint(other.best))
    assert rows(one) == rows(other)


class Killed(BaseException):
    pass


class FragileData(ToyData):
    """Dies when the batch `dies_at` = (epoch, number) is asked for."""

    def __init__(self, dies_at: tuple[int, int]) -> None:
        super().__init__()
        self.dies_at = dies_at

    def train_batches(
        self, batch_size: int, epoch: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> ToyBatches:
        batches = super().train_batches(batch_size, epoch, start, rank, world_size)
        if epoch == self.dies_at[0]:
            batches.numbers = range(start, self.dies_at[1])
            batches.picks = batches.picks[: self.dies_at[1]]
            batches.__class__ = DyingBatches
        return batches


class DyingBatches(ToyBatches):
    def __len__(self) -> int:
        return 12 - self.numbers.start

    def __iter__(self) -> Any:
        yield from super().__iter__()
        raise Killed


@pytest.mark.parametrize("dies_at", [(0, 0), (0, 1), (0, 7), (1, 0), (1, 10), (2, 11), (3, 9)])
@pytest.mark.parametrize(
    "fields",
    [
        {"accumulate": 2, "save_every": 2, "patience": 3},
        {"save_every": 0, "schedule": ScheduleConfig(kind="inverse_sqrt", warmup_steps=20)},
        {"save_every": 5, "ema": 0.0, "average": 3},
        {"save_every": 3, "steps": 47, "validate_every": 6},
        {"save_every": 4, "tune": "lora", "lora": LoRAConfig(rank=2, dropout=0.1, targets=("0",))},
    ],
)
def test_resumed_equals_uninterrupted(tmp_path: Path, dies_at: tuple[int, int], fields: dict[str, Any]) -> None:
    whole = train_toy(tmp_path / "whole", **fields)
    torch.manual_seed(0)
    run = RunFolder.create(tmp_path / "stopped", "")
    with pytest.raises(Killed):
        fit(ToyModel(), toy_task(), FragileData(dies_at), toy_config(**fields), run)
    train_toy(run.path, resume=True, **fields)
    assert_same_run(whole, run)


def test_killed_at_random_moments(tmp_path: Path) -> None:
    fields = {"accumulate": 2, "save_every": 1, "epochs": 6}
    whole = train_toy(tmp_path / "whole", **fields)
    run = RunFolder.create(tmp_path / "killed", "")
    fork, dice, kills = multiprocessing.get_context("fork"), random.Random(3), 0
    while True:
        child = fork.Process(target=train_toy, args=(run.path, True, 0.004), kwargs=fields)
        child.start()
        child.join(dice.uniform(0.05, 0.35) * (1 + kills / 10))  # a busy machine needs longer to come anywhere
        if child.exitcode is not None:
            break
        child.kill()  # SIGKILL
        child.join()
        kills += 1
        assert kills < 200
    assert child.exitcode == 0
    assert kills > 2
    assert_same_run(whole, run)


def test_killed_when_the_average_was_kept_and_not_yet_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"ema": 0.0, "average": 2}
    whole = train_toy(tmp_path / "whole", **fields)

    def say(log: Log, line: str) -> None:
        if line.startswith("epoch 4/4"):
            raise Killed

    monkeypatch.setattr(Log, "print", say)
    with pytest.raises(Killed):
        train_toy(tmp_path / "killed", **fields)
    monkeypatch.undo()
    run = RunFolder.open(tmp_path / "killed")
    assert (read_checkpoint(run.best)["epoch"], read_checkpoint(run.last)["progress"]["epoch"]) == (4, 3)
    train_toy(run.path, resume=True, **fields)
    assert_same_run(whole, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(tmp_path: Path, number: int) -> None:
    whole = train_toy(tmp_path / "whole")

    class SignallingData(ToyData):
        def train_batches(self, batch_size: int, epoch: int, *args: Any, **kwargs: Any) -> ToyBatches:
            if epoch == 1:
                os.kill(os.getpid(), number)
            return super().train_batches(batch_size, epoch, *args, **kwargs)

    run = RunFolder.create(tmp_path / "stopped", "")
    handler = signal.getsignal(number)
    torch.manual_seed(0)
    with pytest.raises(Interrupted, match="--resume"):
        fit(ToyModel(), toy_task(), SignallingData(), toy_config(), run)
    assert signal.getsignal(number) is handler
    progress = read_checkpoint(run.last)["progress"]
    assert progress["epoch"] == 1
    assert 0 < progress["batch"] < 4
    train_toy(run.path, resume=True)
    assert_same_run(whole, run)


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    run = train_toy(tmp_path / "run")
    before = read_checkpoint(run.last), rows(run)
    train_toy(run.path, resume=True)
    assert_same(before, (read_checkpoint(run.last), rows(run)))


def test_what_is_lost_of_a_log_stays_lost(tmp_path: Path) -> None:
    whole = rows(train_toy(tmp_path / "whole"))
    torch.manual_seed(0)
    run = RunFolder.create(tmp_path / "stopped", "")
    with pytest.raises(Killed):
        fit(ToyModel(), toy_task(), FragileData((2, 0)), toy_config(), run)
    lost = len(run.history())
    run.metrics.unlink()
    train_toy(run.path, resume=True)
    assert rows(run) == whole[lost:] != whole


def test_early_stopping_stays_stopped(tmp_path: Path) -> None:
    fields = {"patience": 2, "lr": 1e-5, "epochs": 50}
    run = train_toy(tmp_path / "run", **fields)
    assert len(run.history()) < 20
    before = rows(run)
    train_toy(run.path, resume=True, **fields)
    assert rows(run) == before


def test_time_adds_up_over_resumptions(tmp_path: Path) -> None:
    run = train_toy(tmp_path / "run", epochs=1, pause=0.02)
    seconds = run.read_report()["seconds"]
    start = time.perf_counter()
    train_toy(run.path, resume=True, epochs=1)
    assert seconds > 0.2
    assert run.read_report()["seconds"] == pytest.approx(seconds, abs=time.perf_counter() - start)


def test_another_model_is_refused(tmp_path: Path) -> None:
    run = train_toy(tmp_path / "run")
    with pytest.raises(GlocalError, match="does not fit"):
        fit(ToyModel(norm=False), toy_task(), ToyData(), toy_config(), run, resume=True)


@pytest.mark.parametrize(
    ("fields", "told"),
    [({"epochs": 3}, "train.epochs 4 is now 3"), ({"lr": 0.5}, "train.lr 0.01 is now 0.5"), ({"save_every": 1}, "")],
)
def test_a_run_that_was_edited_while_it_was_stopped_is_refused(
    tmp_path: Path, fields: dict[str, Any], told: str
) -> None:
    """It would else end as neither would have; how often it is saved changes nothing."""
    run = train_toy(tmp_path / "run")
    if not told:
        train_toy(run.path, resume=True, **fields)
        return
    with pytest.raises(GlocalError, match=f"with other settings: {told}; set them back"):
        train_toy(run.path, resume=True, **fields)


def read_weights(checkpoint: bytes) -> bytes:
    """The bytes of the head's weights in a checkpoint."""
    return torch.load(io.BytesIO(checkpoint), weights_only=True)["model"]["head.weight"].numpy().tobytes()


@pytest.mark.parametrize("content", [None, b"", b"5", b"half", b"zeros"])
@pytest.mark.parametrize("name", ["last.pt", "best.pt"])
def test_damaged_checkpoints_are_named_before_anything_is_learnt(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    """Without last.pt a run begins anew, to the same end; without the best weights so far it cannot."""
    run = train_toy(tmp_path / "run")
    before = rows(run)
    path = run.last.with_name(name)
    saved = path.read_bytes()
    path.unlink()
    if content is not None:
        half = saved[: len(saved) // 2]
        weights = read_weights(saved)
        zeros = saved.replace(weights, bytes(len(weights)))
        path.write_bytes({b"half": half, b"zeros": zeros}.get(content, content))
    elif name == "last.pt":
        train_toy(run.path, resume=True)
        assert rows(run) == before
        return
    with pytest.raises(GlocalError, match=rf"{name} .*checkpoints") as error:
        train_toy(run.path, resume=True)
    assert "\n" not in str(error.value)


def test_a_checkpoint_keeps_the_names_of_earlier_versions() -> None:
    saved = Progress(total_epochs=3, label_count=8.0, log_bytes=90).to_dict()
    assert (saved["epochs"], saved["labels"], saved["logged"]) == (3, 8.0, 90)
    assert Progress.from_dict(saved) == Progress(total_epochs=3, label_count=8.0, log_bytes=90)
    with pytest.raises(TypeError):
        Progress.from_dict(saved | {"unknown": 1})

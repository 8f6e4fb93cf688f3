"""Several processes that share each step."""

import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState
from test_resume import assert_same_run, rows
from toys import CLASSES, toy_task, train_toy

from glocal.errors import GlocalError
from glocal.training import LoRAConfig, RunFolder
from glocal.training.checkpoint import read_checkpoint
from glocal.training.devices import broadcast_from_main, lost_process

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")

TOYS = Path(__file__).with_name("toys.py")


def rank_main(rank: int, world_size: int, port: int, folder: Path, kwargs: dict[str, Any]) -> None:
    """What torchrun would start."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size), "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState._reset_state()
    try:
        with RunFolder(folder).writing():
            train_toy(folder, **kwargs)
        torch.distributed.destroy_process_group()
    except KeyboardInterrupt:
        os._exit(130)
    except GlocalError as error:
        (folder / f"rank-{rank}.txt").write_text(str(error))
        os._exit(2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(folder: Path, world_size: int = 2, **kwargs: Any) -> list[Any]:
    fork, port = multiprocessing.get_context("fork"), free_port()
    ranks = [
        fork.Process(target=rank_main, args=(rank, world_size, port, folder, kwargs)) for rank in range(world_size)
    ]
    for rank in ranks:
        rank.start()
    return ranks


def finish(ranks: list[Any]) -> set[int]:
    for rank in ranks:
        rank.join(60)
    return {rank.exitcode for rank in ranks}


@pytest.mark.parametrize("fields", [{}, {"tune": "lora", "lora": LoRAConfig(targets=("0",))}], ids=["all", "lora"])
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path, fields: dict[str, Any]) -> None:
    one = train_toy(tmp_path / "one", norm=False, batch_size=16, accumulate=2, **fields)
    assert finish(start(tmp_path / "two", norm=False, batch_size=8, accumulate=2, **fields)) == {0}
    two = RunFolder.open(tmp_path / "two")
    expected, got = read_checkpoint(one.last), read_checkpoint(two.last)
    for kind in ("model", "average"):
        for name, value in expected[kind].items():
            torch.testing.assert_close(got[kind][name], value, rtol=0, atol=2e-6)
    for number, state in expected["optimizer"]["state"].items():
        torch.testing.assert_close(got["optimizer"]["state"][number]["exp_avg"], state["exp_avg"], rtol=0, atol=2e-6)
    for row, other in zip(rows(one), rows(two), strict=True):
        assert row == pytest.approx(other, abs=2e-6)  # losses and accuracies over all ranks, each step and epoch once
    assert two.read_report()["processes"] == 2
    assert two.adapter.exists() == bool(fields)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_killed_and_resumed(tmp_path: Path, world_size: int) -> None:
    fields = {"accumulate": 2, "save_every": 2, "batch_size": 4}
    assert finish(start(tmp_path / "whole", world_size, **fields)) == {0}
    ranks = start(tmp_path / "killed", world_size, pause=0.05, **fields)
    last = RunFolder(tmp_path / "killed").last
    while not (last.exists() and read_checkpoint(last)["progress"]["step"] >= 4):
        time.sleep(0.02)
    for rank in ranks:
        rank.kill()
    finish(ranks)
    assert finish(start(tmp_path / "killed", world_size, resume=True, **fields)) == {0}
    assert_same_run(RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "killed"))


def test_a_signal_to_one_stops_all(tmp_path: Path) -> None:
    fields = {"accumulate": 2, "epochs": 3, "save_every": 1}
    assert finish(start(tmp_path / "whole", **fields)) == {0}
    ranks = start(tmp_path / "stopped", pause=0.05, **fields)
    stopped = RunFolder(tmp_path / "stopped")
    while not stopped.last.exists():  # by then both heed signals
        time.sleep(0.02)
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert finish(ranks) == {130}
    assert 0 < read_checkpoint(stopped.last)["progress"]["step"] < 9
    assert finish(start(stopped.path, resume=True, **fields)) == {0}
    assert_same_run(RunFolder(tmp_path / "whole"), stopped)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_rank_whose_other_has_failed_ends_with_one_line(tmp_path: Path, killed: int) -> None:
    fields = {"accumulate": 2, "epochs": 3, "save_every": 1}
    assert finish(start(tmp_path / "whole", **fields)) == {0}
    run = RunFolder(tmp_path / "run")
    ranks = start(run.path, pause=0.05, **fields)
    while not run.last.exists():
        time.sleep(0.02)
    ranks[killed].kill()
    assert finish(ranks) == {-signal.SIGKILL, 2}
    line = (run.path / f"rank-{1 - killed}.txt").read_text()
    assert line.startswith("another process of this run has failed")
    assert f"continue with --resume {run}, with as many processes" in line
    assert "\n" not in line
    assert finish(start(run.path, resume=True, **fields)) == {0}
    assert_same_run(RunFolder(tmp_path / "whole"), run)


def killed_at_the_lock(rank: int, port: int, folder: Path) -> None:
    if rank == 0:
        fcntl.lockf = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    rank_main(rank, 2, port, folder, {})


def test_a_rank_whose_other_dies_before_anything_begins_ends_with_one_line(tmp_path: Path) -> None:
    fork, port = multiprocessing.get_context("fork"), free_port()
    ranks = [fork.Process(target=killed_at_the_lock, args=(rank, port, tmp_path)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    assert finish(ranks) == {-signal.SIGKILL, 2}
    assert (tmp_path / "rank-1.txt").read_text().startswith("another process of this run has failed")


@pytest.mark.parametrize("text", ["DataLoader worker (pid 7) is killed by signal: Killed.", "gloo: Connection closed"])
def test_a_dead_worker_is_one_line_and_other_errors_are_left_alone(text: str) -> None:
    with pytest.raises(GlocalError if "worker" in text else RuntimeError) as error, lost_process("continue"):
        raise RuntimeError(text)
    assert ("lower data.workers, and continue" in str(error.value)) == ("worker" in text)


def test_a_worker_that_dies_while_it_hands_a_batch_over_is_one_line(tmp_path: Path) -> None:
    here, there = multiprocessing.Pipe()
    there.close()
    died = r"prepares data has died, .* \(EOFError\); lower data.workers, and continue"
    with pytest.raises(GlocalError, match=died), lost_process("continue"):
        here.recv()
    with pytest.raises(FileNotFoundError), lost_process("continue"):
        (tmp_path / "none").read_text()


def sum_metrics(rank: int, port: int, results: Any, shares: list[int]) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    results.put(measured(sum(shares[:rank]), shares[rank]))
    torch.distributed.destroy_process_group()


def measured(first: int, count: int) -> dict[str, Any]:
    """Metrics of some of 50 random answers."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, CLASSES, generator=generator), torch.arange(50) % CLASSES
    metrics = toy_task().metrics()
    if count:
        metrics.update(logits[first : first + count], labels[first : first + count])
    return {name: value.tolist() for name, value in metrics.compute().items()}


@pytest.mark.filterwarnings("ignore:The ``compute`` method .* was called before:UserWarning")  # by the empty rank
@pytest.mark.parametrize("shares", [[33, 17], [50, 0]])
def test_metrics_add_up_over_ranks(shares: list[int]) -> None:
    fork = multiprocessing.get_context("fork")
    results, port = fork.Queue(), free_port()
    ranks = [fork.Process(target=sum_metrics, args=(rank, port, results, shares)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    expected = measured(0, 50)
    for got in (results.get(timeout=60), results.get(timeout=60)):
        assert got.pop("confusion") == expected["confusion"]
        for name, value in got.items():
            assert value == pytest.approx(expected[name], abs=1e-6)
    assert finish(ranks) == {0}


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    assert finish(start(tmp_path / "two", epochs=1)) == {0}
    refused = "written by 2 processes and is read by 1; start as many again, with torchrun --nproc-per-node 2"
    with pytest.raises(GlocalError, match=refused):
        train_toy(tmp_path / "two", resume=True, epochs=2)
    train_toy(tmp_path / "one", epochs=1)
    assert finish(start(tmp_path / "one", resume=True, epochs=2)) == {2}
    for rank in range(2):
        line = (tmp_path / "one" / f"rank-{rank}.txt").read_text()
        assert line.endswith("written by 1 processes and is read by 2; start as many again, without torchrun")


def wait_for_the_other(rank: int, port: int, results: Any) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState._reset_state()
    assert broadcast_from_main(rank) == 0  # before anything else has joined them
    results.put(torch.distributed.group.WORLD._get_backend(torch.device("cpu")).options._timeout)
    torch.distributed.destroy_process_group()


def test_ranks_join_at_the_first_word_and_wait_for_hours() -> None:
    """The first one may encode a corpus; torch would give up after half an hour, and after ten minutes on GPUs."""
    fork, port = multiprocessing.get_context("fork"), free_port()
    results = fork.Queue()
    ranks = [fork.Process(target=wait_for_the_other, args=(rank, port, results)) for rank in range(2)]
    for rank in ranks:
        rank.start()
    assert all(results.get(timeout=60) > timedelta(days=1) for _ in ranks)
    assert finish(ranks) == {0}


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(TOYS), str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert RunFolder(tmp_path / "run").read_report()["processes"] == 2
    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.stderr.count(f"GlocalError: {tmp_path / 'run'} holds a run already") == 2  # both ranks say so

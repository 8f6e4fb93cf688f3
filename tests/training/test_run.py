import errno
import json
import multiprocessing
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from glocal.errors import GlocalError
from glocal.files import atomic_write, locked
from glocal.training import RunFolder
from glocal.training.checkpoint import read_checkpoint, write_checkpoint
from glocal.training.log import Log
from glocal.training.run import commit, provenance


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "name: first\n")
    with pytest.raises(GlocalError, match=r"holds a run already.*--resume"):
        RunFolder.create(run.path, "name: second\n")
    assert RunFolder.open(run.path).recipe.read_text() == "name: first\n"


def test_a_folder_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GlocalError, match=r"no run folder can be made at .*Not a directory.*--run.dir"):
        RunFolder.create(tmp_path / "file", "")


def test_no_run_to_open(tmp_path: Path) -> None:
    with pytest.raises(GlocalError, match="not a run folder"):
        RunFolder.open(tmp_path)


def hold(folder: Path, held: Any, release: Any) -> None:
    with locked(folder):
        held.set()
        release.wait(60)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("killed", [False, True])
def test_one_process_writes_at_a_time(tmp_path: Path, killed: bool) -> None:
    """The lock of one that was killed holds nobody up."""
    fork = multiprocessing.get_context("fork")
    held, release = fork.Event(), fork.Event()
    other = fork.Process(target=hold, args=(tmp_path, held, release))
    other.start()
    assert held.wait(60)
    with pytest.raises(GlocalError, match=f"is being written by process {other.pid} on .*; wait"), locked(tmp_path):
        pass
    if killed:
        other.kill()
    else:
        release.set()
    other.join()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("content", [b"", b"5", b"{", b"[1]", b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("name", ["report.json", "metrics.jsonl"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    run = RunFolder.create(tmp_path / "run", "")
    (run.path / name).write_bytes(content)
    if not (content == b"" and name == "metrics.jsonl"):
        with pytest.raises(GlocalError, match=name) as error:
            run.history() if name == "metrics.jsonl" else run.read_report()
        assert "\n" not in str(error.value)


def test_report_grows_by_sections(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "")
    run.update_report(val={"top1": 0.5}, seed=1)
    run.update_report(test={"top1": 0.4})
    assert json.loads(run.report.read_text()) == {"val": {"top1": 0.5}, "seed": 1, "test": {"top1": 0.4}}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_file_before(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def write() -> None:
        with atomic_write(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises((GlocalError, KeyboardInterrupt)) as caught:
        write()
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("room", [0, 1000, 60_000])
def test_a_disk_that_fills_up_under_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """torch's own writer meets a disk with `room` bytes left."""
    path = tmp_path / "last.pt"
    write_checkpoint(path, {"weights": torch.ones(3)})
    original = Path.open

    class Disk:
        def __init__(self, file) -> None:
            self.file, self.room = file, room

        def write(self, data) -> int:
            self.room -= len(data)
            if self.room < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

    monkeypatch.setattr(Path, "open", lambda self, *args: Disk(original(self, *args)))
    with pytest.raises(GlocalError, match=r"cannot write .*last\.pt: No space left on device; .*free some space"):
        write_checkpoint(path, {"weights": torch.zeros(30_000)})
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    assert torch.equal(read_checkpoint(path)["weights"], torch.ones(3))


def test_a_log_line_is_whole_or_absent(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "")
    with Log(run, is_main_process=True) as log:
        log.write({"step": 1, "train_loss": 2.0})
        whole, file = log.file, log.file

        class Full:
            def write(self, line: bytes) -> int:
                return file.write(line[:5])

            def __getattr__(self, name):
                return getattr(file, name)

        log.file = Full()
        with pytest.raises(GlocalError, match=r"metrics\.jsonl.*full"):
            log.write({"step": 2, "train_loss": 1.0})
        log.file = whole
    assert run.history() == [{"step": 1, "train_loss": 2.0}]


def test_a_silent_log_writes_nothing(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", "")
    with Log(run, is_main_process=False) as log:
        log.write({"step": 1})
        log.advance(1, 10.0, "epoch 1", 0.5)
        log.flush()
    assert not run.metrics.exists()
    assert not run.tensorboard.exists()


def test_provenance_names_versions_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/usr/bin/glocal", "train", "my recipe"])
    facts = provenance()
    assert facts["versions"]["torch"] == torch.__version__.split("+")[0]
    assert facts["command"] == "glocal train 'my recipe'"


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    assert commit(tmp_path) is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    (tmp_path / "inside").mkdir()
    first = commit(tmp_path)
    assert first is not None
    assert len(first) == 40
    assert commit(tmp_path / "inside") is None  # an installed package in someone else's checkout
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == f"{first} with changes"

"""Run folders: kills and full disks at every write, two processes at one run, and files that are damaged.

A life is a command in a process of its own. Python's audit hook sees each file that it opens to write and each draft
that takes a file's place; there it is killed, with the draft whole or torn in two, or finds the disk full. What is
started again must end as if nothing had happened, to the byte but for clocks.
"""

import errno
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from PIL import Image

from glocal.cli import main
from glocal.recipes import recipe_parser
from glocal.reports import figures
from glocal.tasks import TASKS
from glocal.training.checkpoint import read_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

CLOCKS = {"seconds", "cpu_seconds", "labels_per_second", "logged", "command", "commit"}
SMALL = {"model.depth": 1, "model.embed_dim": 32, "model.num_heads": 2}
SHORT = {
    "train.steps": 4, "train.validate_every": 2, "train.save_every": 1, "train.batch_size": 8, "train.average": 0,
    "train.precision": "float32", "train.schedule.warmup_epochs": 0, "train.schedule.warmup_steps": 2,
}  # fmt: skip
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "two",
    "birds",
    "fly",
    "over",
    "red",
    "roofs",
    "of",
    "old",
]

Act = Callable[[str, Path], None]
"""What happens at a write: it is given the event's name and the path."""


class Boundary:
    """An audit hook that counts the writes below a folder, and acts at one of them, or from it on."""

    def __init__(self, folder: Path, at: int = 0, act: Act | None = None, on: bool = False) -> None:
        self.folder, self.at, self.act, self.on = str(folder), at, act, on
        self.seen: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = args
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR)
        elif event == "os.rename":
            path, writes = args[0], True
        else:
            return
        if not writes or not isinstance(path, str | os.PathLike) or not str(Path.cwd() / path).startswith(self.folder):
            return
        self.seen.append(f"{event} {os.path.relpath(path, self.folder)}")
        number = len(self.seen)
        if self.act and (number == self.at or (self.on and number > self.at)):
            self.act(event, Path(path))


def kill(event: str, path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def tear(event: str, path: Path) -> None:
    """Leave half of a draft, as a kill does while it is written."""
    for file in [*path.rglob("*"), path]:
        if file.is_file():
            os.truncate(file, file.stat().st_size // 2)
    kill(event, path)


def fill(event: str, path: Path) -> None:
    if event == "open":
        raise OSError(errno.ENOSPC, "No space left on device", str(path))


def live(words: list[str], place: Path, hook: Boundary | None, group: bool, name: str, port: str) -> None:
    """Run a command in a child process, without the tests' checks of types."""
    os.chdir(place)
    jaxtyping.config.update("jaxtyping_disable", True)
    if group:
        os.setsid()
    if port:  # as torchrun would start it, the first or the second of two
        os.environ |= {"RANK": name, "LOCAL_RANK": name, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        os.environ |= {"MASTER_PORT": port}
    with (place / f"said{name}.txt").open("w") as said:
        sys.stdout = sys.stderr = said
        torch.set_num_threads(1)
        code = 0
        if hook:
            sys.addaudithook(hook)
        try:
            main(words)
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
            code = 1
    if hook:
        (place / "seen.json").write_text(json.dumps(hook.seen))
        (place / "modules.json").write_text(json.dumps([name for name in sys.modules if "__mp_main__" not in name]))
    os._exit(code)


def start(
    words: list[str], place: Path, hook: Boundary | None = None, group: bool = False, name: str = "", port: str = ""
) -> Any:
    """Start a command, which says what it says in said{name}.txt; with a port its name is its rank of two."""
    child = multiprocessing.get_context("fork").Process(target=live, args=(words, place, hook, group, name, port))
    child.start()
    return child


def run_two(words: list[str], place: Path, hook: Boundary | None = None) -> tuple[list[int], list[str]]:
    """Run a command as two ranks, the first of which a hook may kill; return how they ended, and what they said."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    pair = [start(words, place, hook if rank == "0" else None, name=rank, port=port) for rank in "01"]
    for child in pair:
        child.join(240)
    said = [(place / f"said{rank}.txt").read_text() for rank in "01"]
    assert "Traceback" not in "".join(said), said
    return [child.exitcode for child in pair], said


def run(words: list[str], place: Path, hook: Boundary | None = None) -> int:
    """Return how a command ended; one that ended by itself, and not well, has said one line and no traceback."""
    child = start(words, place, hook)
    child.join(120)
    said = (place / "said.txt").read_text()
    assert child.exitcode is not None, said
    assert "Traceback" not in said, f"{' '.join(words)}: {said}"
    if child.exitcode > 0:
        assert child.exitcode == 2, said
        assert said.strip().splitlines()[-1].startswith("glocal: "), said
    return child.exitcode


class Job:
    """A command, what it needs in its place, and the folder that it writes."""

    def __init__(self, words: list[str], fields: dict[str, Any], made: Path | None = None, folder: str = "run") -> None:
        self.words = words + [
            f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in fields.items()
        ]
        self.made, self.folder = made, folder

    def prepare(self, place: Path) -> Path:
        """Make a place for it, with the run that it reads."""
        place.mkdir()
        if self.made:
            shutil.copytree(self.made, place / "run")
        return place

    def again(self, place: Path) -> list[str]:
        """What one does after a kill: continue where there is something to continue, else repeat."""
        begun = self.words[0] in ("train", "search") and (place / "run" / "recipe.yaml").exists()
        return [self.words[0], "--resume", "run"] if begun else self.words


def forget(value: Any) -> Any:
    """Leave out what is of the clock."""
    if isinstance(value, dict):
        return {name: forget(each) for name, each in value.items() if name not in CLOCKS}
    return [forget(each) for each in value] if isinstance(value, list | tuple) else value


def contents(folder: Path) -> dict[str, Any]:
    """All that a run has come to, file by file."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_dir() or name == ".lock" or "tensorboard" in name or name.endswith(".lock"):
            continue
        if file.suffix == ".pt":
            found[name] = repr(forget(tensors_as_bytes(read_checkpoint(file))))
        elif file.name == "report.json":
            found[name] = forget(json.loads(file.read_text()))
        elif file.name == "metrics.jsonl":
            found[name] = [forget(json.loads(line)) for line in file.read_text().splitlines()]
        else:
            found[name] = file.read_bytes()
    return found


def tensors_as_bytes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {name: tensors_as_bytes(each) for name, each in value.items()}
    return [tensors_as_bytes(each) for each in value] if isinstance(value, list | tuple) else value


def assert_same(got: Path, expected: dict[str, Any], lost: tuple[str, ...] = ()) -> None:
    found = contents(got)
    assert sorted(found) == sorted(expected), sorted(found.keys() ^ expected.keys())
    for name, content in expected.items():
        if name not in lost:
            assert found[name] == content, f"{name} differs"


@pytest.fixture(scope="module")
def counts(request: pytest.FixtureRequest) -> Iterator[Counter[str]]:
    """What was done, printed in the end."""
    done: Counter[str] = Counter()
    yield done
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nrun folders: {', '.join(f'{number} {what}' for what, number in sorted(done.items()))}")


def warm_up(folder: Path) -> None:
    """Import here, once, what every life would else spend half of its time on; it is a child of this process."""
    row = {"step": 1, "epoch": 1.0, "train_loss": 1.0, "val_loss": 1.0, "val_accuracy": 0.5, "lr": 0.1}
    figures.save(figures.training_curves({"run": [row]}, {"run": 1.0}), folder / "curves.png")
    for kind in TASKS.values():
        recipe_parser(kind.name)


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """A training of each task, a search, a test and an export, on data of a few lines."""
    data, dice = tmp_path_factory.mktemp("data"), random.Random(0)
    warm_up(data)

    def text() -> str:
        return " ".join(dice.choices(WORDS, k=8))

    def lines(name: str, rows: list[str]) -> str:
        (data / name).write_text("\n".join(rows) + "\n")
        return str(data / name)

    for number in range(60):
        picture = data / "pictures" / f"class-{number % 3}" / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.frombytes("L", (8, 8), dice.randbytes(64)).save(picture)
    pictures = str(data / "pictures")
    (data / "docs").mkdir()
    for number in range(10):
        lines(f"docs/{number}.txt", [f"{text()}. {text()}." for _ in range(6)])
    docs = str(data / "docs")
    classes = lines("classes.csv", ["text,label", *(f"{text()},{'good' if n % 2 else 'bad'}" for n in range(60))])
    tagged = [f"{word} {'B-X' if word == 'cat' else 'O'}" if word else "" for n in range(60)
              for word in [*text().split()[:5], ""]]  # fmt: skip
    tags = lines("tags.txt", tagged)
    asked = []
    for number in range(40):
        context = text()
        answer = context.split()[2]
        answers = [{"text": answer, "answer_start": context.index(answer)}]
        asked.append({"context": context, "qas": [{"id": str(number), "question": text()[:9], "answers": answers}]})
    questions = lines("questions.json", [json.dumps({"data": [{"paragraphs": asked}]})])
    prompts = lines("prompts.jsonl", [json.dumps({"prompt": text(), "completion": " " + text()}) for _ in range(60)])
    pairs = lines("pairs.tsv", ["en\tvi", *(f"{text()}\t{text()}" for _ in range(60))])

    words = {"data.max_length": 16, "data.val_fraction": 0.2, "data.test_fraction": 0.2}
    text_fields = SMALL | SHORT | words
    vocabulary = {"data.tokenizer.vocab_size": 300}
    images = SMALL | SHORT | {"model.name": "vit-tiny", "model.patch_size": 4}
    made = {
        "masked": Job(["train", "bert-pydoc", "--data", docs],
                      {"model.name": "bert-tiny", "model.max_length": 16} | text_fields | vocabulary),
        "causal": Job(["train", "gpt-pydoc", "--data", docs],
                      {"model.name": "gpt-tiny", "model.max_length": 16} | text_fields | vocabulary),
        "images": Job(["train", "vit-digits", "--data", pictures], images),
        "translation": Job(["train", "transformer-en-vi", "--data", pairs],
                           {"model.name": "transformer-tiny", "data.languages": ["en", "vi"], "data.vocab_size": 300}
                           | text_fields | {"train.batch_size": 160}),
    }  # fmt: skip
    for name, job in made.items():
        job.words.append("--run.dir=run")
        place = job.prepare(data / name)
        assert run(job.words, place) == 0, (place / "said.txt").read_text()
    short = SHORT | words
    bert, gpt = ["--from", str(data / "masked" / "run")], ["--from", str(data / "causal" / "run")]
    search = {
        "model.embed_dim": 24, "model.depth": 2, "data.image_size": 8, "search.supernet.epochs": 1,
        "search.supernet.precision": "float32", "search.evolution.population": 4, "search.evolution.generations": 2,
        "search.evolution.parents": 2, "search.evolution.crossover": 2, "search.evolution.mutation": 2,
        "search.budget.lower": None, "search.budget.upper": 80_000, "search.retrain": 2, "search.calibration": 32,
        "search.supernet.batch_size": 16, "search.space.kernel_size": [17], "search.space.expand_ratio": [1],
        "search.space.qkv_ratio": [0.5, 1.0], "search.space.mlp_ratio": [2.0, 4.0],
    } | SHORT  # fmt: skip
    tuned = {
        "sentences": Job(["train", "bert-sst2", "--data", classes, *bert], short),
        "lora": Job(["train", "bert-sst2-lora", "--data", classes, *bert], short),
        "tags": Job(["train", "bert-conll2003", "--data", tags, *bert], short),
        "questions": Job(["train", "bert-squad", "--data", questions, *bert], short | {"data.stride": 4}),
        "completions": Job(["train", "gpt2-completions", "--data", prompts, *gpt], short),
        "search": Job(["search", "glit-digits", "--data", pictures], search),
    }
    for job in tuned.values():
        job.words.append("--run.dir=run")
    others = {
        "test": Job(["test", "run"], {}, data / "translation" / "run"),
        "export": Job(["export", "run", "--to", "transformers", "-o", "out"], {}, data / "causal" / "run", "out"),
    }
    return made | tuned | others


TRAININGS = ["masked", "causal", "images", "translation", "sentences", "lora", "tags", "questions", "completions"]
EVERY = [*TRAININGS, "search", "test", "export"]
UNLIKE = ["masked", "images", "translation", "lora", "search", "test", "export"]
"""Those that write by other functions than the rest do."""


def undisturbed(job: Job, place: Path) -> tuple[list[str], dict[str, Any]]:
    """Return every write of a job, and what it comes to."""
    job.prepare(place)
    assert run(job.words, place, Boundary(place / job.folder)) == 0, (place / "said.txt").read_text()
    for module in json.loads((place / "modules.json").read_text()):
        with suppress(ImportError):
            importlib.import_module(module)
    return json.loads((place / "seen.json").read_text()), contents(place / job.folder)


class Faults(list[str]):
    """What went wrong at each write: one fault does not hide those at later writes."""

    @contextmanager
    def of(self, what: str) -> Iterator[None]:
        try:
            yield
        except AssertionError as error:
            self.append(f"{what}: {' '.join(str(error).split())[:400]}")
            print(self[-1])

    def check(self) -> None:
        assert not self, "\n".join(["", *self])


@pytest.mark.parametrize("name", EVERY)
def test_killed_at_every_write(jobs: dict[str, Job], tmp_path: Path, counts: Counter[str], name: str) -> None:
    job, faults = jobs[name], Faults()
    seen, expected = undisturbed(job, tmp_path / "whole")
    for at, write in enumerate(seen, start=1):
        for act in [kill, tear] if write.startswith("os.rename") else [kill]:
            place = job.prepare(tmp_path / f"{at}-{act.__name__}")
            with faults.of(f"{act.__name__} at {at}, {write}"):
                assert run(job.words, place, Boundary(place / job.folder, at, act)) == -signal.SIGKILL
                assert run(job.again(place), place) == 0, (place / "said.txt").read_text()
                assert_same(place / job.folder, expected)
                assert not [*(place / job.folder).rglob("*.tmp")]
            shutil.rmtree(place)
            counts["kills"] += 1
    faults.check()


@pytest.mark.parametrize("name", UNLIKE)
def test_the_disk_is_full_from_a_write_on(
    jobs: dict[str, Job], tmp_path: Path, counts: Counter[str], name: str
) -> None:
    job, faults = jobs[name], Faults()
    seen, expected = undisturbed(job, tmp_path / "whole")
    for at in [number for number, write in enumerate(seen, start=1) if write.startswith("open")]:
        place = job.prepare(tmp_path / str(at))
        with faults.of(f"full at {at}, {seen[at - 1]}"):
            ended = run(job.words, place, Boundary(place / job.folder, at, fill, on=True))
            assert ended == 2
            assert "No space left on device" in (place / "said.txt").read_text()
            assert run(job.again(place), place) == 0, (place / "said.txt").read_text()
            assert_same(place / job.folder, expected)
        shutil.rmtree(place)
        counts["full disks"] += 1
    faults.check()


def test_two_processes_at_one_run(jobs: dict[str, Job], tmp_path: Path, counts: Counter[str]) -> None:
    """One of them makes the run, and the other one is refused, in one line; ten times anew, ten times resumed."""
    job = jobs["sentences"]
    seen, expected = undisturbed(job, tmp_path / "whole")
    for number in range(20):
        place = job.prepare(tmp_path / str(number))
        words = job.words
        if number >= 10:
            assert run(words, place, Boundary(place / "run", len(seen) // 2, kill)) == -signal.SIGKILL
            words = job.again(place)
        pair = [start(words, place, name=name) for name in "ab"]
        ends = []
        for child in pair:
            child.join(120)
            ends.append(child.exitcode)
        said = [(place / f"said{name}.txt").read_text() for name in "ab"]
        assert sorted(ends) in ([0, 2], [0, 0]), said
        for code, text in zip(ends, said, strict=True):
            assert "Traceback" not in text
            if code:
                assert "is being written by process" in text or "holds a run already" in text, text
        assert_same(place / "run", expected)
        counts["starts of two"] += 1


@pytest.mark.parametrize("what", ["the group is told to stop", "a worker is killed"])
def test_processes_that_prepare_data(jobs: dict[str, Job], tmp_path: Path, counts: Counter[str], what: str) -> None:
    job = jobs["images"]
    words = [*job.words, "--data.workers=1", "--train.steps=40", "--train.validate_every=20"]
    whole, place = job.prepare(tmp_path / "whole"), job.prepare(tmp_path / "place")
    assert run(words, whole) == 0
    child = start(words, place, group=True)
    while not (place / "run" / "checkpoints" / "last.pt").exists():
        time.sleep(0.02)
    if what == "a worker is killed":
        (worker, *_) = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
        os.kill(int(worker), signal.SIGKILL)
    else:
        os.killpg(child.pid, signal.SIGTERM)
    child.join(120)
    said = (place / "said.txt").read_text()
    assert "Traceback" not in said
    if what == "a worker is killed":
        assert (child.exitcode, "a process that prepares data has died" in said) == (2, True), said
    else:
        assert (child.exitcode, "continue with --resume run" in said) == (130, True), said
    assert run(["train", "--resume", "run"], place) == 0
    assert_same(place / "run", contents(whole / "run"))
    counts["signals and dead workers"] += 1


TESTED = ("translations.tsv", "answers.tsv", "completions.tsv", "figures/confusion.png")
"""What a test leaves in a run beside its report."""


@pytest.mark.parametrize("name", TRAININGS)
def test_two_ranks_measure_what_one_does(jobs: dict[str, Job], tmp_path: Path, counts: Counter[str], name: str) -> None:
    """`glocal test` under torchrun: one report, by the first rank, of the same numbers."""
    job = jobs[name]
    one = job.prepare(tmp_path / "one")
    assert run(job.words, one) == 0, (one / "said.txt").read_text()
    two = shutil.copytree(one, tmp_path / "two")
    assert run(["test", "run"], one) == 0, (one / "said.txt").read_text()
    ends, said = run_two(["test", "run"], two)
    assert ends == [0, 0], said
    assert said == [(one / "said.txt").read_text(), ""]
    expected, got = (json.loads((place / "run" / "report.json").read_text())["test"] for place in (one, two))
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key] == (pytest.approx(value, abs=1e-5, rel=1e-5) if isinstance(value, float) else value), key
    assert [(two / "run" / file).exists() for file in TESTED] == [(one / "run" / file).exists() for file in TESTED]
    counts["tests on two ranks"] += 1


def test_ranks_that_are_killed_and_their_number_changed(
    jobs: dict[str, Job], tmp_path: Path, counts: Counter[str]
) -> None:
    """Once a step is saved, only as many ranks go on with the run; before that, any number begins it anew.

    The first rank is killed at each file that it writes; the other one ends in one line.
    """
    job, faults = jobs["sentences"], Faults()
    hook = Boundary((whole := job.prepare(tmp_path / "whole")) / "run")
    assert run_two(job.words, whole, hook)[0] == [0, 0]
    expected, seen = contents(whole / "run"), json.loads((whole / "seen.json").read_text())
    _, alone = undisturbed(job, tmp_path / "alone")
    for at in sorted({seen.index(write) for write in seen} | {len(seen) - 1}):
        write = seen[at]
        place = job.prepare(tmp_path / str(at))
        with faults.of(f"kill at {at + 1}, {write}"):
            ends, said = run_two(job.words, place, Boundary(place / "run", at + 1, kill))
            assert ends == [-signal.SIGKILL, 2], said
            other = shutil.copytree(place, tmp_path / "other")
            if (place / "run" / "checkpoints" / "last.pt").exists():
                assert run(job.again(other), other) == 2
                assert "was written by 2 processes and is read by 1" in (other / "said.txt").read_text()
            else:
                assert run(job.again(other), other) == 0, (other / "said.txt").read_text()
                assert_same(other / "run", alone)
            ends, said = run_two(job.again(place), place)
            assert ends == [0, 0], said
            assert_same(place / "run", expected)
        shutil.rmtree(place)
        shutil.rmtree(tmp_path / "other", ignore_errors=True)
        counts["kills of two ranks"] += 1
    faults.check()


def damaged(content: bytes, dice: random.Random) -> list[bytes | None]:
    """What can become of a file: lost, empty, cut, zeroed, a byte changed to one that no text has, another shape."""
    middle = dice.randrange(len(content))
    flipped = content[:middle] + (b"\xff" if content[middle] != 0xFF else b"\x00") + content[middle + 1 :]
    shapes = [b"5", b"[]", b"{}", b"[" * 100_000]
    return [None, b"", content[:middle], bytes(len(content)), flipped, *shapes, b"\xff\xfe" + content]


@pytest.mark.parametrize("name", ["masked", "sentences", "search"])
def test_files_that_are_damaged(jobs: dict[str, Job], tmp_path: Path, counts: Counter[str], name: str) -> None:
    """A run that goes on from them ends as it would have, or is refused in one line."""
    job, dice, faults = jobs[name], random.Random(0), Faults()
    seen, expected = undisturbed(job, tmp_path / "whole")
    stopped = job.prepare(tmp_path / "stopped")
    assert run(job.words, stopped, Boundary(stopped / "run", len(seen) * 2 // 3, kill)) == -signal.SIGKILL
    files = [file for file in sorted((stopped / "run").rglob("*")) if file.is_file() and file.stat().st_size]
    files = [file.relative_to(stopped) for file in files if "tensorboard" not in str(file) and file.suffix != ".png"]
    for file in files:
        for content in damaged((stopped / file).read_bytes(), dice):
            place = tmp_path / "place"
            shutil.copytree(stopped, place)
            if content is None:
                (place / file).unlink()
            else:
                (place / file).write_bytes(content)
            with faults.of(f"{file} is {'lost' if content is None else content[:20]}"):
                if run([job.words[0], "--resume", "run"], place) == 0:
                    lost = ("metrics.jsonl", "figures/training.png") if file.name == "metrics.jsonl" else ()
                    assert_same(place / "run", expected, lost)
                    counts["damaged files that changed nothing"] += 1
                else:
                    counts["damaged files that were refused"] += 1
            shutil.rmtree(place)
    faults.check()

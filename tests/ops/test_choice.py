"""How a path is chosen: by timing, once for a machine, and never at the price of an error."""

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from glocal.ops import choice, choices
from glocal.ops.choice import PLAIN, choose, size_class

KEY = ("anything", 3, "float32")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A cache folder of the test's own, and no choices."""
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path))
    monkeypatch.delenv("GLOCAL_OPS", raising=False)
    choice.forget()
    yield tmp_path
    choice.forget()


class Clock:
    """Time that passes in candidates alone, so that timings are exact."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def candidates(self, **milliseconds):
        def run(name):
            self.now += milliseconds[name] / 1000

        return lambda: {name: lambda name=name: run(name) for name in milliseconds}


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(choice, "time", clock)
    monkeypatch.setattr(choice, "_preemptions", lambda: 0)
    return clock


def test_a_choice_that_was_timed_beside_another_program_is_not_written(monkeypatch, clock):
    monkeypatch.setattr(choice, "_preemptions", iter(range(0, 1000, 100)).__next__)
    monkeypatch.setattr(choice, "_keeps_all", False)
    assert choose(KEY, clock.candidates(plain=10.0, other=9.0)) == "other"
    assert not choice._file().exists()
    choice.keep_choices()  # ranks and a resumed run must compute the same
    choose(("in a run",), clock.candidates(plain=10.0, other=9.0))
    assert choice._file().exists()


def test_what_another_process_chose_meanwhile_is_taken(clock):
    choose(("of this process",), clock.candidates(plain=10.0, other=9.0))
    choice.SharedChoices().add((*KEY, torch.get_num_threads()), choice.Choice("theirs", {"plain": 2.0, "theirs": 1.0}))
    assert choose(KEY, refuse) == "theirs"


def test_a_stopped_process_that_holds_the_lock_is_not_waited_for(folder, clock, monkeypatch):
    monkeypatch.setattr(choice, "LOCK_TIMEOUT", 0.5)
    monkeypatch.setattr(choice, "_waits", True)
    with (folder / choice.LOCK).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        begun = time.monotonic()
        for number in range(20):
            assert choose((*KEY, number), clock.candidates(plain=10.0, other=9.0)) == "other"
        assert 0.5 < time.monotonic() - begun < 5
    choice.forget()
    assert choose((*KEY, 19), refuse) == "other"


def test_a_candidate_may_meet_what_is_measured_too(clock):
    inner = clock.candidates(plain=1.0, other=0.5)

    def outer():
        return {"plain": lambda: choose(("inner",), inner), "other": lambda: None}

    assert choose(KEY, outer) in ("plain", "other")
    assert ("inner", torch.get_num_threads()) in choice.choices()


def refuse():
    raise AssertionError("timed again")


@pytest.mark.parametrize(
    ("milliseconds", "path"),
    [
        ({"plain": 10.0, "other": 9.0}, "other"),
        ({"plain": 10.0, "other": 9.6}, "plain"),  # 4 % faster may be noise
        ({"plain": 10.0, "other": 11.0}, "plain"),
        ({"plain": 10.0, "other": 8.0, "third": 7.0}, "third"),
        ({"plain": 10.0}, "plain"),
    ],
)
def test_a_path_is_taken_where_it_is_5_percent_faster(milliseconds, path, clock):
    assert choose(KEY, clock.candidates(**milliseconds)) == path
    made = choices()[(*KEY, torch.get_num_threads())]
    assert made.implementation == path
    assert made.milliseconds == pytest.approx(milliseconds if len(milliseconds) > 1 else {})
    assert choose(KEY, refuse) == path


@pytest.mark.parametrize(
    ("milliseconds", "path"),
    [
        ({"plain": 10.0, "small": 10.1}, "small"),
        ({"plain": 10.0, "small": 10.5}, "small"),
        ({"plain": 10.0, "small": 10.6}, "plain"),
        ({"plain": 10.0, "small": 10.1, "other": 9.0}, "other"),
        ({"plain": 10.0, "small": 9.2, "other": 9.0}, "small"),
    ],
)
def test_a_path_of_less_memory_is_taken_where_no_other_is_5_percent_faster(milliseconds, path, clock):
    assert choose(KEY, clock.candidates(**milliseconds), frugal="small") == path


def test_the_best_of_some_rounds_counts_and_timing_ends(monkeypatch, clock):
    runs = []

    def candidate(name, *times):
        def run():
            runs.append(name)
            clock.now += times[min(runs.count(name), len(times)) - 1]

        return run

    fast = {PLAIN: candidate(PLAIN, 0.01), "other": candidate("other", 5.0, 0.012, 0.012, 0.002)}
    monkeypatch.setattr(choice, "SECONDS", 100.0)
    assert choose(KEY, lambda: fast) == "other"
    assert runs.count(PLAIN) == runs.count("other") == 1 + choice.ROUNDS
    runs.clear()
    monkeypatch.setattr(choice, "SECONDS", 0.05)
    choose(("another",), lambda: {PLAIN: candidate(PLAIN, 1.0), "other": candidate("other", 1.0)})
    assert runs.count(PLAIN) == 1 + 2


def test_real_time_is_measured():
    made = choose(KEY, lambda: {PLAIN: lambda: time.sleep(0.02), "other": lambda: time.sleep(0.001)}, cold=True)
    assert made == "other"
    assert choices()[(*KEY, torch.get_num_threads())].milliseconds[PLAIN] >= 20


def test_each_number_of_threads_is_a_case_of_its_own(clock, monkeypatch):
    assert choose(KEY, clock.candidates(plain=10.0, other=9.0)) == "other"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert choose(KEY, clock.candidates(plain=10.0, other=12.0)) == "plain"


def test_measuring_leaves_the_random_state(clock):
    def candidates():
        drawn = torch.randn(3)  # inputs are drawn before anything is timed
        return {PLAIN: lambda: drawn + torch.randn(3), "other": lambda: drawn + torch.randn(3)}

    state = torch.get_rng_state()
    choose(KEY, candidates)
    assert torch.equal(torch.get_rng_state(), state)


def test_plain_times_nothing(monkeypatch, folder):
    monkeypatch.setenv("GLOCAL_OPS", "plain")
    assert choose(KEY, refuse) == PLAIN
    assert list(folder.iterdir()) == []
    assert choices()[(*KEY, torch.get_num_threads())].milliseconds == {}


def test_plain_reads_no_file(monkeypatch, clock):
    choose(KEY, clock.candidates(plain=10.0, other=9.0))
    choice.forget()
    monkeypatch.setenv("GLOCAL_OPS", "plain")
    assert choose(KEY, refuse) == PLAIN


def test_choices_are_kept_for_the_next_process(folder, clock):
    choose(KEY, clock.candidates(plain=10.0, other=9.0))
    choose(("second", 5), clock.candidates(plain=10.0, other=11.0))
    code = """
from glocal.ops.choice import choose, keep_choices
keep_choices()
def refuse(): raise AssertionError("timed again")
print(choose(("anything", 3, "float32"), refuse), choose(("second", 5), refuse))
print(choose(("third",), lambda: {"plain": lambda: None, "other": lambda: None}) in ("plain", "other"))
"""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["other plain", "True"], done.stderr
    choice.forget()
    assert {key[0] for key in choices()} == {"anything", "second", "third"}
    assert sorted(file.suffix for file in folder.iterdir()) == [".jsonl", ".lock"]


def test_a_choice_made_meanwhile_by_another_process_stays(clock):
    choose(KEY, clock.candidates(plain=10.0, other=9.0))
    choice.forget()
    choices()
    ours = choices()
    choice.SharedChoices().add(("theirs",), choice.Choice("other", {"plain": 2.0, "other": 1.0}))
    choose(("ours",), clock.candidates(plain=10.0, other=9.0))
    choice.forget()
    assert set(choices()) == {*ours, ("theirs",), ("ours", torch.get_num_threads())}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"null",
        b"5",
        b"[1, 2]",
        b"[1, 2, 3]",
        b'{"a": 1}',
        b'"text"',
        b'[["k"], "other"]',
        b'[["k"], 5, {}]',
        b'[["k"], "other", 5]',
        b'[["k"], "other", {}, 1]',
        b'[[["deep"]], "other", {}]',
        b"\xff\xfe\x00",
    ],
)
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
def test_a_damaged_line_holds_no_choice(content, end, clock):
    choose(("before",), clock.candidates(plain=10.0, other=9.0))
    with choice._file().open("ab") as file:
        file.write(content + end)
    choice.forget()
    assert {key[0] for key in choices()} == {"before"}
    assert choose(KEY, clock.candidates(plain=10.0, other=9.0)) == "other"
    choice.forget()
    assert {key[0] for key in choices()} == {"before", KEY[0]}
    assert choose(KEY, refuse) == "other"


@pytest.mark.parametrize("name", ["folder", "folder/below"])
def test_a_folder_that_cannot_be_written_keeps_choices_in_the_process(name, tmp_path, monkeypatch, clock):
    (tmp_path / "folder").write_text("a file")
    monkeypatch.setenv("GLOCAL_CACHE", str(tmp_path / name))
    assert choose(KEY, clock.candidates(plain=10.0, other=9.0)) == "other"
    assert choose(KEY, refuse) == "other"


def test_another_processor_or_torch_is_another_file(monkeypatch):
    file = choice._file()
    monkeypatch.setattr(torch, "__version__", "0.0")
    other = choice._file()
    monkeypatch.setattr(choice, "processor", lambda: "another")
    assert len({file, other, choice._file()}) == 3


def test_sizes_are_rounded_up_to_powers_of_two():
    assert [size_class(n) for n in (1, 2, 3, 4, 5, 8, 9, 1000)] == [1, 2, 4, 4, 8, 8, 16, 1024]

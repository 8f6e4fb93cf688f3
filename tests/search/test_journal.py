"""A search killed at any point and resumed is the search that was not killed, and evaluates only what is missing."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glocal.errors import GlocalError
from glocal.search.budget import Budget
from glocal.search.evolution import EvolutionConfig, evolve, random_search
from glocal.search.journal import Journal

SPACE = [((3, 0.5), (0, 17), (1, 31))] * 6
CONFIG = EvolutionConfig(population=8, generations=4, parents=3, crossover=3, mutation=3)
FINGERPRINT = {"seed": 0, "space": SPACE}


class Killed(Exception):
    pass


class Evaluator:
    """Evaluates one path after another, and is killed before the `lives`-th."""

    def __init__(self, lives=math.inf):
        self.lives = lives
        self.evaluated = []

    def __call__(self, paths):
        for path in paths:
            if len(self.evaluated) == self.lives:
                raise Killed
            self.evaluated.append(path)
            yield {"fitness": sum(heads / (i + 3) for i, (heads, _) in enumerate(path)), "parameters": len(path)}


def searched(journal, evaluator, search=evolve):
    return list(search(SPACE, journal.cached(evaluator, key=list), Budget(len), CONFIG))


@settings(max_examples=20, deadline=None)
@given(
    lives=st.integers(0, 31), torn=st.floats(0, 1, exclude_max=True), search=st.sampled_from([evolve, random_search])
)
def test_resumed_is_uninterrupted(tmp_path_factory, lives, torn, search):
    folder = tmp_path_factory.mktemp("search")
    whole = Evaluator()
    result = searched(Journal(folder / "whole.jsonl", FINGERPRINT), whole, search)
    lines = (folder / "whole.jsonl").read_bytes().splitlines(keepends=True)

    path = folder / "journal.jsonl"
    killed, resumed = Evaluator(lives), Evaluator()
    with pytest.raises(Killed):
        searched(Journal(path, FINGERPRINT), killed, search)
    assert path.read_bytes() == b"".join(lines[: lives + 1])  # all that was evaluated, before the next was
    with path.open("ab") as file:
        file.write(lines[lives + 1][: int(torn * len(lines[lives + 1]))])
    assert searched(Journal(path, FINGERPRINT), resumed, search) == result
    assert killed.evaluated + resumed.evaluated == whole.evaluated
    assert path.read_bytes() == b"".join(lines)

    assert searched(Journal(path, FINGERPRINT), Evaluator(lives=0), search) == result  # nothing is missing


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 100))
def test_a_header_that_was_torn_is_begun_anew(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("search") / "journal.jsonl"
    Journal(path, FINGERPRINT)
    header = path.read_bytes()
    path.write_bytes(header[:cut])
    assert not Journal(path, FINGERPRINT).records
    assert path.read_bytes() == header


def test_what_is_read_is_what_was_written(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, FINGERPRINT)
    journal.append([1, (2, 3)], {"fitness": 0.1 + 0.2, "macs": 10**12, "blocks": ({"k": 17},), "note": "a\nb\u2028"})
    journal.append([4], {"fitness": math.inf})
    assert Journal(path, FINGERPRINT).records == journal.records
    assert journal.records["[4]"]["fitness"] == math.inf
    assert [json.loads(line)["key"] for line in path.read_text().splitlines()[1:]] == [[1, [2, 3]], [4]]


def test_a_reader_beside_the_writer_searches_the_same_and_writes_nothing(tmp_path):
    path = tmp_path / "journal.jsonl"
    with pytest.raises(Killed):
        searched(Journal(path, FINGERPRINT), Evaluator(lives=13))
    with path.open("ab") as file:
        file.write(b'{"key": [[')
    before = path.read_bytes()
    reader, evaluator = Journal(path, FINGERPRINT, write=False), Evaluator()
    result = searched(reader, evaluator)
    assert path.read_bytes() == before
    assert len(evaluator.evaluated) == 32 - 13
    assert searched(Journal(path, FINGERPRINT), Evaluator()) == result
    assert not Journal(tmp_path / "none.jsonl", FINGERPRINT, write=False).records
    assert not (tmp_path / "none.jsonl").exists()


def test_the_journal_of_another_search_is_refused_and_left_as_it_is(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path, FINGERPRINT).append([1], {"fitness": 1.0})
    with path.open("ab") as file:
        file.write(b'{"to')
    before = path.read_bytes()
    with pytest.raises(GlocalError, match="with other seed, stage;") as error:
        Journal(path, FINGERPRINT | {"seed": 1, "stage": "low"})
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    Journal(path, dict(reversed(FINGERPRINT.items())))  # the same in another order


@pytest.mark.parametrize("content", [b"no journal", b"no journal\n", b"[]\n", b'{"fingerprint": {}}\n{"key"\n{"ke'])
def test_what_is_no_journal_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(content)
    with pytest.raises(GlocalError, match="is not the journal of a search"):
        Journal(path, FINGERPRINT)
    assert path.read_bytes() == content


def test_a_generation_whose_candidates_are_compared_is_evaluated_as_a_whole_again(tmp_path):
    def rank(candidates):
        order = sorted(candidates)
        return [{"fitness": float(order.index(each))} for each in candidates]

    path = tmp_path / "journal.jsonl"
    whole = Journal(path, FINGERPRINT).cached(rank, key=str, whole_generations=True)([3, 1, 2])
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))  # killed after the first was written
    again = Journal(path, FINGERPRINT)
    assert again.cached(rank, key=str, whole_generations=True)([3, 1, 2]) == whole == [2.0, 0.0, 1.0]
    assert len(path.read_text().splitlines()) == 4


def test_a_file_that_cannot_be_written_is_one_clear_line(tmp_path):
    with pytest.raises(GlocalError, match=r"cannot write .* free some space"):
        Journal(tmp_path / "no-folder" / "journal.jsonl", FINGERPRINT)

"""The demo itself: each lane keeps to the clock, and the whole of it runs, in small."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import demo_parts
import pytest
from demo_parts import Finished, Lesson, Started, follow
from demo_plan import Part, Planned

import glocal

ROOT = Path(__file__).parents[2]
LITTLE = """
from dataclasses import replace
import demo, demo_parts

def little(lesson):
    least = 10**6 if lesson.part.name in {left_out} else 1
    return replace(lesson, part=replace(lesson.part, least=least, most=least + 1, overhead=0))

demo_parts.MEASURING = 0.4
demo_parts.LANES = {{lane: tuple(map(little, lessons)) for lane, lessons in demo_parts.LANES.items()}}
demo.main(600)
"""


class Messages(list):
    """Takes the place of the connection to the main process."""

    send = list.append


def lessons(*seconds_a_round: float) -> tuple[Lesson, ...]:
    """Lessons that sleep for their rounds, of which 2 to 100 teach something."""

    def lesson(number: int, seconds: float) -> Lesson:
        def learn(planned: Planned) -> str:
            time.sleep(planned.rounds * seconds)
            return f"{planned.rounds} rounds"

        return Lesson(Part(str(number), "epochs", 2, 100, 1.0, 0.0), "", learn, "")

    return tuple(lesson(*each) for each in enumerate(seconds_a_round))


def test_a_lane_that_is_as_fast_as_measured_keeps_its_plan():
    messages = Messages()
    follow(lessons(0.02, 0.02), {"0": 0.02, "1": 0.02}, time.time() + 0.8, messages)
    started = [each.planned.rounds for each in messages if isinstance(each, Started)]
    assert started[0] == pytest.approx(20, abs=2)
    assert started[1] == pytest.approx(20, abs=4)
    assert [each.result for each in messages if isinstance(each, Finished)] == [f"{count} rounds" for count in started]


def test_a_lane_that_is_slower_than_measured_learns_less_afterwards():
    messages = Messages()
    begun = time.time()
    follow(lessons(0.03, 0.03, 0.03), {"0": 0.01, "1": 0.01, "2": 0.01}, begun + 1.2, messages)
    assert time.time() - begun < 1.2 * 1.75  # three times as slow, it would have taken three times as long
    rounds = [each.planned.rounds for each in messages if isinstance(each, Started)]
    assert rounds == sorted(rounds, reverse=True)


def test_a_lane_leaves_out_what_no_longer_fits_and_what_needs_it():
    first, second, third = lessons(0.2, 0.01, 0.01)
    second = replace(second, part=replace(second.part, least=80))
    third = replace(third, part=replace(third.part, needs="1"))
    messages = Messages()
    follow((first, second, third), {"0": 0.02, "1": 0.01, "2": 0.01}, time.time() + 1.2, messages)
    ended = [each for each in messages if isinstance(each, Finished)]
    assert [each.planned.part.name for each in ended] == ["0", "1", "2"]
    assert [bool(each.planned.rounds) for each in ended] == [True, False, False]


def test_every_part_has_a_recipe_that_takes_its_fields(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for lane in demo_parts.LANES.values():
        for lesson in lane:
            length = demo_parts.epochs(9) if lesson.part.unit == "epochs" else demo_parts.steps(9)
            glocal.load_recipe(lesson.recipe, dict(lesson.fields) | length).train.check()


def demo(folder: Path, code: str) -> subprocess.Popen:
    """Start Python with the demo at hand, in a process group of its own, as a terminal does."""
    paths = os.pathsep.join([str(ROOT / "examples"), str(ROOT / "src")])
    environment = os.environ | {"PYTHONPATH": paths}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=environment, start_new_session=True, **pipes)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_in_small(tmp_path):
    process = demo(tmp_path, LITTLE.format(left_out={"Transformer", "GPT"}))
    out, err = process.communicate(timeout=850)
    assert process.returncode == 0, err
    page = Path(out.splitlines()[-1])
    text = page.read_text()
    for heading in ("A searched GLiT", "A BERT fills gaps", "Classifiers of digits", "Time"):
        assert heading in text
    assert "A GPT writes" not in text
    assert "left out" in err
    assert all(len(line) <= 80 for line in err.splitlines())
    assert len(err.splitlines()) < 40
    results = (page.parent / "results.md").read_text()
    accuracy = json.loads((page.parent / "vit" / "report.json").read_text())["test"]["top1"]
    assert re.search(rf"\| ViT \| {accuracy:.1%} \|", results)
    assert (page.parent / "digits.png").read_bytes()[:4] == b"\x89PNG"
    assert "look into the ViT: runs/demo/vit.html" in err
    assert 'id="numbers">{' in (page.parent / "vit.html").read_text()
    assert "glocal serve runs/demo/vit" in " ".join(err.split())


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_ends_all_processes(tmp_path):
    process = demo(tmp_path, (ROOT / "examples" / "demo.py").read_text())
    log = tmp_path / "runs" / "demo" / "images.log"
    while not (log.exists() and "training" in log.read_text()):
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert err.splitlines()[-1] == "demo: stopped"
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)

from concurrent.futures import ThreadPoolExecutor

import pytest

from glocal.data import progress as room


@pytest.mark.parametrize(("terminal", "starts"), [(True, [3.0]), (False, [])])
def test_a_bar_shows_on_a_terminal_after_two_seconds(terminal, starts, monkeypatch):
    now, shown = [0.0], []
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(room.Console, "is_terminal", terminal)
    monkeypatch.setattr(room.Progress, "start", lambda bar: shown.append(now[0]))
    for number, item in enumerate(room.progress(iter("abcd"), "counting", 4)):
        assert item == "abcd"[number]
        now[0] += 1
    assert shown == starts


def test_a_thread_shows_none(monkeypatch):
    monkeypatch.setattr(room.time, "monotonic", iter(range(0, 100, 10)).__next__)
    monkeypatch.setattr(room.Console, "is_terminal", True)
    monkeypatch.setattr(room.Progress, "start", lambda bar: pytest.fail("a bar"))
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: list(room.progress("abcd"))).result() == list("abcd")

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

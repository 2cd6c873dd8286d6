"""The progress that meters show: two of them on one terminal, and one without a terminal."""

from __future__ import annotations

import io
import itertools
import os
import sys
import termios
from collections.abc import Callable

import pytest

from workflow_scripts.energy.display import Bar, say

WORK = {"work": {"loss": 600}, "unit": "loss", "total": 1000, "resumed": {"loss": 100}}


@pytest.fixture
def open_terminal(monkeypatch):
    """Makes standard error a terminal; returns what reads all that was written to it since the last call."""
    controller, device = os.openpty()
    termios.tcsetwinsize(device, (24, 100))

    def shown() -> str:
        os.write(device, b"END")
        text = ""
        while not text.endswith("END"):
            text += os.read(controller, 65536).decode()
        return text.removesuffix("END")

    def replace() -> Callable[[], str]:
        monkeypatch.setattr(sys, "stderr", os.fdopen(os.dup(device), "w"))
        return shown

    yield replace
    os.close(device)
    os.close(controller)


def test_one_meter_draws_a_bar(open_terminal) -> None:
    shown, bar = open_terminal(), Bar("student_train")
    bar.draw(None, 0.5)
    bar.draw(WORK, 1.0)
    text = shown()
    assert "\n" not in text
    assert "student_train:  60%" in text
    assert "600/1.00k" in text
    bar.clear()


def test_a_second_meter_on_the_terminal_prints_whole_lines(open_terminal) -> None:
    """Its lines wipe the bar, which draws itself again below them; the bar never overwrites a line."""
    shown, first, second = open_terminal(), Bar("student_train"), Bar("logit_caching")
    first.draw(WORK, 1.0)
    shown()
    for seconds in range(25):
        second.draw(WORK, float(seconds))
    assert shown().split("\r\n") == [
        "\r\x1b[Klogit_caching: 10 s, 600 of 1,000 (60%) loss tokens, 50/s",
        "\r\x1b[Klogit_caching: 20 s, 600 of 1,000 (60%) loss tokens, 25/s",
        "",
    ]
    first.clear()
    shown()
    second.draw(WORK, 25.0)
    text = shown()
    assert "logit_caching:  60%" in text, "the terminal is free: the second draws a bar"
    assert "\n" not in text
    second.clear()


def test_without_a_terminal_lines_come_at_growing_intervals(capfd) -> None:
    bar = Bar("evaluation")
    for half in range(2 * 3600):
        bar.draw(None, half / 2)
    bar.clear()
    lines = capfd.readouterr().err.splitlines()
    times = [int(line.removeprefix("evaluation: ").removesuffix(" s")) for line in lines]
    assert times[:4] == [10, 20, 30, 45]
    assert len(times) < 20
    assert max(later - time for time, later in itertools.pairwise(times)) <= 600


def test_a_display_that_cannot_be_written_is_none(monkeypatch) -> None:
    full = io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True)
    for stream in (full, None):
        monkeypatch.setattr(sys, "stderr", stream)
        bar = Bar("s")
        bar.draw(WORK, 20.0)
        bar.draw(WORK, 60.0)
        bar.clear()
        say("nobody reads this")
        monkeypatch.setattr(sys, "stderr", stream)
        say("nor this")
        assert sys.stderr is not stream

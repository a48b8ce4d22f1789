"""Lines and bars say how far a phase is."""

import io

import pytest

from trainer.core.progress import Lines, Speed, duration, phases


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_at_the_beginning_at_the_end_and_now_and_then() -> None:
    clock, out = Clock(), io.StringIO()
    show = Lines(out, clock)
    for done in range(1, 101):
        clock.now += 0.5
        show("training", done, 100, {"loss": f"{1 / done:.3f}"})
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("training: 1/100  1%")
    assert lines[-1] == "training: 100/100  100%  2.0/s  in 50s  loss 0.010"
    assert len(lines) == 2 + 4
    assert "2.0/s" in lines[2]
    assert "left" in lines[2]


def test_what_a_resumed_run_had_done_before_does_not_count_for_its_speed() -> None:
    clock, out = Clock(), io.StringIO()
    show = Lines(out, clock)
    show("training", 5000, 5010)
    clock.now += 20
    show("training", 5005, 5010)
    assert out.getvalue().splitlines()[-1] == "training: 5005/5010  99%  4.0s each  20s left"


def test_a_phase_can_begin_again() -> None:
    clock, out = Clock(), io.StringIO()
    show = Lines(out, clock)
    for _ in range(2):
        for done in range(4):
            clock.now += 1
            show("drawing", done, 3)
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == ["drawing: 0/3", "drawing: 3/3"] * 2


def test_two_phases_do_not_hide_each_other() -> None:
    out = io.StringIO()
    show = Lines(out, Clock())
    show("reading", 0, 2)
    show("encoding", 0, 2)
    assert len(out.getvalue().splitlines()) == 2


def test_an_empty_phase_is_whole() -> None:
    out = io.StringIO()
    with phases(stream=out) as show:
        show("reading", 0, 0)
    assert "100%" in out.getvalue()


def test_on_a_terminal_there_is_a_bar_with_the_facts() -> None:
    out = Terminal()
    with phases(stream=out) as show:
        show("training", 1, 2, {"loss": "[0.5]"})
        show("training", 2, 2, {"loss": "[0.25]"})
    assert "training" in out.getvalue()
    assert "2/2" in out.getvalue()
    assert "loss [0.25]" in out.getvalue()


def test_other_processes_are_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with phases(quiet=True) as show:
        show("training", 1, 2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0s"), (59.7, "1m00s"), (185, "3m05s"), (7620, "2h07m")])
def test_durations_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_speed_is_smoothed() -> None:
    speed = Speed(0, 0.0)
    for step in range(1, 200):
        speed.note(step, step * 0.1)
    speed.note(200, 19.9 + 3.0)  # one slow step, as a preview makes it
    assert speed.seconds_each == pytest.approx(0.1 + 2.9 / 30, rel=0.01)

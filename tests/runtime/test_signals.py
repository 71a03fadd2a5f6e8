import pytest

from detector.errors import Stopped
from detector.runtime import signals
from detector.runtime.ranks import RankInfo
from detector.runtime.signals import StopRequest


class Peer:
    """Another process, which needs `step_s` for each step and has received `signal`; counts agreements."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step_s: float) -> None:
        self.now, self.step_s, self.signal, self.messages = 0.0, step_s, 0, 0
        monkeypatch.setattr(signals, "rank_info", lambda: RankInfo(0, 2))
        monkeypatch.setattr(signals, "all_reduce_max", self.maximum)
        monkeypatch.setattr(signals.time, "monotonic", lambda: self.now)

    def maximum(self, value: int) -> int:
        """Each agreement has two messages: the time of a step in microseconds, and the signal."""
        self.messages += 1
        return max(value, round(1e6 * self.step_s) if self.messages % 2 else self.signal)


@pytest.mark.parametrize(
    ("mine_s", "other_s", "every"),
    [(0.125, 0.0, 8), (0.01, 0.25, 4), (3.0, 0.0, 1), (0.001, 0.0, 100)],
    ids=["once per second", "by the slowest", "at every step", "at least every 100 steps"],
)
def test_processes_agree_about_once_per_second(monkeypatch, mine_s, other_s, every):
    peer = Peer(monkeypatch, other_s)
    stop, agreed_at = StopRequest(), []
    for step in range(1, 2 + 3 * every):
        peer.now += mine_s
        before = peer.messages
        assert stop.agreed() == 0
        if peer.messages > before:
            agreed_at.append(step)
    assert agreed_at == [1, 1 + every, 1 + 2 * every, 1 + 3 * every]


def test_a_signal_of_any_process_stops_all(monkeypatch):
    peer = Peer(monkeypatch, 0.25)
    stop, results = StopRequest(), []
    for step in range(9):
        peer.now += 0.25
        if step == 2:
            stop.signal = 15  # in this process, which must not stop before the others know
        results.append(stop.agreed())
    assert results == [0, 0, 0, 0, 15, 0, 0, 0, 15]
    peer.signal, stop.signal = 10, 0
    assert [stop.agreed() for _ in range(4)] == [0, 0, 0, 10]


def test_a_process_alone_stops_after_the_step():
    stop = StopRequest()
    stop.signal = 15
    assert [stop.agreed(), stop.agreed()] == [15, 15]


def test_the_message_says_when_the_program_stops(caplog):
    after, now = StopRequest(), StopRequest()
    after._note(15, None)
    now._raises = True
    with pytest.raises(Stopped):
        now._note(15, None)
    assert caplog.messages == ["SIGTERM: stopping after this step; send it again to stop at once", "SIGTERM: stopping"]

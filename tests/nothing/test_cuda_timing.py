"""Times of kernels on a GPU depend neither on how many calls are planned nor on what the host needs between graphs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sparsetvm.measure import cuda_timing
from sparsetvm.measure.timing import plan_repeats, time_interleaved, warm_up


class FakeGpu:
    """A clock, which launches of a kernel move by `us`, and what lies between two graphs by `gap`; in microseconds."""

    def __init__(self, us: float, gap: float) -> None:
        self.us, self.gap, self.now, self.recorded = us, gap, 0.0, 0

    def launch(self) -> None:
        self.recorded += 1

    def wait(self) -> None:
        pass

    def events(self) -> tuple[FakeEvent, FakeEvent]:
        return FakeEvent(self), FakeEvent(self)


class FakeEvent:
    def __init__(self, gpu: FakeGpu) -> None:
        self._gpu, self._at = gpu, 0.0

    def record(self) -> None:
        self._at = self._gpu.now

    def seconds_since(self, earlier: FakeEvent) -> float:
        return (self._at - earlier._at) * 1e-6


class FakeGraph:
    def __init__(self, gpu: FakeGpu, record: Callable[[], None]) -> None:
        gpu.recorded = 0
        record()
        self._gpu, self._launches = gpu, gpu.recorded

    def launch(self) -> None:
        self._gpu.now += self._gpu.gap + self._launches * self._gpu.us


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_timing, "Graph", FakeGraph)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("gap", [1.0, 8.0, 21.0])
@pytest.mark.parametrize("number", [1, 49, 50, 75, 99, 400])
def test_short_kernels_are_timed_in_whole_graphs(number: int, gap: float) -> None:
    gpu = FakeGpu(2.2, gap)
    time_calls = cuda_timing.time_graph(gpu, gpu)  # type: ignore[arg-type]
    assert time_calls(number) * 1e6 == pytest.approx(2.2 + gap / 50)


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("gap", [8.0, 21.0, 60.0])
def test_time_of_a_short_kernel_survives_a_slow_host_while_it_is_planned(gap: float) -> None:
    gpu = FakeGpu(2.2, gap)
    time_calls = cuda_timing.time_graph(gpu, gpu)  # type: ignore[arg-type]
    seconds = warm_up(time_calls)
    gpu.gap = 8.0
    assert time_calls(plan_repeats(seconds, 1, 1.0).number) * 1e6 < 2.5
    found = [us for _, us in time_interleaved([time_calls], [[0]] * 3, 0.1) if us is not None]
    assert max(found) < 2.5


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("us", [40.0, 300.0, 5000.0])
def test_long_kernels_need_few_launches(us: float) -> None:
    gpu = FakeGpu(us, 8.0)
    time_calls = cuda_timing.time_graph(gpu, gpu)  # type: ignore[arg-type]
    before = gpu.now
    assert time_calls(1) * 1e6 == pytest.approx(us, rel=0.01)
    assert gpu.now - before < max(2.5e3, us + 10)

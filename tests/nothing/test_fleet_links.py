"""Links of a fleet: a job that its worker has had for too long is given up, and only such a job."""

from __future__ import annotations

import queue
import time
from typing import Any, cast

from sparsetvm.measure.fleet_link import Job, Link
from sparsetvm.measure.fleet_queue import JobQueue


def link_with(job: Job | None, since: float) -> Link:
    """A link that is not started, as if it had taken a job at `since`."""
    link = Link(cast(Any, None), lambda hello: "", JobQueue())
    link.job, link._since = job, since
    return link


def job_of(seconds: float) -> Job:
    return Job(0, cast(Any, None), cast(Any, None), seconds, queue.Queue())


def test_link_without_a_job_is_never_overdue() -> None:
    assert link_with(None, 0.0).overdue() is None


def test_link_names_the_job_that_takes_too_long() -> None:
    late, in_time = job_of(5.0), job_of(1e6)
    assert link_with(late, time.monotonic() - 6.0).overdue() is late
    assert link_with(in_time, time.monotonic() - 6.0).overdue() is None


def test_link_that_ends_its_job_meanwhile_still_names_it() -> None:
    """The thread of a link may be done between two looks at `job`: whoever gives it up must not see None then."""
    late = job_of(5.0)

    class Finishing(Link):
        looks = 0

        def __getattribute__(self, name: str) -> Any:
            if name != "job":
                return super().__getattribute__(name)
            type(self).looks += 1
            return late if type(self).looks == 1 else None

    link = Finishing(cast(Any, None), lambda hello: "", JobQueue())
    Finishing.looks = 0
    assert link.overdue() is late

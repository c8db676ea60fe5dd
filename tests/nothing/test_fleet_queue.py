"""Which worker of a fleet gets which job: tasks share the workers, and a worker keeps to its task."""

from __future__ import annotations

import queue
from typing import Any, cast

from sparsetvm.measure.fleet_link import Job
from sparsetvm.measure.fleet_protocol import RemoteRun
from sparsetvm.measure.fleet_queue import JobQueue


def queue_of(**tasks: int) -> JobQueue:
    """Open tasks with so many jobs that wait."""
    jobs = JobQueue()
    for task, count in tasks.items():
        jobs.open(task)
        add(jobs, task, count)
    return jobs


def add(jobs: JobQueue, task: str, count: int) -> None:
    for index in range(count):
        jobs.put(Job(index, RemoteRun(task, cast(Any, None)), cast(Any, None), 1.0, queue.Queue()))


def taken(jobs: JobQueue, has: str, idle: float = 0.0) -> str:
    job = jobs.take(has, 0.0, idle)
    return "" if job is None else job.request.task_id


def test_jobs_of_a_task_come_in_order() -> None:
    jobs = queue_of(a=3)
    found = [jobs.take("", 0.0), jobs.take("a", 0.0), jobs.take("a", 0.0)]
    assert [job.index for job in found if job] == [0, 1, 2]
    assert jobs.take("a", 0.0) is None


def test_workers_of_one_task_share_it() -> None:
    jobs = queue_of(a=4)
    assert [taken(jobs, ""), taken(jobs, ""), taken(jobs, "a")] == ["a", "a", "a"]


def test_every_task_gets_a_worker_before_one_gets_two() -> None:
    jobs = queue_of(a=9, b=1)
    assert {taken(jobs, ""), taken(jobs, "")} == {"a", "b"}


def test_worker_waits_for_its_task_while_others_have_workers() -> None:
    jobs = queue_of(a=1, b=9)
    first, second = taken(jobs, ""), taken(jobs, "")
    assert {first, second} == {"a", "b"}
    assert taken(jobs, "a") == ""
    assert taken(jobs, "a", idle=2.0) == "b"


def test_fresh_worker_waits_for_a_task_without_one() -> None:
    jobs = queue_of(a=9, b=0)
    assert taken(jobs, "") == "a"
    assert taken(jobs, "") == ""
    add(jobs, "b", 1)
    assert taken(jobs, "") == "b"


def test_task_that_lost_its_worker_gets_the_next_idle_one() -> None:
    jobs = queue_of(a=2, b=2)
    assert {taken(jobs, ""), taken(jobs, "")} == {"a", "b"}
    assert taken(jobs, "a") == "a"
    jobs.leave("b")
    assert taken(jobs, "a") == "b"


def test_second_worker_of_a_task_goes_to_one_that_has_none() -> None:
    jobs = queue_of(a=9)
    assert [taken(jobs, ""), taken(jobs, "")] == ["a", "a"]
    jobs.open("b")
    add(jobs, "b", 1)
    assert taken(jobs, "a") == "b"
    assert taken(jobs, "a") == "a"


def test_workers_of_a_closed_task_are_free() -> None:
    jobs = queue_of(a=1, b=5)
    assert {taken(jobs, ""), taken(jobs, "")} == {"a", "b"}
    assert taken(jobs, "a") == ""
    jobs.close("a")
    assert taken(jobs, "a") == "b"


def test_jobs_of_a_closed_task_are_dropped() -> None:
    jobs = queue_of(a=5)
    jobs.close("a")
    assert taken(jobs, "") == ""

"""The page on the disk."""

from __future__ import annotations

from pathlib import Path

from sparsetvm.core.files import write_whole
from sparsetvm.core.results import PageReport
from sparsetvm.errors import EnvironmentProblem
from sparsetvm.report.html.page import make_page
from sparsetvm.report.learned import Learned, learn
from sparsetvm.report.story import Story, target_of


def write_page(story: Story, source: str, output: Path) -> PageReport:
    """Write the page of a story. Raises EnvironmentProblem when it cannot be written."""
    device = story.devices[-1] if story.devices else None
    learned = Learned()
    if device is not None:
        shown = [task for task in story.tasks if task.device.model == device.model]
        target = story.target or target_of(device, shown[-1].workload.threads)
        learned = learn([task.trials for task in shown], target)
    page = make_page(story, learned)
    try:
        write_whole(output, lambda file: file.write(page))
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot write '{output}': {error.strerror or error}", hint="choose a writable folder with -o"
        ) from error
    return PageReport(
        source=source, output=str(output), tasks=len(story.tasks), records=len(story.records), bytes=len(page),
        notes=story.notes,
    )  # fmt: skip

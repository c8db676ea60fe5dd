"""`sparsetvm doctor`."""

from __future__ import annotations

import click

from sparsetvm.cli.session import Session, common_options, pass_session
from sparsetvm.errors import EnvironmentProblem


@click.command("doctor")
@common_options
@pass_session
def command(session: Session) -> None:
    """Check that this machine can tune, compile and run. Exit code 4 when something is missing."""
    from sparsetvm.report.doctor import run_doctor

    report = run_doctor()

    def render() -> None:
        from sparsetvm.report.console import print_doctor

        print_doctor(report)

    session.emit(report, render)
    if not report.ok:
        raise click.exceptions.Exit(EnvironmentProblem.exit_code)

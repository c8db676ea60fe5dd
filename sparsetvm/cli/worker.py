"""`sparsetvm worker`."""

from __future__ import annotations

import signal

import click

from sparsetvm.cli.params import Duration
from sparsetvm.cli.session import Session, common_options, pass_session


@click.command("worker")
@click.option("--tracker", required=True, metavar="HOST:PORT", help="The fleet's tracker.")
@click.option("--key", required=True, metavar="NAME", help="What tunes ask for: one name for each kind of device.")
@click.option("--target", default="cpu", show_default=True, help="The device to measure on: cpu, cuda or cuda:1.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(1, 64535), default=9091, show_default=True, help="First port to try.")
@click.option("--advertise", default="", metavar="ADDRESS", help="Address that tunes reach it at.  [default: --host]")
@click.option("--run-timeout", type=Duration(), default=10.0, help="Time limit of a candidate.  [default: 10s]")
@click.option(
    "--memory", type=click.IntRange(min=1), metavar="MB", help="Memory limit of a candidate.  [default: half]"
)
@common_options
@pass_session
def command(
    session: Session,
    *,
    tracker: str,
    key: str,
    target: str,
    host: str,
    port: int,
    advertise: str,
    run_timeout: float,
    memory: int | None,
) -> None:
    """Measure for tunes on other machines, until Ctrl-C.

    Keeps one server for one device alive, whatever candidates do to it. RPC is remote code execution: whoever reaches
    the port may run anything as you. It listens on this machine only unless --host says more.
    """
    from sparsetvm.core.target import device_fingerprint, parse_target
    from sparsetvm.measure.fleet_worker import Supervisor, WorkerOptions, parse_tracker

    parse_tracker(tracker)
    where = parse_target(target)
    options = WorkerOptions(
        tracker, key, target, host, port, advertise, run_timeout, None if memory is None else memory << 20
    )
    session.say_settings("worker", tracker=tracker, key=key, target=target, host=host, port=port)
    if options.exposed():
        session.say(f"warning: {options.exposed()}")
    session.say(f"measuring on {device_fingerprint(where).model} for key '{key}'; Ctrl-C ends it")
    supervisor = Supervisor(options, session.say)
    signal.signal(signal.SIGTERM, supervisor.stop)
    signal.signal(signal.SIGINT, supervisor.stop)
    supervisor.run()

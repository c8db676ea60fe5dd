"""`sparsetvm`: the command group. Subcommands are imported when they are used; errors become exit codes here.

Start-up must stay under 150 ms: nothing but click and the standard library may be imported at module level of this
package (a test looks at sys.modules). Exit codes are those of sparsetvm/errors.py.
"""

from __future__ import annotations

import errno
import importlib
import shlex
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from sparsetvm.cli.session import Session, common_options
from sparsetvm.core.version import VERSION
from sparsetvm.errors import EnvironmentProblem, Interrupted, SparseTvmError, did_you_mean, printable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
_MACHINE = (*_FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)

# Command -> (module below sparsetvm.cli, what --help says): help needs no import of the command.
COMMANDS: dict[str, tuple[str, str]] = {
    "inspect": ("inspect", "Which layers are pruned, how, and what speed-up to expect."),
    "tune": ("tune", "Search fast kernels on this device and remember every measurement."),
    "compile": ("compile", "Write a deployable .so with the best known kernels."),
    "run": ("run", "Run a compiled .so on arrays from a file."),
    "bench": ("bench", "Time a .so or model beside ONNX Runtime and our dense build."),
    "worker": ("worker", "Measure for tunes on other machines."),
    "verify": ("verify", "Compare the outputs of a .so with the model it was made from."),
    "prune": ("prune", "One-shot magnitude pruning, for what-if questions about speed."),
    "log": ("log", "List, explain, check, merge and export tuning records."),
    "report": ("report", "Write an HTML page about a tuning run, a log or a compiled model."),
    "doctor": ("doctor", "Check that this machine can tune, compile and run."),
    "cache": ("cache", "Show or clear the cache folder."),
    "completion": ("completion", "Print the completion script of a shell."),
}


class LazyGroup(click.Group):
    """A group that imports a subcommand on use and maps every exception to an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"sparsetvm.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no such command '{args[0]}'{did_you_mean(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run and exit the process; see sparsetvm/errors.py for the codes."""
        argv = list(sys.argv[1:] if args is None else args)
        session = Session()
        extra.update(standalone_mode=False, obj=session, prog_name="sparsetvm")
        try:
            code = super().main(argv, *rest, **extra)
        except SparseTvmError as error:
            code = _report_known(session, error)
        except click.exceptions.Abort as abort:
            # click turns Ctrl-C into Abort, and EOFError too, which nothing here raises on purpose.
            cause = abort.__cause__
            if isinstance(cause, EOFError):
                code = _report_bug(session, cause, argv)
            else:
                code = _report_known(session, Interrupted("interrupted"))
        except click.ClickException as error:
            error.show()
            session.emit_error("UsageError", error.format_message(), None, None, error.exit_code)
            code = error.exit_code
        except (OSError, MemoryError) as error:
            problem = _machine_problem(error)
            code = _report_known(session, problem) if problem else _report_bug(session, error, argv)
        except Exception as error:
            code = _report_bug(session, error, argv)
        sys.exit(code if isinstance(code, int) else 0)


def _machine_problem(error: OSError | MemoryError) -> EnvironmentProblem | None:
    """The error for what the machine has run out of or refuses; None when the program is to blame."""
    if isinstance(error, MemoryError):
        return EnvironmentProblem("there is not enough memory", hint="end other programs, or use a larger machine")
    if error.errno not in _MACHINE and "temporary directory" not in str(error):
        return None
    where = f" ('{error.filename}')" if error.filename else ""
    return EnvironmentProblem(
        f"the system says: {error.strerror or error}{where}",
        hint="check free disk space and rights, also of the folder for temporary files (TMPDIR)",
    )


def _report_known(session: Session, error: SparseTvmError) -> int:
    session.say_error(str(error))
    session.emit_error(type(error).__name__, error.message, error.hint, error.layer, error.exit_code)
    return error.exit_code


def _report_bug(session: Session, error: Exception, argv: Sequence[str]) -> int:
    """Anything that is not raised on purpose is a bug: say so, and how to repeat it."""
    if session.verbose:
        click.echo(printable(traceback.format_exc().rstrip()), err=True)
    message = f"{type(error).__name__}: {error}"
    verbose = [] if session.verbose else ["-v"]
    session.say_error(
        f"{message}\n  this is a bug in sparsetvm; please report it with the output of:"
        f"\n    {shlex.join(['sparsetvm', *verbose, *argv])}"
    )
    session.emit_error("Bug", message, None, None, 1)
    return 1


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(VERSION, package_name="sparsetvm")
@common_options
def cli() -> None:
    """Make pruned neural networks fast: an autotuning compiler for sparse weights on Apache TVM.

    Start with `sparsetvm inspect MODEL.onnx`; the model example:digits is shipped with the package.
    """


def main() -> None:
    """Entry point of the `sparsetvm` script."""
    cli.main()

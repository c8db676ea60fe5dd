"""`sparsetvm cache`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click

from sparsetvm.cli.session import JSON_SCHEMA, Session, common_options, pass_session
from sparsetvm.errors import EnvironmentProblem


def cache_dir() -> Path:
    """Folder of the cache ($XDG_CACHE_HOME/sparsetvm on Linux); it need not exist."""
    from platformdirs import user_cache_path

    return user_cache_path("sparsetvm")


def _measure(folder: Path) -> tuple[int, int]:
    """(files, bytes) below a folder; links are not followed."""
    sizes = [path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]
    return len(sizes), sum(sizes)


@click.group("cache")
def command() -> None:
    """Show or clear the cache folder.

    The cache holds only what can be made again; the tuning log is never in it.
    """


@command.command("info")
@common_options
@pass_session
def info(session: Session) -> None:
    """Where the cache is and how big."""
    folder = cache_dir()
    files, size = _measure(folder)
    document = {"schema": JSON_SCHEMA, "folder": str(folder), "files": files, "bytes": size}
    session.emit_json(
        json.dumps(document, indent=2).encode(),
        lambda: session.echo(f"{folder}: {files} files, {size / 2**20:.1f} MiB"),
    )


@command.command("clear")
@common_options
@pass_session
def clear(session: Session) -> None:
    """Delete what is in the cache."""
    folder = cache_dir()
    files, size = _measure(folder)
    try:
        for entry in sorted(folder.iterdir()) if folder.is_dir() else []:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot delete '{error.filename}': {error.strerror}", hint="check the owner and mode of the cache folder"
        ) from error
    document = {"schema": JSON_SCHEMA, "folder": str(folder), "files": files, "bytes": size}
    session.emit_json(
        json.dumps(document, indent=2).encode(),
        lambda: session.echo(f"deleted {files} files, {size / 2**20:.1f} MiB, from {folder}"),
    )

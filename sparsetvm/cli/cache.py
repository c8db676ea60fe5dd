"""`sparsetvm cache`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click

from sparsetvm.cli.session import JSON_SCHEMA, Session, common_options, pass_session
from sparsetvm.errors import EnvironmentProblem


def cache_dir() -> Path:
    """Folder of the cache; it need not exist."""
    from sparsetvm.core.folders import cache_folder

    folder = cache_folder()
    if folder is None:
        raise EnvironmentProblem("this user has no cache folder", hint="set HOME or XDG_CACHE_HOME to have one")
    return folder


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

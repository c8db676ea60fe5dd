"""Every environment variable that sparsetvm reads, typed and documented: the table below is the whole list.

A command-line option always wins over its variable. Nothing else in the package reads `SPARSETVM_*`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsetvm.errors import UsageError, did_you_mean

PREFIX = "SPARSETVM_"

# name -> (type, what it does)
VARIABLES: dict[str, tuple[str, str]] = {
    "SPARSETVM_LOG_DIR": ("folder", "where tuning logs are written and looked up, like --log-dir"),
    "SPARSETVM_RECORDS": (
        f"paths joined by '{os.pathsep}'",
        "more tuning logs (files or folders) to read, never written",
    ),
    "SPARSETVM_ISA": (
        "avx512 or avx2",
        "instruction set for --target cpu; avx2 hides AVX-512",
    ),
}


@dataclass(frozen=True)
class Settings:
    """Values of the variables. log_dir, isa: None when not set; records: empty when not set."""

    log_dir: Path | None = None
    records: tuple[Path, ...] = ()
    isa: str | None = None


def read_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the variables (of this process by default); an empty value counts as not set.

    Raises UsageError for a value of the wrong type.
    """
    env = os.environ if environ is None else environ
    isa = env.get("SPARSETVM_ISA") or None
    if isa not in (None, "avx512", "avx2"):
        raise UsageError(f"SPARSETVM_ISA={isa}: must be avx512 or avx2{did_you_mean(isa, ['avx512', 'avx2'])}")
    log_dir = env.get("SPARSETVM_LOG_DIR") or None
    records = tuple(Path(p).expanduser() for p in env.get("SPARSETVM_RECORDS", "").split(os.pathsep) if p)
    return Settings(Path(log_dir).expanduser() if log_dir else None, records, isa)


def unknown_variables(environ: Mapping[str, str] | None = None) -> list[str]:
    """One line for each variable with our prefix that nothing reads, with the closest known name."""
    env = os.environ if environ is None else environ
    return [
        f"{name} is set but has no meaning{did_you_mean(name, VARIABLES)}"
        for name in sorted(env)
        if name.startswith(PREFIX) and name not in VARIABLES
    ]

"""Every error that sparsetvm raises on purpose.

    SparseTvmError                 exit code 1: a bug, unless a subclass says otherwise
    +-- UsageError                 2: an option or argument makes no sense
    |   +-- TargetError            2: unknown or impossible --target
    +-- ModelError                 3: the model is rejected (broken file, unsupported operator, unsafe path, ...)
    +-- EnvironmentProblem         4: something outside the model is missing (compiler, GPU, package, writable folder)
    +-- VerificationError          5: outputs differ from the reference
    +-- NoCandidateError           6: no valid candidate for a layer, or --require-tuned is unmet
    +-- LogError                   7: the tuning log cannot be used
    +-- Interrupted              130: Ctrl-C; everything measured so far is in the log

A message names the layer (where there is one), says what is wrong, and `hint` says the next step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SparseTvmError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line exits with."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None, layer: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.layer = layer

    def __str__(self) -> str:
        where = f"layer '{printable(self.layer, 160)}': " if self.layer else ""
        hint = f"\n  next step: {printable(self.hint)}" if self.hint else ""
        return f"{where}{printable(self.message)}{hint}"


class UsageError(SparseTvmError):
    """An option or argument makes no sense."""

    exit_code = 2


class TargetError(UsageError):
    """Unknown or impossible target."""


class ModelError(SparseTvmError):
    """The model is rejected."""

    exit_code = 3


class EnvironmentProblem(SparseTvmError):
    """Something outside the model is missing: a compiler, a GPU, a package, a writable folder."""

    exit_code = 4


class VerificationError(SparseTvmError):
    """Outputs differ from the reference by more than the tolerance."""

    exit_code = 5


class NoCandidateError(SparseTvmError):
    """No valid candidate for a layer."""

    exit_code = 6


class LogError(SparseTvmError):
    """The tuning log cannot be used."""

    exit_code = 7


class Interrupted(SparseTvmError):
    """Ctrl-C; everything measured so far is in the log."""

    exit_code = 130


def printable(text: str, limit: int | None = None) -> str:
    """`text` for a terminal: whatever could move the cursor, change colours or turn the direction is escaped.

    Lines stay lines unless there is a `limit` of characters; what is longer is cut in the middle.
    """
    keep = "\n" if limit is None else ""
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c == keep else c.encode("unicode_escape").decode("ascii") for c in text)
    if limit is None or len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""

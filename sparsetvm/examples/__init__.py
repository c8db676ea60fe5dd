"""Models that are shipped with the package: `example:NAME` on the command line."""

from __future__ import annotations

from pathlib import Path

EXAMPLES = ("digits",)


def example_path(name: str) -> Path:
    """Path of a shipped model; `name` is one of EXAMPLES."""
    return Path(__file__).with_name(f"{name}.onnx")


def shown_model(path: str) -> str:
    """What to type for a model: "example:NAME" for the path of a shipped one, the path itself for others."""
    known = Path(path)
    shipped = known.parent == Path(__file__).parent and known.stem in EXAMPLES
    return f"example:{known.stem}" if shipped else path


def digits_path() -> Path:
    """A small convolutional network for 8x8 digits, at least 90 % pruned (scripts/train_digits.py made it)."""
    return example_path("digits")

"""`sparsetvm run`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from sparsetvm.cli.arrays import read_arrays, write_arrays
from sparsetvm.cli.session import JSON_SCHEMA, Session, common_options, pass_session

if TYPE_CHECKING:
    import numpy as np

    from sparsetvm.runtime.module import Module


@click.command("run")
@click.argument("module", type=click.Path(exists=True, dir_okay=False), metavar="MODULE.so")
@click.option(
    "-i", "--input", "inputs", type=click.Path(exists=True, dir_okay=False), required=True,
    help=".npz with an array for each input (or .npy, for a model with one input).",
)  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False), help=".npz for the outputs.  [default: summary only]")
@click.option("--threads", type=click.IntRange(min=1), help="Threads.  [default: as compiled]")
@common_options
@pass_session
def command(session: Session, *, module: str, inputs: str, output: str | None, threads: int | None) -> None:
    """Run a compiled MODULE.so once.

    A .so is code and runs with your rights: run only what you compiled, or what comes from somebody you trust.
    """
    from sparsetvm import api

    loaded = api.load(module, threads=threads)
    outputs = loaded.run(_named(loaded, read_arrays(inputs)))
    if output is not None:
        write_arrays(output, outputs)
    rows = [
        {
            "name": name,
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "min": float(array.min()) if array.size else None,
            "max": float(array.max()) if array.size else None,
        }
        for name, array in outputs.items()
    ]

    def render() -> None:
        for row in rows:
            session.echo(f"{row['name']}: {row['dtype']} {row['shape']}, from {row['min']} to {row['max']}")

    document = {"schema": JSON_SCHEMA, "module": module, "output": output, "outputs": rows}
    session.emit_json(json.dumps(document, indent=2).encode(), render)


def _named(module: Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give the nameless array of an .npy file the name of the only input."""
    if list(arrays) == [""] and len(module.inputs) == 1:
        return {module.inputs[0].name: arrays[""]}
    return arrays

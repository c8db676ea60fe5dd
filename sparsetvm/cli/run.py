"""`sparsetvm run`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from sparsetvm.cli.arrays import read_arrays, write_arrays
from sparsetvm.cli.session import JSON_SCHEMA, Session, common_options, examples, pass_session

if TYPE_CHECKING:
    import numpy as np

    from sparsetvm.runtime.module import Module


@click.command("run", epilog=examples("run", "model.so -i in.npz -o out.npz", "model.so --top 5"))
@click.argument("module", type=click.Path(exists=True, dir_okay=False), metavar="MODULE.so")
@click.option(
    "-i", "--input", "inputs", type=click.Path(exists=True, dir_okay=False),
    help=".npz with an array for each input (or .npy, for a model with one input).  [default: random]",
)  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False), help=".npz for the outputs.  [default: summary only]")
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Also the N largest values and their indices.")
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads.  [default: as compiled]")
@common_options
@pass_session
def command(
    session: Session, *, module: str, inputs: str | None, output: str | None, top: int | None, threads: int | None
) -> None:
    """Run a compiled MODULE.so once.

    A .so is code and runs with your rights: run only what you compiled, or what comes from somebody you trust.
    """
    from sparsetvm import api

    loaded = api.load(module, threads=threads)
    if inputs is None:
        session.say("run: no --input, so random values")
    outputs = loaded.run(loaded.random_inputs() if inputs is None else _named(loaded, read_arrays(inputs)))
    if output is not None:
        write_arrays(output, outputs)
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "shape": list(array.shape),
            "dtype": str(array.dtype),
            "min": float(array.min()) if array.size else None,
            "max": float(array.max()) if array.size else None,
            **({} if top is None else {"top": _largest(array, top)}),
        }
        for name, array in outputs.items()
    ]

    def render() -> None:
        for row in rows:
            session.echo(f"{row['name']}: {row['dtype']} {row['shape']}, from {row['min']} to {row['max']}")
            for found in row.get("top", []):
                session.echo(f"  {found['index']}: {found['value']:.6g}")

    document = {"schema": JSON_SCHEMA, "module": module, "output": output, "outputs": rows}
    session.emit_json(json.dumps(document, indent=2).encode(), render)


def _largest(array: np.ndarray, count: int) -> list[dict[str, Any]]:
    """Index and value of the largest elements, largest first."""
    import numpy as np

    flat = array.reshape(-1)
    order = np.argsort(-flat.astype(np.float64), kind="stable")[:count]
    return [
        {"index": [int(at) for at in np.unravel_index(int(i), array.shape)], "value": float(flat[i])} for i in order
    ]


def _named(module: Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Give the nameless array of an .npy file the name of the only input."""
    if list(arrays) == [""] and len(module.inputs) == 1:
        return {module.inputs[0].name: arrays[""]}
    return arrays

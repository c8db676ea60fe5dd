"""How far apart two cores are, and what libraries that run on both of them take meanwhile.

    sparsetvm compile MODEL.onnx --threads 2 -o two.so
    python scripts/bench_cores.py [--cores 0,1] [--rounds 20] [--pause 2] [LIBRARY.so ...]

Each round prints the round trip of one cache line between the cores, how fast a core reads what the other one, or it
itself, has just written, and the median run of each library. The threads of a layer exchange activations through that
path. A host may move the cores of a virtual machine between caches while it runs: `lscpu` then still shows one L3.

Requires: Linux, a C++ compiler ($CXX or c++).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

import sparsetvm

_SOURCE = Path(__file__).parent / "benchlib" / "cores.cc"
_SECONDS = 0.5  # of runs of each library in a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="*", type=Path, metavar="LIBRARY")
    parser.add_argument("--cores", default="0,1")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between rounds")
    args = parser.parse_args()
    first, second = args.cores.split(",")
    modules = [sparsetvm.load(library) for library in args.libraries]
    names = [
        f"{library.stem}, {module.threads} threads, ms" for library, module in zip(args.libraries, modules, strict=True)
    ]
    print("| round trip, ns | from the other core, GB/s | its own, GB/s |" + "".join(f" {name} |" for name in names))
    print("|---|---|---|" + "---|" * len(names))
    with tempfile.TemporaryDirectory(prefix="bench-cores-") as folder:
        program = Path(folder, "cores")
        subprocess.run(
            [os.environ.get("CXX", "c++"), "-O2", "-std=c++17", "-pthread", str(_SOURCE), "-o", str(program)],
            check=True,
        )
        for at in range(args.rounds):
            time.sleep(args.pause if at else 0.0)
            said = subprocess.run([program, first, second], check=True, capture_output=True, text=True).stdout
            times = [module.benchmark(seconds=_SECONDS).median for module in modules]
            print("| " + " | ".join([*said.split(), *(f"{ms:.3f}" for ms in times)]) + " |", flush=True)


if __name__ == "__main__":
    main()

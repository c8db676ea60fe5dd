"""What tests read in the PTX that nvcc leaves beside a kernel."""

from __future__ import annotations

import re

from sparsetvm.schedules.cuda.launch import Launch


def constant_loads(ptx: str, launch: Launch) -> list[str]:
    """Registers through which activations are read by ld.global.nc, a load that passes the wait for the kernel before.

    X, and the residual if there is one, are the first parameters; addresses are followed from them.
    """
    activations = 2 if dict(launch.defines).get("SP_RESIDUAL") else 1
    derived = {f"[x_param_{i}]" for i in range(activations)}
    computed = re.findall(r"^\s*(?:@!?%p\d+ )?[a-z0-9_.:]+\s+(%rd\d+), ([^;]*);", ptx, re.MULTILINE)
    uses = [(to, set(re.sub(r"\[\w+_param_", "[x_param_", parts).split(", "))) for to, parts in computed]
    while found := {to for to, parts in uses if parts & derived} - derived:
        derived |= found
    loads = re.findall(r"ld\.global\.nc\S*\s+[^[]*\[(%rd\d+)", ptx)
    return sorted(derived & set(loads))

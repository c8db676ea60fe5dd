"""PTX of the loop that runs a dispatch stream: one piece of code for each row, jumps from entry to entry.

C++ has no jump to a computed label, and a `switch` in a loop takes three jumps an entry instead of one.
"""

from __future__ import annotations

LANES = 32
VECTOR = 4  # floats of one read of X


def row_bytes(c: int) -> int:
    """Bytes of a column's X in the tile: `c` floats a lane."""
    return LANES * c * 4


def dispatch_loop(rows: int, c: int) -> str:
    """The body of SP_DISPATCH: an asm statement over `acc[rows][c]`, `entries` and `tile` (shared-memory addresses).

    Lane l has positions l * 4 .. l * 4 + 3 of each 128. An entry's case: c FMAs; where it is the column's last, the
    next column's X (it arrives while the jump is under way); the entry after the next; jump to the case of the next.
    """
    entries, tile = f"%{rows * c}", f"%{rows * c + 1}"
    low = row_bytes(c) - 1

    def read_x(address: str, predicate: str = "") -> list[str]:
        step = LANES * VECTOR * 4
        names = [", ".join(f"x{v * VECTOR + i}" for i in range(VECTOR)) for v in range(c // VECTOR)]
        return [f"{predicate}ld.shared.v4.f32 {{{name}}}, [{address}+{v * step}];" for v, name in enumerate(names)]

    lines = [
        "{",
        ".reg .f32 w, w_next;",
        ".reg .b32 code, code_next, from, case, at;",
        ".reg .pred last;",
        f".reg .f32 {', '.join(f'x{i}' for i in range(c))};",
        f"ld.shared.b32 at, [{entries}];",
        f"add.u32 at, at, {tile};",
        *read_x("at"),
        f"ld.shared.v2.b32 {{w, code}}, [{entries}+8];",
        f"ld.shared.v2.b32 {{w_next, code_next}}, [{entries}+16];",
        f"add.u32 from, {entries}, 24;",
        f"and.b32 case, code, {low};",
        f"cases: .branchtargets {', '.join(f'R{row}' for row in range(rows))}, END;",
        "brx.idx case, cases;",
    ]
    for row in range(rows):
        lines += [
            f"R{row}:",
            f"and.b32 case, code_next, {low};",
            *(f"fma.rn.f32 %{row * c + i}, w, x{i}, %{row * c + i};" for i in range(c)),
            "setp.lt.s32 last, code, 0;",
            f"and.b32 at, code, {0x7FFFFFFF & ~low};",
            f"add.u32 at, at, {tile};",
            *read_x("at", "@last "),
            "mov.b32 w, w_next;",
            "mov.b32 code, code_next;",
            "ld.shared.v2.b32 {w_next, code_next}, [from];",
            "add.u32 from, from, 8;",
            "brx.idx case, cases;",
        ]
    lines += ["END:", "}"]
    body = " \\\n".join(f'  "{line}\\n"' for line in lines)
    sums = ", ".join(f'"+f"(acc[{row}][{i}])' for row in range(rows) for i in range(c))
    return f'asm volatile( \\\n{body} \\\n  : {sums} \\\n  : "r"(entries), "r"(tile) : "memory")'

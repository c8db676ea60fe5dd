"""The LLVM functions through which a host runs pieces of code (formats/pieces.py)."""

from __future__ import annotations

from sparsetvm.formats.pieces import Piece


def llvm_functions(symbol: str, pieces: list[Piece], second_tile: bool = False) -> str:
    """LLVM IR of the two functions that a host calls; the pieces are subroutines in a section of their own.

    `i32 symbol_run(i32 piece, i32 next, i32 line, ptr w_next, ptr x, ptr y, ptr w, ptr bias, ptr mask, ptr residual)`
    runs a piece on a tile; it prefetches the code of the piece `next` from cache line `line` on, and weights from
    `w_next` on. `i32 symbol_touch(i32 piece, ptr w, i32 weight_lines)` reads the code and the weights of a piece, one
    byte per cache line: nothing has prefetched a worker's first piece. For AVX2 (`second_tile`) `symbol_run` takes X,
    Y, mask and residual of a second tile behind the others.

    TVM inlines imported functions into the host, so the code must stand outside of them: a host that holds hundreds of
    pieces inline takes LLVM minutes. The asm must be `noduplicate`, because it defines labels; the stack pointer skips
    the red zone around the call.
    """
    table = "".join(f".long .L{symbol}_p{i}-.L{symbol}_table\\0A" for i in range(len(pieces) + 1))
    body = "".join(f".L{symbol}_p{i}:\\0A{piece.code}\\0Aretq\\0A" for i, piece in enumerate(pieces))
    body += f".L{symbol}_p{len(pieces)}:\\0A"
    vectors = [f"ymm{i}" for i in range(16)] if second_tile else [*(f"xmm{i}" for i in range(32)), "k1"]
    clobbers = ",".join(f"~{{{register}}}" for register in vectors)
    more = ("ptr %x2", "ptr %y2", "ptr %m2", "ptr %r2") if second_tile else ()
    registers = "{rdx},{rdi},{rsi},0,{rcx},{r8},{r9},{r10},{r11},{rax}" + (
        ",{r13},{r14},{r12},{r15}" if second_tile else ""
    )
    arguments = ("ptr %x", "ptr %y", "ptr %w", "ptr %b", "ptr %m", "ptr %r")
    return (
        f"define i32 @{symbol}_run(i32 %i, i32 %next, i32 %line, ptr %wn, {', '.join((*arguments, *more))}) "
        "noinline nounwind {\n"
        ' %t = call ptr asm sideeffect ".pushsection .text.sparsetvm,\\22ax\\22,@progbits\\0A.p2align 6\\0A'
        f".L{symbol}_table:\\0A{table}.p2align 6\\0A{body}.popsection\\0A"
        f'leaq .L{symbol}_table(%rip), $0", "=r"() noduplicate nounwind\n'
        + _piece_address("i", "%i")
        + _piece_address("n", "%next")
        + " %ll = sext i32 %line to i64\n %lb = shl i64 %ll, 6\n %ahead = getelementptr i8, ptr %pn, i64 %lb\n"
        ' %q = call ptr asm sideeffect "leaq -128(%rsp), %rsp\\0Acallq *%r10\\0Aleaq 128(%rsp), %rsp", '
        f'"={registers},{clobbers},~{{memory}},~{{dirflag}},~{{fpsr}},~{{flags}}"'
        f"({', '.join((*arguments, 'ptr %pi', 'ptr %ahead', 'ptr %wn', *more))}) noduplicate nounwind\n"
        " ret i32 0\n}\n" + _touch_function(symbol)
    )


def _piece_address(name: str, piece: str) -> str:
    """IR that sets %p<name> to the code of a piece, given the table %t."""
    return (
        f" %x{name} = sext i32 {piece} to i64\n %s{name} = getelementptr i32, ptr %t, i64 %x{name}\n"
        f" %d{name} = load i32, ptr %s{name}\n %l{name} = sext i32 %d{name} to i64\n"
        f" %p{name} = getelementptr i8, ptr %t, i64 %l{name}\n"
    )


def _touch_function(symbol: str) -> str:
    loop = (
        "{0}:\n %i{0} = phi i64 [ 0, %{1} ], [ %n{0}, %b{0} ]\n %c{0} = icmp slt i64 %i{0}, {2}\n"
        " br i1 %c{0}, label %b{0}, label %{3}\nb{0}:\n %a{0} = getelementptr i8, ptr {4}, i64 %i{0}\n"
        " %v{0} = load volatile i8, ptr %a{0}\n %n{0} = add i64 %i{0}, 64\n br label %{0}\n"
    )
    return (
        f"define i32 @{symbol}_touch(i32 %piece, ptr %w, i32 %wlines) noinline nounwind {{\n"
        f'entry:\n %t = call ptr asm "leaq .L{symbol}_table(%rip), $0", "=r"()\n'
        " %end = add i32 %piece, 1\n"
        + _piece_address("i", "%piece")
        + _piece_address("e", "%end")
        + " %size = sub i64 %le, %li\n %wl = sext i32 %wlines to i64\n %ws = shl i64 %wl, 6\n br label %x\n"
        + loop.format("x", "entry", "%size", "y", "%pi")
        + loop.format("y", "x", "%ws", "done", "%w")
        + "done:\n ret i32 0\n}\n"
    )

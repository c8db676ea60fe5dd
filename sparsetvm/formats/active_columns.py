"""The LLVM function that lists what a kernel must read: the blocks of the columns of non-zero activations.

Two steps, neither of which has a branch that depends on the activations:

1. Of 16 activations at a time, the non-zero ones (NaN counts) and the blocks of their columns (formats/columns.py) are
   moved together (`vcompressps`) and written behind those found before.
2. Each found column writes the numbers of its blocks, and beside each its activation, 16 at a time; the next column
   overwrites what was too many. Loops over columns of unequal lengths would be mispredicted once per column, which
   costs as much as 50 products.
"""

from __future__ import annotations

LANES = 16
AHEAD = 16  # what a kernel may read behind the end of the list, to prefetch


def active_columns_function(symbol: str, k: int) -> str:
    """LLVM IR of `i32 symbol_active(ptr x, ptr first, ptr xs, ptr starts, ptr counts, ptr blocks, ptr scales)`.

    Reads x[k] and first (int32, ceil(k / 16) * 16 + 16 entries). xs, starts and counts are scratch of k + 16 elements.
    Writes block numbers to `blocks` (int32) and the activations to `scales` (float32), returns how many; both need 16
    elements more than blocks there are. Behind the last block come AHEAD zeros. No write depends on what a branch
    guesses about an activation.
    """
    whole, tail = k // LANES * LANES, k % LANES
    lines = [
        f"define i32 @{symbol}_active(ptr %x, ptr %first, ptr %xs, ptr %starts, ptr %counts, ptr %blocks, ptr %scales)"
        " nounwind {\nentry:\n br label %chunk\n"
    ]
    found = "%n0"
    if whole:
        lines.append(
            "chunk:\n %k = phi i64 [ 0, %entry ], [ %k1, %chunk ]\n %n = phi i64 [ 0, %entry ], [ %n1, %chunk ]\n"
            " %px = getelementptr float, ptr %x, i64 %k\n %v = load <16 x float>, ptr %px, align 4\n"
            + _compress("%v", "%k", "%n", "1")
            + f" %k1 = add i64 %k, {LANES}\n %more = icmp slt i64 %k1, {whole}\n"
            " br i1 %more, label %chunk, label %rest\n"
        )
        lines.append("rest:\n")
        found = "%n1"
    else:
        lines.append("chunk:\n %n0 = add i64 0, 0\n br label %rest\nrest:\n")
    if tail:
        bits = ", ".join(f"i1 {int(lane < tail)}" for lane in range(LANES))
        lines.append(
            f" %kt = add i64 0, {whole}\n %pt = getelementptr float, ptr %x, i64 %kt\n"
            f" %vt = call <16 x float> @llvm.masked.load.v16f32.p0(ptr %pt, i32 4, <16 x i1> <{bits}>,"
            " <16 x float> zeroinitializer)\n" + _compress("%vt", "%kt", found, "2")
        )
        found = "%n2"
    lines.append(_LIST.format(found=found))
    lines.append(_DECLARATIONS)
    return "".join(lines)


def _compress(value: str, at: str, count: str, name: str) -> str:
    """IR that appends the non-zero lanes of `value`, and their columns, at `count`; %n<name> is the new count."""
    arrays = (("float", value, "xs"), ("i32", f"%s{name}", "starts"), ("i32", f"%c{name}", "counts"))
    text = (
        f" %m{name} = fcmp une <16 x float> {value}, zeroinitializer\n"
        f" %ps{name} = getelementptr i32, ptr %first, i64 {at}\n"
        f" %s{name} = load <16 x i32>, ptr %ps{name}, align 4\n"
        f" %pe{name} = getelementptr i32, ptr %ps{name}, i64 1\n"
        f" %e{name} = load <16 x i32>, ptr %pe{name}, align 4\n"
        f" %c{name} = sub <16 x i32> %e{name}, %s{name}\n"
    )
    for kind, vector, array in arrays:
        suffix = "v16f32" if kind == "float" else "v16i32"
        text += (
            f" %z{array}{name} = call <16 x {kind}> @llvm.x86.avx512.mask.compress.{suffix}(<16 x {kind}> {vector}, "
            f"<16 x {kind}> zeroinitializer, <16 x i1> %m{name})\n"
            f" %p{array}{name} = getelementptr {kind}, ptr %{array}, i64 {count}\n"
            f" store <16 x {kind}> %z{array}{name}, ptr %p{array}{name}, align 4\n"
        )
    return text + (
        f" %b{name} = bitcast <16 x i1> %m{name} to i16\n %o{name} = call i16 @llvm.ctpop.i16(i16 %b{name})\n"
        f" %w{name} = zext i16 %o{name} to i64\n %n{name} = add i64 {count}, %w{name}\n"
    )


_IOTA = ", ".join(f"i32 {lane}" for lane in range(LANES))
_LIST = f"""\
 %none = icmp eq i64 {{found}}, 0
 br i1 %none, label %done, label %column
column:
 %i = phi i64 [ 0, %rest ], [ %i1, %next ]
 %at = phi i64 [ 0, %rest ], [ %at1, %next ]
 %qs = getelementptr i32, ptr %starts, i64 %i
 %start = load i32, ptr %qs, align 4
 %qc = getelementptr i32, ptr %counts, i64 %i
 %length = load i32, ptr %qc, align 4
 %qx = getelementptr float, ptr %xs, i64 %i
 %scale = load float, ptr %qx, align 4
 %long = zext i32 %length to i64
 %at1 = add i64 %at, %long
 %sv = insertelement <16 x i32> undef, i32 %start, i32 0
 %ss = shufflevector <16 x i32> %sv, <16 x i32> undef, <16 x i32> zeroinitializer
 %numbers = add <16 x i32> %ss, <{_IOTA}>
 %xv = insertelement <16 x float> undef, float %scale, i32 0
 %scaled = shufflevector <16 x float> %xv, <16 x float> undef, <16 x i32> zeroinitializer
 br label %some
some:
 %from = phi i64 [ %at, %column ], [ %from1, %some ]
 %these = phi <16 x i32> [ %numbers, %column ], [ %those, %some ]
 %qb = getelementptr i32, ptr %blocks, i64 %from
 store <16 x i32> %these, ptr %qb, align 4
 %qf = getelementptr float, ptr %scales, i64 %from
 store <16 x float> %scaled, ptr %qf, align 4
 %those = add <16 x i32> %these, <{", ".join(["i32 16"] * LANES)}>
 %from1 = add i64 %from, {LANES}
 %again = icmp slt i64 %from1, %at1
 br i1 %again, label %some, label %next
next:
 %i1 = add i64 %i, 1
 %last = icmp eq i64 %i1, {{found}}
 br i1 %last, label %done, label %column
done:
 %total = phi i64 [ 0, %rest ], [ %at1, %next ]
 %qz = getelementptr i32, ptr %blocks, i64 %total
 store <16 x i32> zeroinitializer, ptr %qz, align 4
 %result = trunc i64 %total to i32
 ret i32 %result
}}}}
"""
_DECLARATIONS = """\
declare <16 x float> @llvm.masked.load.v16f32.p0(ptr, i32, <16 x i1>, <16 x float>)
declare <16 x float> @llvm.x86.avx512.mask.compress.v16f32(<16 x float>, <16 x float>, <16 x i1>)
declare <16 x i32> @llvm.x86.avx512.mask.compress.v16i32(<16 x i32>, <16 x i32>, <16 x i1>)
declare i16 @llvm.ctpop.i16(i16)
"""

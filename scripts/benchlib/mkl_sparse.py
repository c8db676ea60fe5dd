"""MKL's sparse product (inspector-executor, CSR) as a competitor, through ctypes: `pip install mkl` is all it needs.

Declared after the reference of the oneAPI Math Kernel Library: mkl_sparse_s_create_csr, mkl_sparse_set_mv_hint,
mkl_sparse_set_mm_hint, mkl_sparse_optimize, mkl_sparse_s_mv, mkl_sparse_s_mm. One thread.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse

from sparsetvm.errors import EnvironmentProblem

_NOTRANS, _ROW_MAJOR, _CALLS = 10, 101, 1_000_000


class _Descr(ctypes.Structure):
    """matrix_descr: type (20 general), mode, diag."""

    _fields_ = (("type", ctypes.c_int), ("mode", ctypes.c_int), ("diag", ctypes.c_int))


def load_mkl(folder: Path | None) -> ctypes.CDLL:
    """libmkl_rt from `folder` or from the installed package "mkl", with one thread. Raises EnvironmentProblem."""
    for path in _candidates(folder):
        if path.is_file():
            mkl = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            mkl.MKL_Set_Threading_Layer(1)  # sequential
            return mkl
    raise EnvironmentProblem(
        "MKL is not installed", hint="pip install mkl, or say where libmkl_rt.so.2 lies with --mkl"
    )


def _candidates(folder: Path | None) -> list[Path]:
    if folder is not None:
        return [folder / "libmkl_rt.so.2", folder / "libmkl_rt.so.3"]
    try:
        files = importlib.metadata.distribution("mkl").files or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return [Path(str(file.locate())).resolve() for file in files if file.name.startswith("libmkl_rt.so")]


def mkl_product(mkl: ctypes.CDLL, weight: np.ndarray, x: np.ndarray) -> tuple[Callable[[], object], np.ndarray]:
    """(run, y): `run` computes y = weight @ x, x float32 (k,) or (k, n), into the array y, and keeps it alive.

    Raises RuntimeError.
    """
    csr = scipy.sparse.csr_array(weight)
    indptr, indices = csr.indptr.astype(np.int32), csr.indices.astype(np.int32)
    values, x = csr.data.astype(np.float32), np.ascontiguousarray(x)
    m, k = weight.shape
    handle, descr = ctypes.c_void_p(), _Descr(20, 0, 0)

    def check(name: str, *arguments: object) -> None:
        status = getattr(mkl, name)(*arguments)
        if status:
            raise RuntimeError(f"{name}: status {status}")

    check(
        "mkl_sparse_s_create_csr", ctypes.byref(handle), 0, ctypes.c_int(m), ctypes.c_int(k), _pointer(indptr),
        _pointer(indptr[1:]), _pointer(indices), _pointer(values),
    )  # fmt: skip
    one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
    y = np.empty((m, *x.shape[1:]), np.float32)
    if x.ndim == 1:
        check("mkl_sparse_set_mv_hint", handle, _NOTRANS, descr, ctypes.c_int(_CALLS))
        arguments = (_NOTRANS, one, handle, descr, _pointer(x), zero, _pointer(y))
        name = "mkl_sparse_s_mv"
    else:
        n = ctypes.c_int(x.shape[1])
        check("mkl_sparse_set_mm_hint", handle, _NOTRANS, descr, _ROW_MAJOR, n, ctypes.c_int(_CALLS))
        arguments = (_NOTRANS, one, handle, descr, _ROW_MAJOR, _pointer(x), n, n, zero, _pointer(y), n)
        name = "mkl_sparse_s_mm"
    check("mkl_sparse_optimize", handle)
    kept = (indptr, indices, values, x, y)  # MKL has their addresses alone

    def run() -> object:
        check(name, *arguments)
        return kept

    return run, y


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)

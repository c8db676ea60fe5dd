"""scripts/bench_kernels.py with the template of `cuda_templates` alone. Run by test_cuda_measure.py."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

import bench_kernels
from sparsetvm.schedules import base

if __name__ == "__main__":
    base._TEMPLATES.clear()
    base._TEMPLATES["cuda.test_rows"] = ("cuda_templates", "Rows")
    sys.exit(bench_kernels.main())

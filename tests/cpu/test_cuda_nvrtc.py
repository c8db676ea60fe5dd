"""NVRTC, which stands in where there is no nvcc, compiles the default kernels of all CUDA templates."""

from __future__ import annotations

import pytest
from cuda_cases import H100
from sparsetvm.schedules.base import matching
from sparsetvm.schedules.cuda.launch import Launch
from test_cuda_compiles import workloads

from sparsetvm.measure.nvcc import Compiler, _compile, _nvrtc_version, is_cubin, launch_source


def loads() -> bool:
    try:
        return bool(_nvrtc_version())
    except Exception:  # no package, or no library: it has error types of its own
        return False


pytestmark = pytest.mark.skipif(not loads(), reason="no NVRTC here: pip install 'sparsetvm[cuda]'")


@pytest.mark.parametrize("name", workloads())
def test_default_kernels_compile_without_nvcc(name: str) -> None:
    workload, weight = workloads()[name]
    for template in matching(workload, H100):
        if not template.name.startswith("cuda."):
            continue
        config = template.default(workload, H100)
        launch = template.kernel(workload, config, template.pack(weight, None, workload, config, H100), H100, "kernel")
        assert isinstance(launch, Launch)
        if launch.text is None:  # generated code has the same headers, and takes long
            assert is_cubin(_compile(launch_source(launch), "sm_90", Compiler("", "nvrtc"))), config

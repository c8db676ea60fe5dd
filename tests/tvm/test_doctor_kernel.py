"""`doctor` builds and runs a kernel on this machine."""

from sparsetvm.report import doctor


def test_kernel_check_passes_here():
    row = doctor._run("kernel", doctor._kernel)
    assert row["ok"], row["detail"]


def test_measurement_check_times_a_sparse_and_a_dense_kernel():
    row = doctor._run("measurement", doctor._measurement)
    assert row["ok"], row["detail"]
    assert "x86.dense" in row["detail"]
    assert row["detail"].count(" us") == 2

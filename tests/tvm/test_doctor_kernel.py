"""`doctor` builds and runs a kernel on this machine."""

from sparsetvm.report import doctor


def test_kernel_check_passes_here():
    row = doctor._run("kernel", doctor._kernel)
    assert row["ok"], row["detail"]

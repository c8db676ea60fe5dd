"""Runs CUDA kernels without a GPU: the same .cu compiled by g++, the threads of a block as fibers.

Found by it: results, deadlocks, accesses outside an array or shared memory, misaligned vectors, reads of data that
cp.async has not been waited for, results that depend on the order of threads, writes past an array. Not found: speed,
bank conflicts, memory ordering between threads that no barrier separates and that still agree in both orders.
"""

from emulator.run import EmulatorError, run_launch

__all__ = ["EmulatorError", "run_launch"]

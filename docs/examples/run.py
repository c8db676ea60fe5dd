"""Run a compiled model with TVM's runtime alone: python run.py model.so input.npy output.npy"""

import os
import sys

import numpy as np

os.environ["TVM_USE_RUNTIME_LIB"] = "1"  # before the import: load the runtime, never the compiler
import tvm
from tvm.runtime.vm import VirtualMachine

vm = VirtualMachine(tvm.runtime.load_module(sys.argv[1]), tvm.cpu())
result = vm["main"](tvm.runtime.tensor(np.load(sys.argv[2])))
first = result if isinstance(result, tvm.runtime.Tensor) else result[0]  # several outputs come as an array
np.save(sys.argv[3], first.numpy())

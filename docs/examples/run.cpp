// Run a compiled model with one float32 input and one output: ./run model.so cpu 1 1 8 8 < input.f32 > output.f32
// The word is cpu or cuda, the numbers are the input's shape; input and output are raw float32 values. docs/deploy.md
// says how to build this.
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/tvm_ffi.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace ffi = tvm::ffi;

int main(int argc, char** argv) {
  const bool gpu = std::strcmp(argv[2], "cuda") == 0;
  const DLDevice device{gpu ? kDLCUDA : kDLCPU, 0};
  ffi::Module library = ffi::Module::LoadFromFile(realpath(argv[1], nullptr));  // dlopen wants a full path
  ffi::Module vm = library->GetFunction("vm_load_executable", true).value()().cast<ffi::Module>();
  ffi::Function start = vm->GetFunction("vm_initialization").value();  // pairs of device and pooled allocator, CPU last
  if (gpu) {
    start(static_cast<int>(kDLCUDA), 0, 2, static_cast<int>(kDLCPU), 0, 2);
  } else {
    start(static_cast<int>(kDLCPU), 0, 2);
  }

  std::vector<int64_t> shape;
  for (int i = 3; i < argc; ++i) shape.push_back(std::atoll(argv[i]));
  // TVM's memory is aligned as generated code wants it: 64 bytes.
  const auto allocate = ffi::Function::GetGlobalRequired("runtime.TVMTensorAllocWithScope");
  const auto copy_in = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyFromBytes");
  const auto copy_out = ffi::Function::GetGlobalRequired("runtime.TVMTensorCopyToBytes");
  ffi::Tensor x = allocate(ffi::Shape(shape), DLDataType{kDLFloat, 32, 1}, device, nullptr).cast<ffi::Tensor>();
  std::vector<float> in(x.numel());
  if (std::fread(in.data(), 4, in.size(), stdin) != in.size()) return 1;
  copy_in(x, static_cast<void*>(in.data()), static_cast<int64_t>(4 * in.size()));

  ffi::Any result = vm->GetFunction("main").value()(x);
  auto several = result.try_cast<ffi::Array<ffi::Tensor>>();  // several outputs come as an array
  ffi::Tensor y = several ? (*several)[0] : result.cast<ffi::Tensor>();
  std::vector<float> out(y.numel());
  copy_out(y, static_cast<void*>(out.data()), static_cast<int64_t>(4 * out.size()));
  std::fwrite(out.data(), 4, out.size(), stdout);
}

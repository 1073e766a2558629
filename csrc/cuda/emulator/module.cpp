// The Python module of the tests: the same kernels and bindings as genkernels._C, and kernels with planted faults.
#include <pybind11/pybind11.h>

#include "bindings/cuda.h"
#include "bindings/sampler_plan.h"

namespace gk::emulator {

void bind_faults(pybind11::module_& m);

}  // namespace gk::emulator

PYBIND11_MODULE(genkernels_emulated, m) {
  gk::cuda::bind_kernels(m);
  gk::bind_sampler_run(m);  // which genkernels._C has with the CPU's bindings
  gk::emulator::bind_faults(m);
}

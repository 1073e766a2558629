// The Python module genkernels._C: the machine, the build, and every operation's bindings. No arithmetic.
#include <omp.h>

#include <string>
#include <tuple>
#include <vector>

#include "bindings/bindings.h"
#include "build_config.h"
#include "cpu/core/isa.h"
#include "cpu/core/peak.h"
#include "cpu/core/selection.h"
#if GK_WITH_CUDA
#include "bindings/cuda.h"
#include "cuda/core/build_info.h"
#endif

namespace gk::bindings {

namespace {

void check_seconds(double seconds) {
  check(seconds > 0 && seconds <= 60, "seconds", "more than 0 and at most 60", seconds);
}

// ---- instruction sets and the machine's peak ----

std::vector<std::string> compiled_isas() {
#if GK_X86_64
  return {"baseline", "avx2", "avx512"};
#else
  return {"baseline"};
#endif
}

void bind_machine(py::module_& m) {
  m.def("compiled_isas", &compiled_isas);
  m.def("detected_isa", [] { return isa_name(detected_isa()); });
  m.def("active_isa", [] { return isa_name(active_isa()); });
  m.def("force_implementation", &force_implementation, py::arg("name").none(true));
  m.def("last_implementation", &last_implementation);
  m.def("openmp_max_threads", &omp_get_max_threads);
  m.def(
      "openmp_team_size",
      [](int threads) {
        check_threads(threads);
        return GK_DISPATCH(openmp_team_size, threads);
      },
      py::arg("threads"), NoGil());
  m.def(
      "fma_peak_gflops",
      [](int threads, double seconds) {
        check_threads(threads);
        check_seconds(seconds);
        return GK_DISPATCH(fma_peak_gflops, threads, seconds);
      },
      py::arg("threads"), py::arg("seconds"), NoGil());
  m.def(
      "copy_bandwidth_gbs",
      [](int threads, double seconds, std::size_t bytes) {
        check_threads(threads);
        check_seconds(seconds);
        check(bytes >= 1, "bytes", "an integer of at least 1", bytes);
        const double gbs = GK_DISPATCH(copy_bandwidth_gbs, threads, seconds, bytes);
        if (gbs == 0) throw std::bad_alloc();
        return gbs;
      },
      py::arg("threads"), py::arg("seconds"), py::arg("bytes"), NoGil());
}

// ---- what was built ----

py::dict cuda_build_info() {
  py::dict info;
  info["compiled"] = GK_WITH_CUDA != 0;
  info["reason"] = GK_CUDA_REASON;
  info["architectures"] = GK_CUDA_ARCHS;
#if GK_WITH_CUDA
  info["compiler"] = gk::cuda::compiler_version();
#else
  info["compiler"] = py::none();
#endif
  return info;
}

py::dict build_info() {
  py::dict flags;
  flags["common"] = GK_CXX_FLAGS;
#if GK_X86_64
  flags["avx2"] = GK_AVX2_FLAGS;
  flags["avx512"] = GK_AVX512_FLAGS;
#endif
  py::dict info;
  info["version"] = GK_VERSION;
  info["compiler"] = GK_COMPILER;
  info["cxx_flags"] = flags;
  info["isas"] = compiled_isas();
  info["openmp"] = GK_OPENMP_VERSION;
  info["cuda"] = cuda_build_info();
  return info;
}

#if GK_WITH_CUDA
py::dict cuda_device_status() {
  gk::cuda::DeviceStatus status;
  {
    py::gil_scoped_release no_gil;  // the first call may initialise the driver, which takes a while
    status = gk::cuda::device_status();
  }
  std::vector<int> capabilities;
  for (int device = 0; device < status.device_count; ++device) {
    capabilities.push_back(gk::cuda::compute_capability(device));
  }
  py::dict result;
  result["device_count"] = status.device_count;
  result["reason"] = status.reason;
  result["driver_version"] = status.driver_version;
  result["runtime_version"] = status.runtime_version;
  result["compute_capabilities"] = capabilities;
  return result;
}

std::tuple<int, int, int> cuda_device_limits(int device) {
  const gk::cuda::DeviceLimits limits = gk::cuda::device_limits(device);
  check(limits.multiprocessors > 0, "device", "the number of a CUDA device", device);
  return {limits.multiprocessors, limits.shared_bytes, limits.cluster};
}
#endif

void bind_build(py::module_& m) {
  m.def("build_info", &build_info);
#if GK_WITH_CUDA
  m.def("cuda_device_status", &cuda_device_status);
  m.def("cuda_device_limits", &cuda_device_limits, py::arg("device"));
#endif
}

}  // namespace

}  // namespace gk::bindings

// Neither sub-interpreters nor running without the GIL is claimed: nobody tests them.
PYBIND11_MODULE(_C, m, pybind11::multiple_interpreters::not_supported()) {
  using namespace gk::bindings;
  m.doc() = "genkernels' native core. Private: use genkernels.ops and genkernels.nn.";
  bind_machine(m);
  bind_build(m);
  bind_masked_conv(m);
  bind_wavefront_lstm(m);
  bind_conv_bn_act(m);
  bind_instance_norm(m);
  bind_softmax_nll(m);
  bind_sampler(m);
#if GK_WITH_CUDA
  gk::cuda::bind_kernels(m);
#endif
}

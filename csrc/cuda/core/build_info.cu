// The CUDA build and the devices at hand (see core/build_info.h). Nothing here runs before it is called.
#include "cuda/core/build_info.h"

#include <cuda_runtime_api.h>

#define GK_TEXT_(x) #x
#define GK_TEXT(x) GK_TEXT_(x)

namespace gk::cuda {

const char* compiler_version() {
  return GK_TEXT(__CUDACC_VER_MAJOR__) "." GK_TEXT(__CUDACC_VER_MINOR__) "." GK_TEXT(__CUDACC_VER_BUILD__);
}

DeviceStatus device_status() {
  DeviceStatus status = {0, "", 0, 0};
  cudaDriverGetVersion(&status.driver_version);
  cudaRuntimeGetVersion(&status.runtime_version);
  const cudaError_t error = cudaGetDeviceCount(&status.device_count);
  if (error != cudaSuccess) {
    status.device_count = 0;
    status.reason = cudaGetErrorString(error);
    cudaGetLastError();  // leave no error behind for the caller's next CUDA call
  } else if (status.device_count == 0) {
    status.reason = "no CUDA device is visible";
  }
  return status;
}

int compute_capability(int device) {
  int major = 0, minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return 10 * major + minor;
}

DeviceLimits device_limits(int device) {
  DeviceLimits limits = {0, 0, compute_capability(device) >= 90 ? 8 : 1};
  if (cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess ||
      cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) {
    cudaGetLastError();
    return {0, 0, 0};
  }
  return limits;
}

}  // namespace gk::cuda

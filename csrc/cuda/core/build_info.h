// The compiler of the CUDA part, and whether it can run here. No function throws.
#pragma once

namespace gk::cuda {

// The compiler, as "13.0.88".
const char* compiler_version();

struct DeviceStatus {
  int device_count;        // 0 when nothing can run
  const char* reason;      // why device_count is 0, in the driver's words; "" otherwise
  int driver_version;      // as 13000 for 13.0; 0 without a driver
  int runtime_version;     // of the runtime linked into this module
};

// Asks the driver. This initialises CUDA in the process, so it is called on request and never at import.
DeviceStatus device_status();

// Compute capability of a device as 90 for 9.0; 0 when it cannot be read.
int compute_capability(int device);

// What a division of work has to know of a device; all 0 when it cannot be read.
struct DeviceLimits {
  int multiprocessors;
  int shared_bytes;  // of memory that one block can have
  int cluster;       // blocks of the largest cluster that every device of its kind takes
};
DeviceLimits device_limits(int device);

}  // namespace gk::cuda

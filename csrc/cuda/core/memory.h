// Types of numbers and regions of dynamic shared memory, for core/hardware.h and emulator/device.h.
#pragma once

#include <cstdint>

namespace gk::cuda {

struct BFloat16 { uint16_t bits; };
struct Float16 { uint16_t bits; };

struct Region { int offset, bytes; };

// Regions one behind the other, each at a multiple of 16 bytes.
class SharedLayout {
 public:
  template <class T>
  __host__ __device__ Region take(int64_t count) {
    const Region region{static_cast<int>(used_), static_cast<int>(count * sizeof(T))};
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
    return region;
  }
  __host__ __device__ int64_t bytes() const { return used_; }

 private:
  int64_t used_ = 0;
};

}  // namespace gk::cuda

// Views of tensors in the native core: an address, strides in elements, a storage type.
#pragma once

#include <cstdint>

namespace gk {

enum class Storage : int { float32 = 0, bfloat16 = 1, float16 = 2 };

struct ImageView {
  const void* data;
  int64_t stride_n, stride_c, stride_h, stride_w;  // stride_w or stride_c is 1
  Storage storage;
};

// A convolution weight; the taps of the kernel stand at one fixed distance, in raster order.
struct WeightView {
  const void* data;
  int64_t stride_out, stride_in, stride_tap;
  Storage storage;
};

}  // namespace gk

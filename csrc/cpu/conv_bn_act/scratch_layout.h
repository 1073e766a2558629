// Scratch divided into named parts, each on cache lines of its own.
//
//     ScratchLayout layout;
//     const auto packed = layout.take<float>(count);    // while sizes are added up
//     float* const weights = packed.of(scratch.data());  // once the memory is there
#pragma once

#include "cpu/core/scratch.h"

namespace gk::GK_ISA::conv_bn_act {

template <class T>
struct ScratchPart {
  int64_t offset;  // in floats
  T* of(float* scratch) const { return reinterpret_cast<T*>(scratch + offset); }
};

class ScratchLayout {
 public:
  template <class T>
  ScratchPart<T> take(int64_t count) {
    const ScratchPart<T> part{floats_};
    if (count > 0) floats_ += Scratch::round(count * static_cast<int64_t>(sizeof(T) / sizeof(float)));
    return part;
  }
  int64_t floats() const { return floats_; }

 private:
  int64_t floats_ = 0;
};

}  // namespace gk::GK_ISA::conv_bn_act

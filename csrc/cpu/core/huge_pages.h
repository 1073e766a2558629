// Fresh memory in pages of 2 MiB instead of 4 KiB.
//
// A large buffer comes from the system without pages: each is found missing, taken and zeroed when it is first written.
// At 4 KiB that costs 1 to 3 us a page with two threads at it, more than writing the page; 16 MiB then take 8 ms and
// more. The advice is free of consequences: memory that has its pages already, or a system that does not follow, stays
// as it is.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "cpu/core/simd.h"
#include "cpu/core/tensor_view.h"

namespace gk::GK_ISA {

constexpr int64_t HUGE_PAGE = int64_t{2} << 20;

// Pages at the ends are shared with neighbours, to whom the advice does no harm either.
inline void want_huge_pages([[maybe_unused]] const void* data, [[maybe_unused]] int64_t bytes) {
#ifdef __linux__
  if (!data || bytes < HUGE_PAGE / 2) return;
  const int64_t begin = reinterpret_cast<int64_t>(data), first = begin & -HUGE_PAGE;
  const int64_t last = (begin + bytes + HUGE_PAGE - 1) & -HUGE_PAGE;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

// For a tensor that is about to be written; it holds `elements` without gaps.
inline void want_huge_pages(const ImageView& view, int64_t elements) {
  want_huge_pages(view.data, elements * (view.storage == Storage::float32 ? sizeof(float) : sizeof(uint16_t)));
}

}  // namespace gk::GK_ISA

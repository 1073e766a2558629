// Image regions between tensors (any storage type, NCHW or channels_last strides) and float32 scratch.
//
// A task of a kernel is a rectangle of output pixels of one image. Its input, with the border that the kernel reaches,
// is brought into scratch once, zero outside the image, in the order of the product:
//   load_pixels   [row][column][channel]   rows of the product are pixels
//   load_planes   [channel][row][column]   rows of the product are channels
// and results leave through store_panel, transposed where the tensor is NCHW. All of it works on IO x IO blocks; the
// last block of a line overlaps the one before, so only lines shorter than a block are moved one by one. Each element
// is touched once per task against the hundreds of multiply-adds it takes part in: 1 to 5 % of a kernel's time.
#pragma once

#include "cpu/core/storage.h"

namespace gk::GK_ISA {

struct Region {
  int64_t y0, y1, x0, x1;  // may reach outside the image
  int64_t rows() const { return y1 - y0; }
  int64_t columns() const { return x1 - x0; }
  int64_t pixels() const { return rows() * columns(); }
};

// One image of a tensor, as this file reads it. `gate`, where given, is a tensor of the same layout kind: elements
// where it is not positive are read as zero (the gradient of a ReLU, from its output).
struct Source {
  ImageView view;
  int64_t image;
  int64_t channels, height, width;
  const int32_t* order;  // order[c]: where channel c of the scratch stands in the tensor; nullptr for the same place
  const ImageView* gate;
};

// Calls move(at) for at = 0, IO, 2 IO, ...; the last one is moved back so that it ends at `count` (count >= IO).
template <class Move>
GK_INLINE void for_blocks(int64_t count, const Move& move) {
  for (int64_t at = 0; at < count; at += IO) move(min64(at, count - IO));
}

// Zeroes what lies in `r` but not in `in`, for scratch of `width` floats a pixel.
inline void zero_border(const Region& r, const Region& in, int64_t width, float* out) {
  const int64_t line = r.columns() * width, left = (in.x0 - r.x0) * width, right = (r.x1 - in.x1) * width;
  memset(out, 0, (in.y0 - r.y0) * line * sizeof(float));
  for (int64_t y = in.y0; y < in.y1; ++y) {
    float* first = out + (y - r.y0) * line;
    memset(first, 0, left * sizeof(float));
    memset(first + line - right, 0, right * sizeof(float));
  }
  memset(out + (in.y1 - r.y0) * line, 0, (r.y1 - in.y1) * line * sizeof(float));
}

// Where a panel of results goes: channels [first_channel, first_channel + channels) of one image.
struct Target {
  ImageView view;
  int64_t image;
  int64_t first_channel, channels;
  const int32_t* order;  // as in Source
  const float* bias;     // float32, indexed as the channels of the scratch; or nullptr
  bool relu;
};

// Each moves a region of one image. `staging`: [pixels of the region][stride], the panel's channels first.
void load_pixels(const Source& s, const Region& r, float* out);
void load_planes(const Source& s, const Region& r, float* out);
void store_panel(const Target& t, const Region& r, const float* staging, int64_t stride);

#define GK_BY_STORAGE(storage, function, ...)                                        \
  ((storage) == Storage::float32    ? function<float>(__VA_ARGS__)                   \
   : (storage) == Storage::bfloat16 ? function<BFloat16>(__VA_ARGS__)                \
                                    : function<Float16>(__VA_ARGS__))

}  // namespace gk::GK_ISA

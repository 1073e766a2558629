// Moving image regions between tensors (any storage type, NCHW or channels_last strides) and float32 scratch.
//
// A kernel works on a unit: a rectangle of output pixels of one image. Its input, with the border that the kernel
// reaches, is brought into scratch once, zero outside the image, in the order the product wants:
//   load_pixels   [row][column][channel]   rows of the product are pixels
//   load_planes   [channel][row][column]   rows of the product are channels
// and results leave through store_panel, transposed where the tensor is NCHW. All of it works on IO x IO blocks; the
// last block of a line overlaps the one before, so only lines shorter than a block are moved one by one. Each element
// is touched once per unit against the hundreds of multiply-adds it takes part in: 1 to 5 % of a kernel's time.
#pragma once

#include "cpu/storage.h"

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

template <class T>
struct Plane {
  const T* data;
  const T* gate;
  int64_t stride_h, stride_w, gate_stride_h, gate_stride_w;

  Plane(const Source& s, int64_t c) {
    const int64_t at = s.order ? s.order[c] : c;
    data = static_cast<const T*>(s.view.data) + s.image * s.view.stride_n + at * s.view.stride_c;
    stride_h = s.view.stride_h;
    stride_w = s.view.stride_w;
    gate = nullptr;
    gate_stride_h = gate_stride_w = 0;
    if (s.gate) {
      gate = static_cast<const T*>(s.gate->data) + s.image * s.gate->stride_n + at * s.gate->stride_c;
      gate_stride_h = s.gate->stride_h;
      gate_stride_w = s.gate->stride_w;
    }
  }
  GK_INLINE float one(int64_t y, int64_t x) const {
    const float v = load_one(data + y * stride_h + x * stride_w);
    return gate && !(load_one(gate + y * gate_stride_h + x * gate_stride_w) > 0) ? 0.0f : v;
  }
  // IO neighbours in memory, starting at (y, x): pixels of a row in NCHW, channels of a pixel in channels_last.
  GK_INLINE Block block(int64_t y, int64_t x) const {
    const Block v = load_block(data + y * stride_h + x * stride_w);
    return gate ? (load_block(gate + y * gate_stride_h + x * gate_stride_w) > Block{} ? v : Block{}) : v;
  }
};

// The part of a region that lies inside the image.
GK_INLINE Region inside(const Source& s, const Region& r) {
  return {max64(r.y0, 0), min64(r.y1, s.height), max64(r.x0, 0), min64(r.x1, s.width)};
}

// Calls move(at) for at = 0, IO, 2 IO, ...; the last one is moved back so that it ends at `count` (count >= IO).
template <class Move>
GK_INLINE void for_blocks(int64_t count, const Move& move) {
  for (int64_t at = 0; at < count; at += IO) move(min64(at, count - IO));
}

template <class T>
void load_pixels_as(const Source& s, const Region& r, float* out) {
  const int64_t C = s.channels, columns = r.columns();
  const Region in = inside(s, r);
  const bool planar = s.view.stride_w == 1 && s.view.stride_c != 1;
  const bool blocks = planar ? C >= IO && in.columns() >= IO : C >= IO && !s.order;
  for (int64_t y = r.y0; y < r.y1; ++y) {
    float* row = out + (y - r.y0) * columns * C;
    if (y < in.y0 || y >= in.y1 || in.columns() <= 0) {
      memset(row, 0, columns * C * sizeof(float));
      continue;
    }
    memset(row, 0, (in.x0 - r.x0) * C * sizeof(float));
    memset(row + (in.x1 - r.x0) * C, 0, (r.x1 - in.x1) * C * sizeof(float));
    float* first = row + (in.x0 - r.x0) * C;
    if (!blocks) {
      for (int64_t c = 0; c < C; ++c) {
        const Plane<T> plane(s, c);
        for (int64_t x = in.x0; x < in.x1; ++x) first[(x - in.x0) * C + c] = plane.one(y, x);
      }
    } else if (!planar) {
      const Plane<T> plane(s, 0);
      for (int64_t x = in.x0; x < in.x1; ++x)
        for_blocks(C, [&](int64_t c) {
          const Plane<T>& p = plane;
          Block v = load_block(p.data + y * p.stride_h + x * p.stride_w + c);
          if (p.gate) v = load_block(p.gate + y * p.gate_stride_h + x * p.gate_stride_w + c) > Block{} ? v : Block{};
          store_block(first + (x - in.x0) * C + c, v);
        });
    } else {
      for_blocks(C, [&](int64_t c) {
        for_blocks(in.columns(), [&](int64_t x) {
          Block v[IO];
          GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = Plane<T>(s, c + i).block(y, in.x0 + x);
          transpose(v);
          GK_UNROLL for (int i = 0; i < IO; ++i) store_block(first + (x + i) * C + c, v[i]);
        });
      });
    }
  }
}

template <class T>
void load_planes_as(const Source& s, const Region& r, float* out) {
  const int64_t C = s.channels, columns = r.columns(), area = r.pixels();
  const Region in = inside(s, r);
  const bool channels_last = s.view.stride_c == 1 && s.view.stride_w != 1;
  const bool transposed = channels_last && C >= IO && in.columns() >= IO && !s.order;
  const bool copied = s.view.stride_w == 1 && in.columns() >= IO;
  if (in.columns() < columns || in.rows() < r.rows()) memset(out, 0, C * area * sizeof(float));
  for (int64_t y = in.y0; y < in.y1; ++y) {
    float* first = out + (y - r.y0) * columns + (in.x0 - r.x0);
    if (transposed) {
      for_blocks(C, [&](int64_t c) {
        for_blocks(in.columns(), [&](int64_t x) {
          Block v[IO];
          const Plane<T> plane(s, c);
          GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = plane.block(y, in.x0 + x + i);
          transpose(v);
          GK_UNROLL for (int i = 0; i < IO; ++i) store_block(first + (c + i) * area + x, v[i]);
        });
      });
      continue;
    }
    for (int64_t c = 0; c < C; ++c) {
      const Plane<T> plane(s, c);
      float* to = first + c * area;
      if (copied) {
        for_blocks(in.columns(), [&](int64_t x) { store_block(to + x, plane.block(y, in.x0 + x)); });
      } else {
        for (int64_t x = in.x0; x < in.x1; ++x) to[x - in.x0] = plane.one(y, x);
      }
    }
  }
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

// staging: [pixels of the region][stride], the panel's channels first.
template <class T>
void store_panel_as(const Target& t, const Region& r, const float* staging, int64_t stride) {
  T* image = static_cast<T*>(const_cast<void*>(t.view.data)) + t.image * t.view.stride_n;
  const auto place = [&](int64_t c) {
    const int64_t channel = t.first_channel + c;
    return (t.order ? t.order[channel] : channel) * t.view.stride_c;
  };
  const auto finish = [&](float v, int64_t c) {
    if (t.bias) v += t.bias[t.first_channel + c];
    return t.relu && v < 0 ? 0.0f : v;
  };
  const bool planar = t.view.stride_w == 1 && t.view.stride_c != 1;
  // Whole lines that follow each other in memory are one long line.
  const bool joined = planar && r.columns() == t.view.stride_h;
  const int64_t line = joined ? r.pixels() : r.columns(), lines = joined ? 1 : r.rows();
  for (int64_t l = 0; l < lines; ++l) {
    const float* from = staging + l * line * stride;
    T* to = image + (r.y0 + l) * t.view.stride_h + r.x0 * t.view.stride_w;
    if (planar && line >= IO) {
      for (int64_t c = 0; c < t.channels; c += IO)
        for_blocks(line, [&](int64_t p) {
          Block v[IO];
          GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = load_block(from + (p + i) * stride + c);
          transpose(v);
          const int64_t live = min64(IO, t.channels - c);
          for (int64_t i = 0; i < live; ++i) {
            Block w = t.bias ? v[i] + t.bias[t.first_channel + c + i] : v[i];
            store_block(to + place(c + i) + p, t.relu ? relu(w) : w);
          }
        });
    } else if (!planar && !t.order && t.channels >= IO) {
      for (int64_t p = 0; p < line; ++p)
        for_blocks(t.channels, [&](int64_t c) {
          Block w = load_block(from + p * stride + c);
          if (t.bias) w += load_block(t.bias + t.first_channel + c);
          store_block(to + p * t.view.stride_w + t.first_channel + c, t.relu ? relu(w) : w);
        });
    } else {
      for (int64_t p = 0; p < line; ++p)
        for (int64_t c = 0; c < t.channels; ++c)
          store_one(to + place(c) + p * t.view.stride_w, finish(from[p * stride + c], c));
    }
  }
}

#define GK_BY_STORAGE(storage, function, ...)                                        \
  ((storage) == Storage::float32    ? function<float>(__VA_ARGS__)                   \
   : (storage) == Storage::bfloat16 ? function<BFloat16>(__VA_ARGS__)                \
                                    : function<Float16>(__VA_ARGS__))

inline void load_pixels(const Source& s, const Region& r, float* out) {
  GK_BY_STORAGE(s.view.storage, load_pixels_as, s, r, out);
}
inline void load_planes(const Source& s, const Region& r, float* out) {
  GK_BY_STORAGE(s.view.storage, load_planes_as, s, r, out);
}
inline void store_panel(const Target& t, const Region& r, const float* staging, int64_t stride) {
  GK_BY_STORAGE(t.view.storage, store_panel_as, t, r, staging, stride);
}

}  // namespace gk::GK_ISA

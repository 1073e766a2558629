// Loops of core/image_io.h: one for each pair of layouts, as templates of the storage type.
#include "cpu/core/image_io.h"

namespace gk::GK_ISA {
namespace {

// Element (c, y, x) of the source's image in `view`, which is the source's own or its gate's.
template <class T>
GK_INLINE const T* element(const ImageView& view, const Source& s, int64_t c, int64_t y, int64_t x) {
  return static_cast<const T*>(view.data) + s.image * view.stride_n + (s.order ? s.order[c] : c) * view.stride_c +
         y * view.stride_h + x * view.stride_w;
}

// Elements IO by IO or one by one, with the gate applied; `gate` is not touched unless GATED.
template <bool GATED, class T>
GK_INLINE Block read_block(const T* p, const T* gate) {
  const Block v = load_block(p);
  return GATED ? (load_block(gate) > Block{} ? v : Block{}) : v;
}
template <bool GATED, class T>
GK_INLINE float read_one(const T* p, const T* gate) {
  return GATED && !(load_one(gate) > 0) ? 0.0f : load_one(p);
}

// The part of a region that lies inside the image.
GK_INLINE Region inside(const Source& s, const Region& r) {
  Region in{max64(r.y0, 0), min64(r.y1, s.height), max64(r.x0, 0), min64(r.x1, s.width)};
  if (in.y0 >= in.y1 || in.x0 >= in.x1) in = {r.y0, r.y0, r.x0, r.x0};
  return in;
}

template <class T, bool GATED>
void load_pixels_as(const Source& s, const Region& r, float* out) {
  const int64_t C = s.channels;
  const Region in = inside(s, r);
  const ImageView& gate = GATED ? *s.gate : s.view;
  const bool planar = s.view.stride_w == 1 && s.view.stride_c != 1;
  zero_border(r, in, C, out);
  const auto place = [&](int64_t y) { return out + ((y - r.y0) * r.columns() + in.x0 - r.x0) * C; };

  if (planar && C >= IO && in.columns() >= IO) {
    for_blocks(C, [&](int64_t c) {
      const T *lines[IO], *gates[IO];
      for (int i = 0; i < IO; ++i) {
        lines[i] = element<T>(s.view, s, c + i, in.y0, in.x0);
        gates[i] = element<T>(gate, s, c + i, in.y0, in.x0);
      }
      for (int64_t y = in.y0; y < in.y1; ++y) {
        float* to = place(y) + c;
        const int64_t at = (y - in.y0) * s.view.stride_h, gate_at = (y - in.y0) * gate.stride_h;
        for_blocks(in.columns(), [&](int64_t x) {
          Block v[IO];
          GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = read_block<GATED>(lines[i] + at + x, gates[i] + gate_at + x);
          transpose(v);
          GK_UNROLL for (int i = 0; i < IO; ++i) store_block(to + (x + i) * C, v[i]);
        });
      }
    });
  } else if (!planar && C >= IO && !s.order) {
    for (int64_t y = in.y0; y < in.y1; ++y) {
      float* to = place(y);
      for (int64_t x = in.x0; x < in.x1; ++x, to += C) {
        const T *from = element<T>(s.view, s, 0, y, x), *gate_from = element<T>(gate, s, 0, y, x);
        for_blocks(C, [&](int64_t c) { store_block(to + c, read_block<GATED>(from + c, gate_from + c)); });
      }
    }
  } else {
    for (int64_t c = 0; c < C; ++c)
      for (int64_t y = in.y0; y < in.y1; ++y) {
        const T *from = element<T>(s.view, s, c, y, in.x0), *gate_from = element<T>(gate, s, c, y, in.x0);
        float* to = place(y) + c;
        for (int64_t x = 0; x < in.columns(); ++x)
          to[x * C] = read_one<GATED>(from + x * s.view.stride_w, gate_from + x * gate.stride_w);
      }
  }
}

template <class T>
void load_planes_as(const Source& s, const Region& r, float* out) {
  const int64_t C = s.channels, area = r.pixels(), columns = r.columns();
  const Region in = inside(s, r);
  const bool channels_last = s.view.stride_c == 1 && s.view.stride_w != 1;
  const int64_t first = (in.y0 - r.y0) * columns + in.x0 - r.x0;

  if (channels_last && C >= IO && in.columns() >= IO && !s.order) {
    for (int64_t c = 0; c < C; ++c) zero_border(r, in, 1, out + c * area);
    for (int64_t y = in.y0; y < in.y1; ++y)
      for_blocks(in.columns(), [&](int64_t x) {
        const T* from = element<T>(s.view, s, 0, y, in.x0 + x);
        float* to = out + first + (y - in.y0) * columns + x;
        for_blocks(C, [&](int64_t c) {
          Block v[IO];
          GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = load_block(from + i * s.view.stride_w + c);
          transpose(v);
          GK_UNROLL for (int i = 0; i < IO; ++i) store_block(to + (c + i) * area, v[i]);
        });
      });
    return;
  }
  for (int64_t c = 0; c < C; ++c) {
    float* const plane = out + c * area;
    zero_border(r, in, 1, plane);
    const T* from = element<T>(s.view, s, c, in.y0, in.x0);
    float* to = plane + first;
    for (int64_t y = in.y0; y < in.y1; ++y, from += s.view.stride_h, to += columns) {
      if (s.view.stride_w == 1 && in.columns() >= IO) {
        for_blocks(in.columns(), [&](int64_t x) { store_block(to + x, load_block(from + x)); });
      } else {
        for (int64_t x = 0; x < in.columns(); ++x) to[x] = load_one(from + x * s.view.stride_w);
      }
    }
  }
}

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

template <class T>
void load_pixels_of(const Source& s, const Region& r, float* out) {
  s.gate ? load_pixels_as<T, true>(s, r, out) : load_pixels_as<T, false>(s, r, out);
}

}  // namespace

void load_pixels(const Source& s, const Region& r, float* out) {
  if (s.channels == 1 && !s.gate)  // the two orders are one
    GK_BY_STORAGE(s.view.storage, load_planes_as, s, r, out);
  else
    GK_BY_STORAGE(s.view.storage, load_pixels_of, s, r, out);
}
void load_planes(const Source& s, const Region& r, float* out) {
  GK_BY_STORAGE(s.view.storage, load_planes_as, s, r, out);
}
void store_panel(const Target& t, const Region& r, const float* staging, int64_t stride) {
  GK_BY_STORAGE(t.view.storage, store_panel_as, t, r, staging, stride);
}

}  // namespace gk::GK_ISA

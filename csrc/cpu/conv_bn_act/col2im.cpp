// The transposed product for fewer output channels than a register holds (an image: 64 -> 3).
//
// As phases it would fill 3 of 16 lanes. Instead all taps of all channels are the columns of one product,
// [input pixel][tap row][tap column][channel], whose rows are then added up where they belong in the result: a tap row
// is kw * C floats side by side. A unit is one image, which stands in scratch, [row][column][channel], until it is
// complete. Bound: the product, a short reduction of C_in; adding up touches kh * kw * C floats per input pixel.
#pragma once

#include "cpu/conv_bn_act/direct.cpp"

namespace gk::GK_ISA {

class ScatterProduct {
 public:
  static bool suits(const ConvShape& s) { return s.large_channels < IO && s.kernel_h * s.kernel_w > 1; }

  ScatterProduct(const ConvShape& s, const ColumnWeight& weight, const ImageView& out, const Epilogue& epilogue,
                 float* statistics)
      : s_(s), weight_(weight), out_(out), epilogue_(epilogue), statistics_(statistics) {
    run_ = s.kernel_w * s.large_channels;
    columns_ = s.kernel_h * run_;
    panels_ = column_panels(columns_);
    height_ = max64((s.small_h - 1) * s.stride_h + s.kernel_h, s.pad_h + s.large_h);
    pitch_ = max64((s.small_w - 1) * s.stride_w + s.kernel_w, s.pad_w + s.large_w) * s.large_channels;
    lines_ = max64(1, min64(s.small_h, 8192 / (s.small_w * panels_ * PANEL_MAX)));
  }

  int64_t units() const { return s_.batch; }
  // The packed weights, and of every image the moments: [batch][2][channels] in double.
  int64_t shared_floats() const { return packed_floats() + Scratch::round(s_.batch * 4 * s_.large_channels); }
  int64_t thread_floats() const { return Scratch::round(height_ * pitch_) + staging_floats(); }

  void set_shared(float* shared) { packed_ = shared; }
  void pack() const { weight_.storage == Storage::float32 ? pack_as<float>() : weight_.storage == Storage::bfloat16 ? pack_as<BFloat16>() : pack_as<Float16>(); }

  void run_unit(int64_t n, const Pixels& in, float* scratch) const {
    float* const image = scratch;
    float* const staging = scratch + Scratch::round(height_ * pitch_);
    memset(image, 0, height_ * pitch_ * sizeof(float));
    const int64_t C = s_.small_channels, stride = panels_ * PANEL_MAX;
    for (int64_t y0 = 0; y0 < s_.small_h; y0 += lines_) {
      const int64_t lines = min64(lines_, s_.small_h - y0);
      for (int64_t p = 0; p < panels_; ++p) {
        int64_t y = 0, x = 0;
        const float* const first_pixel = in.data + n * in.stride_n + y0 * in.stride_h;
        Segment segments[16];
        for_row_tiles(lines * s_.small_w, [&](int64_t first, int64_t count) {
          const float* rows[MR_MAX];
          for (int64_t i = 0; i < count; ++i) {
            rows[i] = first_pixel + y * in.stride_h + x * C;
            if (++x == s_.small_w) x = 0, ++y;
          }
          // A reduction longer than the list of segments holds goes in several turns.
          for (int64_t done = 0; done < C; done += 16 * SEGMENT_MAX) {
            const int64_t pieces = cut_run(done, min64(C - done, 16 * SEGMENT_MAX), segments);
            const int mr = static_cast<int>(count);
            tile_function(done == 0 ? TileMode::write : TileMode::add, mr, NR_MAX)(
                rows, segments, pieces, packed_ + (p * C + done) * PANEL_MAX, staging + first * stride + p * PANEL_MAX,
                stride);
          }
        });
      }
      // Columns that do not overlap follow each other, so that no sum waits for the one before.
      const int64_t spread = ceil_div(s_.kernel_w, s_.stride_w);
      for (int64_t y = 0; y < lines; ++y)
        for (int64_t ky = 0; ky < s_.kernel_h; ++ky)
          for (int64_t turn = 0; turn < spread; ++turn)
            for (int64_t x = turn; x < s_.small_w; x += spread)
              add_run(staging + (y * s_.small_w + x) * stride + ky * run_,
                      image + ((y0 + y) * s_.stride_h + ky) * pitch_ + x * s_.stride_w * s_.large_channels);
    }
    if (statistics_) {
      GK_BY_STORAGE(out_.storage, round_values, image, Scratch::round(height_ * pitch_));
      take_moments(n, image);
    }
    GK_BY_STORAGE(out_.storage, store, image, n, staging);
  }

  void write_statistics() const {
    const int64_t C = s_.large_channels, pixels = s_.large_h * s_.large_w;
    for (int64_t c = 0; c < C; ++c) {
      double mean = 0, squares = 0;
      for (int64_t n = 0; n < s_.batch; ++n) {
        const double* const m = moments() + n * 2 * C;
        const double delta = m[c] - mean;
        mean += delta / static_cast<double>(n + 1);
        squares += m[C + c] + delta * delta * static_cast<double>(pixels) * static_cast<double>(n) /
                                  static_cast<double>(n + 1);
      }
      statistics_[c] = static_cast<float>(mean);
      statistics_[C + c] = static_cast<float>(squares);
    }
  }

 private:
  int64_t packed_floats() const { return Scratch::round((panels_ * s_.small_channels + PREFETCH_STEPS) * PANEL_MAX); }
  // Also a line of one channel of the result.
  int64_t staging_floats() const {
    return Scratch::round(max64(lines_ * s_.small_w * panels_ * PANEL_MAX, s_.large_w + IO));
  }
  double* moments() const { return reinterpret_cast<double*>(packed_ + packed_floats()); }
  const float* at(const float* image, int64_t y, int64_t x) const {
    return image + (y + s_.pad_h) * pitch_ + (x + s_.pad_w) * s_.large_channels;
  }

  template <class T>
  void pack_as() const {
    const T* const data = static_cast<const T*>(weight_.data);
    memset(packed_, 0, packed_floats() * sizeof(float));
    for (int64_t c = 0; c < s_.small_channels; ++c)
      for (int64_t j = 0; j < columns_; ++j) {
        const int64_t ky = j / run_, kx = j % run_ / s_.large_channels, o = j % s_.large_channels;
        packed_[(j / PANEL_MAX * s_.small_channels + c) * PANEL_MAX + j % PANEL_MAX] =
            load_one(data + c * weight_.stride_reduction + o * weight_.stride_column + ky * weight_.stride_kh +
                     kx * weight_.stride_kw);
      }
  }

  void add_run(const float* from, float* to) const {
    int64_t k = 0;
    for (; k + IO <= run_; k += IO) store_block(to + k, load_block(to + k) + load_block(from + k));
    for (; k < run_; ++k) to[k] += from[k];
  }

  void take_moments(int64_t n, const float* image) const {
    const int64_t C = s_.large_channels;
    const double pixels = static_cast<double>(s_.large_h * s_.large_w);
    for (int64_t c = 0; c < C; ++c) {
      double sum = 0, squares = 0;
      for (int64_t y = 0; y < s_.large_h; ++y)
        for (int64_t x = 0; x < s_.large_w; ++x) sum += at(image, y, x)[c];
      for (int64_t y = 0; y < s_.large_h; ++y)
        for (int64_t x = 0; x < s_.large_w; ++x) {
          const double d = at(image, y, x)[c] - sum / pixels;
          squares += d * d;
        }
      moments()[n * 2 * C + c] = sum / pixels;
      moments()[n * 2 * C + C + c] = squares;
    }
  }

  template <class T>
  void store(const float* image, int64_t n, float* line) const {
    const Curve curve = curve_of(epilogue_.activation);
    for (int64_t c = 0; c < s_.large_channels; ++c) {
      const float scale = epilogue_.scale ? epilogue_.scale[c] : 1.0f, shift = epilogue_.shift ? epilogue_.shift[c] : 0.0f;
      T* const plane = static_cast<T*>(const_cast<void*>(out_.data)) + n * out_.stride_n + c * out_.stride_c;
      for (int64_t y = 0; y < s_.large_h; ++y) {
        const float* const from = at(image, y, 0) + c;
        for (int64_t x = 0; x < s_.large_w; ++x) line[x] = from[x * s_.large_channels];
        T* const to = plane + y * out_.stride_h;
        for (int64_t x = 0; x < s_.large_w; x += IO) {
          const Block v = activate(load_block(line + x) * scale + shift, curve);
          if (x + IO <= s_.large_w && out_.stride_w == 1) {
            store_block(to + x, v);
          } else {
            for (int64_t i = 0; i < min64(IO, s_.large_w - x); ++i) store_one(to + (x + i) * out_.stride_w, v[i]);
          }
        }
      }
    }
  }

  ConvShape s_;
  ColumnWeight weight_;
  ImageView out_;
  Epilogue epilogue_;
  float* statistics_;
  int64_t run_, columns_, panels_, height_, pitch_, lines_;
  float* packed_ = nullptr;
};

}  // namespace gk::GK_ISA

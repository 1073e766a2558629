// What becomes of a panel of results that a product has staged in scratch: statistics, scale, shift and activation, and
// the way to the tensor, turned to its layout.
#pragma once

#include "cpu/core/activation.h"
#include "cpu/conv_bn_act/packing.h"
#include "cpu/core/image_io.h"

namespace gk::GK_ISA {

struct Epilogue {
  const float *scale, *shift;  // indexed by output channel, or nullptr
  ActivationSpec activation;
  bool changes_nothing() const { return !scale && !shift && activation.kind == Activation::none; }
};

// Count, mean and sum of squared deviations of the values of a panel's channels.
struct Moments {
  double count, mean[PANEL_MAX], squares[PANEL_MAX];

  // Chan, Golub, LeVeque 1983.
  void add(double n, const double* other_mean, const double* other_squares) {
    const double total = count + n;
    if (n == 0) return;
    for (int j = 0; j < PANEL_MAX; ++j) {
      const double delta = other_mean[j] - mean[j];
      mean[j] += delta * (n / total);
      squares[j] += other_squares[j] + delta * delta * (count * n / total);
    }
    count = total;
  }
};

// Rounds to what the storage type can hold; `count` is a whole number of blocks.
template <class T>
void round_values(float* values, int64_t count) {
  T kept[IO];
  for (int64_t i = 0; i < count; i += IO) {
    store_block(kept, load_block(values + i));
    store_block(values + i, load_block(kept));
  }
}
template <>
inline void round_values<float>(float*, int64_t) {}

class PanelOutput {
 public:
  PanelOutput(const ImageView& out, const Epilogue& epilogue, int64_t width)
      : out_(out), epilogue_(epilogue), width_(width) {}

  // The lines [y0, y1) of the images [n0, n1): pixel p of these lines, of the first image, is at staging + table[p], that
  // of the next image panel.width() further. `moments`, where given, get the statistics.
  void emit(float* staging, const int64_t* table, const ColumnPanel& panel, int64_t n0, int64_t n1, int64_t y0,
            int64_t y1, Moments* moments) const {
    const int64_t count = (y1 - y0) * width_ * (n1 - n0);
    if (moments) {
      // The statistics are those of z as it is kept: else what batch norm takes out of a gradient would not be all.
      GK_BY_STORAGE(out_.storage, round_values, staging, count * panel.width());
      add_moments(staging, count, panel.width(), moments);
    }
    if (!epilogue_.changes_nothing()) finish(staging, count, panel);
    GK_BY_STORAGE(out_.storage, store, staging, table, panel, n0, n1, y0, y1);
  }

  // [2][columns]: mean and sum of squared deviations, from `parts` moments of each panel.
  static void write_statistics(const Moments* moments, int64_t columns, int64_t parts, float* statistics) {
    for (int64_t p = 0; p < column_panels(columns); ++p) {
      const ColumnPanel panel = column_panel(columns, p);
      Moments total{};
      for (int64_t part = 0; part < parts; ++part) {
        const Moments& m = moments[p * parts + part];
        total.add(m.count, m.mean, m.squares);
      }
      for (int64_t j = 0; j < panel.columns; ++j) {
        statistics[panel.first + j] = static_cast<float>(total.mean[j]);
        statistics[columns + panel.first + j] = static_cast<float>(total.squares[j]);
      }
    }
  }

 private:
  static constexpr int64_t MOMENT_RUN = 32;  // rows added up before they join the others, so that rounding grows slowly

  static void add_moments(const float* staging, int64_t count, int64_t width, Moments* moments) {
    double mean[PANEL_MAX] = {}, squares[PANEL_MAX] = {};
    const auto rows = [&](int64_t first, const auto& row) {
      for (int64_t i = first; i < min64(count, first + MOMENT_RUN); ++i) row(i);
    };
    for (int64_t j = 0; j < width; j += VL) {
      Vec sum{};
      for (int64_t first = 0; first < count; first += MOMENT_RUN) {
        Vec part{};
        rows(first, [&](int64_t i) { part += load(staging + i * width + j); });
        sum += part;
      }
      const Vec centre = sum / static_cast<float>(count);
      // Around a value near the mean nothing cancels, and what the mean itself is off by is seen and put right.
      Vec rest{}, square{};
      for (int64_t first = 0; first < count; first += MOMENT_RUN) {
        Vec part{}, part_square{};
        rows(first, [&](int64_t i) {
          const Vec d = load(staging + i * width + j) - centre;
          part += d;
          part_square += d * d;
        });
        rest += part;
        square += part_square;
      }
      for (int k = 0; k < VL; ++k) {
        const double off = static_cast<double>(rest[k]) / static_cast<double>(count);
        mean[j + k] = centre[k] + off;
        squares[j + k] = square[k] - off * off * static_cast<double>(count);
      }
    }
    moments->add(static_cast<double>(count), mean, squares);
  }

  void finish(float* staging, int64_t count, const ColumnPanel& panel) const {
    float scale[PANEL_MAX], shift[PANEL_MAX];
    for (int64_t j = 0; j < PANEL_MAX; ++j) {
      const bool there = j < panel.columns;
      scale[j] = there && epilogue_.scale ? epilogue_.scale[panel.first + j] : 1.0f;
      shift[j] = there && epilogue_.shift ? epilogue_.shift[panel.first + j] : 0.0f;
    }
    const Curve curve = curve_of(epilogue_.activation);
    for (int64_t j = 0; j < panel.width(); j += IO) {
      const Block a = load_block(scale + j), b = load_block(shift + j);
      for (int64_t i = 0; i < count; ++i) {
        float* const at = staging + i * panel.width() + j;
        store_block(at, activate(load_block(at) * a + b, curve));
      }
    }
  }

  template <class T>
  void store(const float* staging, const int64_t* table, const ColumnPanel& panel, int64_t n0, int64_t n1, int64_t y0,
                int64_t y1) const {
    const int64_t pixels = (y1 - y0) * width_, width = panel.width();
    const bool planar = out_.stride_w == 1 && out_.stride_c != 1;
    for (int64_t n = n0; n < n1; ++n, staging += width) {
      // Outputs are dense: the lines of a block follow each other.
      T* const to = static_cast<T*>(const_cast<void*>(out_.data)) + n * out_.stride_n + y0 * out_.stride_h +
                    panel.first * out_.stride_c;
      if (planar && pixels >= IO) {
        for (int64_t c = 0; c < panel.columns; c += IO)
          for_blocks(pixels, [&](int64_t p) {
            Block v[IO];
            GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = load_block(staging + table[p + i] + c);
            transpose(v);
            for (int64_t i = 0; i < min64(IO, panel.columns - c); ++i) store_block(to + (c + i) * out_.stride_c + p, v[i]);
          });
      } else if (!planar && panel.columns >= IO) {
        for (int64_t p = 0; p < pixels; ++p)
          for_blocks(panel.columns, [&](int64_t c) {
            store_block(to + p * out_.stride_w + c, load_block(staging + table[p] + c));
          });
      } else {
        for (int64_t p = 0; p < pixels; ++p)
          for (int64_t c = 0; c < panel.columns; ++c)
            store_one(to + c * out_.stride_c + p * out_.stride_w, staging[table[p] + c]);
      }
    }
  }

  ImageView out_;
  Epilogue epilogue_;
  int64_t width_;  // of a line
};

}  // namespace gk::GK_ISA

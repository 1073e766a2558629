// Epilogue of a product: from a panel of results staged in scratch, through statistics, scale, shift and activation, to
// the tensor, transposed where its layout is NCHW.
#pragma once

#include "cpu/conv_bn_act/nhwc_image.h"
#include "cpu/conv_bn_act/packing.h"
#include "cpu/core/activation.h"

namespace gk::GK_ISA::conv_bn_act {

struct EpilogueSpec {
  const float *scale, *shift;  // indexed by output channel, or nullptr
  ActivationSpec activation;
  bool takes_statistics;
  bool changes_nothing() const { return !scale && !shift && activation.kind == Activation::none; }
};

inline EpilogueSpec epilogue_of(const ConvForward& args) {
  return {args.scale, args.shift, args.activation, args.statistics != nullptr};
}
constexpr EpilogueSpec NO_EPILOGUE{nullptr, nullptr, {Activation::none, 0}, false};

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

class Epilogue {
 public:
  Epilogue(const ImageView& out, const EpilogueSpec& spec, int64_t width) : out_(out), spec_(spec), width_(width) {}

  bool takes_statistics() const { return spec_.takes_statistics; }

  // Pixel p of `lines`, of the first image, is at staging + table[p], that of the next image panel.width() further.
  // `moments` get the statistics where they are taken.
  void emit(float* staging, const int64_t* table, const ColumnPanel& panel, const Lines& lines,
            Moments* moments) const {
    const int64_t count = lines.height() * width_ * lines.images();
    if (takes_statistics()) {
      // The statistics are those of z as it is kept: else what batch norm takes out of a gradient would not be all.
      GK_BY_STORAGE(out_.storage, round_values, staging, count * panel.width());
      add_moments(staging, count, panel.width(), moments);
    }
    if (!spec_.changes_nothing()) scale_and_activate(staging, count, panel);
    GK_BY_STORAGE(out_.storage, store, staging, table, panel, lines);
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

  void scale_and_activate(float* staging, int64_t count, const ColumnPanel& panel) const {
    float scale[PANEL_MAX], shift[PANEL_MAX];
    for (int64_t j = 0; j < PANEL_MAX; ++j) {
      const bool live = j < panel.columns;
      scale[j] = live && spec_.scale ? spec_.scale[panel.first + j] : 1.0f;
      shift[j] = live && spec_.shift ? spec_.shift[panel.first + j] : 0.0f;
    }
    const Curve curve = curve_of(spec_.activation);
    for (int64_t j = 0; j < panel.width(); j += IO) {
      const Block a = load_block(scale + j), b = load_block(shift + j);
      for (int64_t i = 0; i < count; ++i) {
        float* const at = staging + i * panel.width() + j;
        store_block(at, activate(load_block(at) * a + b, curve));
      }
    }
  }

  template <class T>
  void store(const float* staging, const int64_t* table, const ColumnPanel& panel, const Lines& lines) const {
    const int64_t pixels = lines.height() * width_, width = panel.width();
    const bool planar = out_.stride_w == 1 && out_.stride_c != 1;
    for (int64_t n = lines.n0; n < lines.n1; ++n, staging += width) {
      // Outputs are dense: the lines of a block follow each other.
      T* const to = static_cast<T*>(const_cast<void*>(out_.data)) + n * out_.stride_n + lines.y0 * out_.stride_h +
                    panel.first * out_.stride_c;
      if (planar && pixels >= IO) {
        for (int64_t c = 0; c < panel.columns; c += IO) {
          const int64_t live = min64(IO, panel.columns - c);
          for_blocks(pixels, [&](int64_t p) {
            Block v[IO];
            GK_UNROLL for (int i = 0; i < IO; ++i) v[i] = load_block(staging + table[p + i] + c);
            transpose(v);
            for (int64_t i = 0; i < live; ++i) store_block(to + (c + i) * out_.stride_c + p, v[i]);
          });
        }
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
  EpilogueSpec spec_;
  int64_t width_;  // of a line
};

}  // namespace gk::GK_ISA::conv_bn_act

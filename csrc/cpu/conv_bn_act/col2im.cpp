// Transposed product as col2im, for fewer output channels than a register holds (an image: 64 -> 3).
//
// As phases it would fill 3 of 16 lanes. Instead all taps of all channels are the columns (N) of one product,
// [input pixel][tap row][tap column][channel], whose rows are then added up where they belong in the result: a tap row
// is kw * C floats side by side. A task is one image, which stands in scratch, [row][column][channel], until it is
// complete. Bound: the product, a short reduction of C_in; adding up touches kh * kw * C floats per input pixel.
#include "cpu/conv_bn_act/col2im.h"

#include "cpu/conv_bn_act/axis.h"

namespace gk::GK_ISA::conv_bn_act {
namespace {

constexpr int64_t SEGMENTS = 16;  // of one call of a tile

bool suits(const ConvShape& s) { return s.high_channels < IO && s.kernel_h * s.kernel_w > 1; }

GK_INLINE void add_run(const float* from, int64_t length, float* to) {
  int64_t k = 0;
  for (; k + IO <= length; k += IO) store_block(to + k, load_block(to + k) + load_block(from + k));
  for (; k < length; ++k) to[k] += from[k];
}

}  // namespace

bool col2im_suits_forward(const ConvForward& args) { return args.kind == ConvKind::transposed && suits(args.shape); }
// As the input gradient.
bool col2im_suits_backward(const ConvBackward& args) {
  return args.kind == ConvKind::strided && args.grad_x.data && suits(args.shape);
}

Col2ImConv::Col2ImConv(const ConvShape& s, const ColumnWeight& weight, const ImageView& out,
                       const EpilogueSpec& epilogue)
    : s_(s), weight_(weight), out_(out), epilogue_(epilogue) {
  run_ = s.kernel_w * s.high_channels;
  columns_ = s.kernel_h * run_;
  panels_ = column_panels(columns_);
  pitch_ = max64((s.low_w - 1) * s.stride_w + s.kernel_w, s.pad_w + s.high_w) * s.high_channels;
  lines_ = max64(1, min64(s.low_h, 8192 / (s.low_w * panels_ * PANEL_MAX)));
  packed_floats_ = Scratch::round((panels_ * s.low_channels + PREFETCH_STEPS) * PANEL_MAX);
  image_floats_ = max64((s.low_h - 1) * s.stride_h + s.kernel_h, s.pad_h + s.high_h) * pitch_;

  packed_at_ = shared_layout_.take<float>(packed_floats_);
  moments_at_ = shared_layout_.take<double>(s.batch * 2 * s.high_channels);
  image_ = thread_layout_.take<float>(image_floats_);
  products_ = thread_layout_.take<float>(max64(lines_ * s.low_w * panels_ * PANEL_MAX, s.high_w + IO));
}

void Col2ImConv::prepare(float* shared) {
  packed_ = part_of(shared, packed_at_);
  moments_ = part_of(shared, moments_at_);
  if (weight_.storage == Storage::float32) return pack<float>();
  weight_.storage == Storage::bfloat16 ? pack<BFloat16>() : pack<Float16>();
}

template <class T>
void Col2ImConv::pack() const {
  const T* const data = static_cast<const T*>(weight_.data);
  memset(packed_, 0, packed_floats_ * sizeof(float));
  for (int64_t c = 0; c < s_.low_channels; ++c)
    for (int64_t j = 0; j < columns_; ++j) {
      const int64_t ky = j / run_, kx = j % run_ / s_.high_channels, o = j % s_.high_channels;
      packed_[(j / PANEL_MAX * s_.low_channels + c) * PANEL_MAX + j % PANEL_MAX] =
          load_one(data + c * weight_.stride_reduction + o * weight_.stride_column + ky * weight_.stride_kh +
                   kx * weight_.stride_kw);
    }
}

void Col2ImConv::run_task(int64_t task, const NhwcImage& in, float* scratch) const {
  float* const image = part_of(scratch, image_);
  float* const products = part_of(scratch, products_);
  memset(image, 0, image_floats_ * sizeof(float));
  for (int64_t y0 = 0; y0 < s_.low_h; y0 += lines_) {
    const Lines lines{task, task + 1, y0, min64(s_.low_h, y0 + lines_)};
    multiply(in, lines, products);
    add_up(products, lines, image);
  }
  if (epilogue_.takes_statistics) {
    GK_BY_STORAGE(out_.storage, round_values, image, Scratch::round(image_floats_));
    take_moments(task, image);
  }
  GK_BY_STORAGE(out_.storage, store, image, task, products);
}

// products[input pixel][column]
void Col2ImConv::multiply(const NhwcImage& in, const Lines& lines, float* products) const {
  const int64_t C = s_.low_channels, stride = panels_ * PANEL_MAX;
  const float* const first_pixel = in.data + lines.n0 * in.stride_n + lines.y0 * in.stride_h;
  for (int64_t p = 0; p < panels_; ++p) {
    int64_t y = 0, x = 0;
    for_row_tiles(lines.height() * s_.low_w, [&](int64_t first, int64_t count) {
      const float* rows[MR_MAX];
      for (int64_t i = 0; i < count; ++i) {
        rows[i] = first_pixel + y * in.stride_h + x * C;
        if (++x < s_.low_w) continue;
        x = 0;
        ++y;
      }
      // A reduction longer than the list of segments holds goes in several turns.
      for (int64_t done = 0; done < C; done += SEGMENTS * SEGMENT_MAX) {
        Segment segments[SEGMENTS];
        const int64_t pieces = cut_run(done, min64(C - done, SEGMENTS * SEGMENT_MAX), segments);
        const TileMode mode = done == 0 ? TileMode::write : TileMode::add;
        tile_function(mode, static_cast<int>(count), NR_MAX)(rows, segments, pieces,
                                                             packed_ + (p * C + done) * PANEL_MAX,
                                                             products + first * stride + p * PANEL_MAX, stride);
      }
    });
  }
}

// Columns that do not overlap follow each other, so that no sum waits for the one before.
void Col2ImConv::add_up(const float* products, const Lines& lines, float* image) const {
  const int64_t apart = ceil_div(s_.kernel_w, s_.stride_w), stride = panels_ * PANEL_MAX;
  for (int64_t y = 0; y < lines.height(); ++y)
    for (int64_t ky = 0; ky < s_.kernel_h; ++ky)
      for (int64_t turn = 0; turn < apart; ++turn)
        for (int64_t x = turn; x < s_.low_w; x += apart)
          add_run(products + (y * s_.low_w + x) * stride + ky * run_, run_,
                  image + ((lines.y0 + y) * s_.stride_h + ky) * pitch_ + x * s_.stride_w * s_.high_channels);
}

// In double, pixel by pixel: Epilogue sums channels side by side, of which few would leave most lanes idle.
void Col2ImConv::take_moments(int64_t n, const float* image) const {
  const int64_t C = s_.high_channels;
  const double pixels = static_cast<double>(s_.high_h * s_.high_w);
  for (int64_t c = 0; c < C; ++c) {
    double sum = 0, squares = 0;
    for (int64_t y = 0; y < s_.high_h; ++y)
      for (int64_t x = 0; x < s_.high_w; ++x) sum += at(image, y, x)[c];
    for (int64_t y = 0; y < s_.high_h; ++y)
      for (int64_t x = 0; x < s_.high_w; ++x) {
        const double d = at(image, y, x)[c] - sum / pixels;
        squares += d * d;
      }
    moments_[n * 2 * C + c] = sum / pixels;
    moments_[n * 2 * C + C + c] = squares;
  }
}

// Chan, Golub, LeVeque 1983, of parts of one size.
void Col2ImConv::write_statistics(float* statistics) const {
  const int64_t C = s_.high_channels;
  const double pixels = static_cast<double>(s_.high_h * s_.high_w);
  for (int64_t c = 0; c < C; ++c) {
    double mean = 0, squares = 0;
    for (int64_t n = 0; n < s_.batch; ++n) {
      const double* const m = moments_ + n * 2 * C;
      const double delta = m[c] - mean, before = static_cast<double>(n), after = static_cast<double>(n + 1);
      mean += delta / after;
      squares += m[C + c] + delta * delta * pixels * before / after;
    }
    statistics[c] = static_cast<float>(mean);
    statistics[C + c] = static_cast<float>(squares);
  }
}

template <class T>
void Col2ImConv::store(const float* image, int64_t n, float* line) const {
  const Curve curve = curve_of(epilogue_.activation);
  for (int64_t c = 0; c < s_.high_channels; ++c) {
    const float scale = epilogue_.scale ? epilogue_.scale[c] : 1.0f;
    const float shift = epilogue_.shift ? epilogue_.shift[c] : 0.0f;
    T* const plane = static_cast<T*>(const_cast<void*>(out_.data)) + n * out_.stride_n + c * out_.stride_c;
    for (int64_t y = 0; y < s_.high_h; ++y) {
      const float* const from = at(image, y, 0) + c;
      for (int64_t x = 0; x < s_.high_w; ++x) line[x] = from[x * s_.high_channels];
      T* const to = plane + y * out_.stride_h;
      for (int64_t x = 0; x < s_.high_w; x += IO) {
        const Block v = activate(load_block(line + x) * scale + shift, curve);
        if (x + IO <= s_.high_w && out_.stride_w == 1) {
          store_block(to + x, v);
        } else {
          for (int64_t i = 0; i < min64(IO, s_.high_w - x); ++i) store_one(to + (x + i) * out_.stride_w, v[i]);
        }
      }
    }
  }
}

Outcome col2im_forward(const ConvForward& args) {
  const ConvShape& s = args.shape;
  const int threads = useful_threads(s, args.threads);
  const NhwcLayout image_layout = low_layout(s);
  Col2ImConv product(s, columns_of(s, args.weight, args.kind), args.y, epilogue_of(args));
  const bool in_place = readable_in_place(args.x, image_layout);
  ScratchLayout shared, own;
  const auto for_product = shared.take<float>(product.shared_floats());
  const auto for_task = own.take<float>(product.thread_floats());
  const auto for_x = own.take<float>(in_place ? 0 : image_layout.image_floats());
  const Scratch scratch(shared, own, threads);
  if (!scratch.data()) return Outcome::no_memory;
  product.prepare(scratch.shared(for_product));
#pragma omp parallel for num_threads(threads) schedule(dynamic)
  for (int64_t n = 0; n < s.batch; ++n) {
    NhwcImage in = image_in_place(args.x, image_layout);
    if (!in_place) {
      float* const image = scratch.own(for_x);
      load_image(args.x, image_layout, n, image);
      in = {image, image_layout.channels, 0, image_layout.pitch()};
    }
    product.run_task(n, in, scratch.own(for_task));
  }
  if (args.statistics) product.write_statistics(args.statistics);
  return Outcome::done;
}

}  // namespace gk::GK_ISA::conv_bn_act

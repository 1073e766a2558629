// Interpreter of a sampling program for a chunk of images, one thread.
//
// Rows of every product are (image, column) pairs: all columns of the row for all images of the chunk in the row phase,
// the images at one pixel in a step. They are read where they lie, through one pointer each; segments are the taps, those
// that lie side by side joined. A tile of results goes through L1 (`staging_`), where bias, terms, partial sum and
// activation are applied to it on its way into the value's memory.
#pragma once

#include <stdlib.h>

#include "cpu/core/gemm_tile.h"
#include "cpu/core/scratch.h"
#include "cpu/sampler/sampler.h"

namespace gk::GK_ISA::sampler {

// Arrays of zeros in one allocation, freed on every way out.
class ZeroMemory {
 public:
  explicit ZeroMemory(const ScratchLayout& layout)
      : data_(static_cast<char*>(calloc(layout.floats() * sizeof(float) + ALIGN, 1))) {}
  ~ZeroMemory() { free(data_); }
  ZeroMemory(const ZeroMemory&) = delete;
  ZeroMemory& operator=(const ZeroMemory&) = delete;
  bool is_there() const { return data_ != nullptr; }
  template <class T>
  T* at(ScratchArray<T> array) const {
    if (!data_) return nullptr;
    char* const aligned = data_ + ALIGN - reinterpret_cast<uintptr_t>(data_) % ALIGN;
    return reinterpret_cast<T*>(aligned + array.offset * sizeof(float));
  }

 private:
  static constexpr uintptr_t ALIGN = 64;
  char* const data_;
};

// Into how many chunks images are divided: chunk k of n images has those from k n / chunks on.
constexpr int64_t CHUNK = 2 * MR_MAX;
inline int64_t chunks_of(int64_t images, int64_t threads) {
  return min64(ceil_div(ceil_div(images, threads), CHUNK) * threads, images);
}

class Interpreter {
 public:
  // For chunks of `images` at most.
  Interpreter(const SamplerCall& call, int64_t images);
  bool has_memory() const { return memory_.is_there(); }

  // Forgets everything and takes images [first, first + images). Memory that is zero already (`fresh`) is not touched
  // before it is needed: the caches of long images are large.
  void start(int64_t first, int64_t images, bool fresh);
  // Runs the row phase of row y.
  void start_row(int64_t y);
  // Runs a step of pixel (y, x).
  void step(int64_t number, int64_t x);
  // The same in two parts: what comes before the draw, and the draw.
  void before_draw(int64_t number, int64_t x);
  void draw_alone(int64_t number, int64_t x);
  // What step `number` draws from, or all of the pixel's predictions, image after image.
  void copy_predictions(int64_t number, int64_t x, bool all, float* out) const;

 private:
  static constexpr int64_t MOST_ROWS = 384;  // of a product at a time: their pointers stay in L1
  static constexpr int64_t STAGING = MR_MAX * PANEL_MAX * 4;
  static constexpr int64_t NO_LEVEL = -1;    // what is no distribution: logits with a NaN, +inf, or -inf alone
  static constexpr int64_t DRAW_BLOCK = 16;  // levels whose probabilities are summed together

  struct Layout {
    Layout(const SamplerProgram& program, int64_t images);
    ScratchLayout all;
    ScratchArray<int64_t> position, image, column;
    ScratchArray<Segment> segments;
    ScratchArray<const float*> rows;
    ScratchArray<float> staging, scratch, arena;
  };
  Interpreter(const SamplerCall& call, const Layout& layout);

  void run_pixel(int64_t first, int64_t last, int64_t x);  // instructions [first, last)
  // An instruction at columns [x0, x1).
  void apply(const SamplerInstruction& in, int64_t x0, int64_t x1);
  // Those below, for the rows at hand.
  void affine(const SamplerInstruction& in, int64_t x0);
  void affine_tiles(const SamplerInstruction& in, const SamplerGroup* groups, int64_t group_count);
  void affine_few_rows(const SamplerInstruction& in, const SamplerGroup* groups, int64_t group_count);
  int64_t spans_before(const SamplerInstruction& in, int64_t span, int64_t column) const;
  void finish(const SamplerInstruction& in, int64_t span, int64_t last_span, int64_t column, int64_t first,
              int64_t count, int64_t width);
  void pointwise(const SamplerInstruction& in);
  void lookup(const SamplerInstruction& in);
  void attention(const SamplerInstruction& in);
  void across(const SamplerInstruction& in);
  void cell(const SamplerInstruction& in);
  void draw(const SamplerInstruction& in, int64_t x);
  static int64_t draw_level(const float* logits, int64_t levels, double u, double temperature, int64_t top_k,
                            float* scratch);
  int64_t draw_from_mixture(const float* parameters, int64_t colour, int64_t sub_pixel);

  int64_t stride(int64_t place) const { return p_.buffers[p_.places[place].value].column_stride; }
  // Where row r reads or writes place k, which a constant map has outside the image's own memory.
  GK_INLINE float* at(int64_t k, int64_t column_stride, int64_t r) const {
    return arena_ + image_[r] * p_.sizes.image_floats + position_[k] + column_[r] * column_stride;
  }
  GK_INLINE const float* map_at(int64_t k, int64_t r) const {
    const SamplerBuffer& b = p_.buffers[p_.places[k].value];
    if (b.external < 0) return at(k, b.column_stride, r);
    const SamplerConstant& map = call_.maps[b.external];
    return map.data + (first_ + image_[r]) * map.image_stride + position_[k] + column_[r] * b.column_stride;
  }

  const SamplerCall& call_;
  const SamplerProgram& p_;
  const ZeroMemory memory_;
  int64_t first_ = 0, images_ = 0, y_ = 0;
  int64_t rows_count_ = 0;               // of the product at hand, at most MOST_ROWS
  int64_t *const image_, *const column_;  // of each of these rows
  int64_t* const position_;               // of every place, at column 0 of this row
  Segment* const segments_;               // of the instruction at hand
  const float** const rows_;              // [group][MOST_ROWS]
  float *const staging_, *const scratch_, *const arena_;  // scratch_: for a draw; arena_: [images][image_floats]
};

}  // namespace gk::GK_ISA::sampler

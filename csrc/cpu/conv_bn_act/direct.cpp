// Direct product of a strided or transposed convolution: pixels of the input (M) times packed weights (N).
//
// A task of work is one panel of output channels and a part of the images. Its weights are packed once, by the thread
// that uses them, and then meet all rows of the part: where the weights outweigh the images (512 -> 256 channels on
// 4x4) they are read from memory once and never written back.
// The part goes block by block: some lines of some images. Rows of gemm_tile are the output pixels of one phase that
// see the same taps, along a line and then across the images of the block, so that tiles are full even where lines are
// 2 pixels long. Segments are tap rows: the input pixels that an output sees on one line are side by side. Results are
// staged, [line][column by phase][image][column of the panel], and go through the epilogue there.
// Traffic: x once into scratch (none for float32 channels_last) and from there once per panel, y once, the weights once
// per part. Bound: the multiply-add units; taps on the border are not multiplied.
#include "cpu/conv_bn_act/direct.h"

namespace gk::GK_ISA::conv_bn_act {
namespace {

constexpr int64_t PIECE = 256;  // reduction steps: 16 KB of an AVX2 panel

}  // namespace

DirectGeometry::DirectGeometry(const ConvShape& s, ConvKind kind)
    : rows(vertical(s, kind)), cols(horizontal(s, kind)),
      layout(kind == ConvKind::transposed ? low_layout(s) : high_layout(s)) {
  if (kind == ConvKind::transposed || layout.channels >= FEW_CHANNELS) return;
  layout.top = rows.border_before();
  layout.bottom = rows.border_after();
  layout.left = cols.border_before();
  layout.right = cols.border_after();
  rows.in += layout.top + layout.bottom;
  cols.in += layout.left + layout.right;
  rows.pad = cols.pad = 0;
}

// A panel and the scratch of the thread that computes it.
struct DirectConv::Task {
  ColumnPanel panel;
  float* packed;
  float* staging;
  Segment* segments;
};

DirectConv::DirectConv(const DirectGeometry& geometry, int64_t batch, const ColumnWeight& weight, const ImageView& out,
                       const EpilogueSpec& epilogue, int threads)
    : rows_(geometry.rows), cols_(geometry.cols), batch_(batch), weight_(weight),
      epilogue_(out, epilogue, geometry.cols.out) {
  const int64_t width = cols_.out, phase_width = ceil_div(width, cols_.phases());
  images_ = max64(1, min64(min64(batch, max64(4, ceil_div(48, phase_width))), 2048 / width));
  images_ = ceil_div(batch, ceil_div(batch, images_));
  lines_ = max64(1, min64(rows_.out, 1024 / (images_ * width)));
  if (lines_ > rows_.phases()) lines_ -= lines_ % rows_.phases();
  line_blocks_ = ceil_div(rows_.out, lines_);
  blocks_ = line_blocks_ * ceil_div(batch, images_);
  panels_ = column_panels(weight.columns);
  parts_ = min64(blocks_, ceil_div(4 * threads, panels_));

  const int64_t taps = rows_.kernel * cols_.kernel;
  runs_at_ = shared_layout_.take<Run>(width);
  places_at_ = shared_layout_.take<int64_t>(taps);
  moments_at_ = shared_layout_.take<Moments>(epilogue.takes_statistics ? tasks() : 0);
  packed_ = thread_layout_.take<float>((taps * weight.reductions + PREFETCH_STEPS) * PANEL_MAX);
  staging_ = thread_layout_.take<float>(lines_ * width * images_ * PANEL_MAX);
  table_ = thread_layout_.take<int64_t>(lines_ * width);
  segments_ = thread_layout_.take<Segment>(rows_.kernel);
}

void DirectConv::prepare(float* shared) {
  Run* const runs = part_of(shared, runs_at_);
  int64_t* const places = part_of(shared, places_at_);
  run_count_ = make_runs(cols_, runs);
  place_taps(rows_, cols_, places);
  runs_ = runs;
  places_ = places;
  moments_ = part_of(shared, moments_at_);
}

void DirectConv::run_task(int64_t task, const NhwcImage& in, float* scratch) const {
  const Task own{column_panel(weight_.columns, task / parts_), part_of(scratch, packed_), part_of(scratch, staging_),
                 part_of(scratch, segments_)};
  int64_t* const table = part_of(scratch, table_);
  GK_BY_STORAGE(weight_.storage, pack_columns, weight_, own.panel, rows_.kernel, cols_.kernel, places_, own.packed);
  Moments moments{};
  const int64_t part = task % parts_;
  for (int64_t block = blocks_ * part / parts_; block < blocks_ * (part + 1) / parts_; ++block) {
    const int64_t n0 = block / line_blocks_ * images_, y0 = block % line_blocks_ * lines_;
    const Lines lines{n0, min64(batch_, n0 + images_), y0, min64(rows_.out, y0 + lines_)};
    multiply(own, in, lines);
    fill_table(table, lines.images(), lines.height(), own.panel.width());
    epilogue_.emit(own.staging, table, own.panel, lines, &moments);
  }
  if (epilogue_.takes_statistics()) moments_[task] = moments;
}

void DirectConv::write_statistics(float* statistics) const {
  Epilogue::write_statistics(moments_, weight_.columns, parts_, statistics);
}

void DirectConv::multiply(const Task& task, const NhwcImage& in, const Lines& lines) const {
  for (int64_t phase = 0; phase < rows_.phases(); ++phase)
    for (int64_t r = 0; r < run_count_; ++r) multiply_run(task, in, lines, phase, runs_[r]);
}

// The outputs of one run, of those of `lines` that are of one phase.
void DirectConv::multiply_run(const Task& task, const NhwcImage& in, const Lines& lines, int64_t row_phase,
                              const Run& run) const {
  const int64_t C = weight_.reductions, width = task.panel.width(), step = C * width;
  const int64_t row_taps = rows_.taps(row_phase), column_taps = cols_.taps(run.phase);
  const int64_t length = (run.hi - run.lo) * C, images = lines.images();
  const auto for_lines = [&](const auto& line) {
    for (int64_t y = lines.y0; y < lines.y1; ++y)
      if (rows_.phase(y) == row_phase)
        line(y, task.staging + ((y - lines.y0) * cols_.out + run.place) * images * width);
  };
  for_lines([&](int64_t y, float* out) {
    if (length == 0 || rows_.lo(y) == rows_.hi(y)) memset(out, 0, run.count * images * width * sizeof(float));
  });
  if (length == 0) return;
  const float* const packed =
      task.packed + (rows_.taps_before(row_phase) * cols_.kernel + row_taps * cols_.taps_before(run.phase)) * step;
  // The reduction goes in pieces whose share of the panel stays in L1 while all lines of the block meet it: several tap
  // rows where all of them are there from end to end and short, else a part of one.
  const int64_t group = run.hi - run.lo == column_taps ? max64(1, PIECE / length) : 1;
  for (int64_t t = 0; t < row_taps; t += group)
    for (int64_t k = 0; k < length; k += PIECE) {
      const int64_t steps = min64(PIECE, length - k);
      for_lines([&](int64_t y, float* out) {
        const int64_t lo = rows_.lo(y), first = max64(t, lo), last = min64(t + group, rows_.hi(y));
        if (first >= last) return;
        for (int64_t i = first; i < last; ++i) task.segments[i - first] = {(i - first) * in.stride_h, steps};
        const float* const corner = in.data + lines.n0 * in.stride_n + (rows_.start(y) + first) * in.stride_h +
                                    (run.start + run.lo) * C + k;
        const float* const weights = packed + (first * column_taps + run.lo) * step + k * width;
        const TileMode mode = first == lo && k == 0 ? TileMode::write : TileMode::add;
        multiply_pixels(task, in, images, corner, run.count, last - first, weights, mode, out);
      });
    }
}

// `count` pixels of a line, the first of which reads at `corner`, across the images of the block.
void DirectConv::multiply_pixels(const Task& task, const NhwcImage& in, int64_t images, const float* corner,
                                 int64_t count, int64_t segment_count, const float* weights, TileMode mode,
                                 float* out) const {
  const int64_t pixel_step = cols_.in_step() * in.channels, width = task.panel.width();
  const float* pixel = corner;
  int64_t n = 0;
  for_row_tiles(count * images, [&](int64_t first, int64_t tile_rows) {
    const float* rows[MR_MAX];
    for (int64_t i = 0; i < tile_rows; ++i) {
      rows[i] = pixel + n * in.stride_n;
      if (++n < images) continue;
      n = 0;
      pixel += pixel_step;
    }
    tile_function(mode, static_cast<int>(tile_rows), task.panel.nr)(rows, task.segments, segment_count, weights,
                                                                    out + first * width, width);
  });
}

// The place in the staging of pixel (line, column) of the block's first image.
void DirectConv::fill_table(int64_t* table, int64_t images, int64_t lines, int64_t width) const {
  for (int64_t r = 0; r < run_count_; ++r) {
    const Run& run = runs_[r];
    for (int64_t i = 0; i < run.count; ++i)
      table[run.first + i * cols_.out_step()] = (run.place + i) * images * width;
  }
  for (int64_t y = 1; y < lines; ++y)
    for (int64_t x = 0; x < cols_.out; ++x) table[y * cols_.out + x] = table[x] + y * cols_.out * images * width;
}

Outcome direct_forward(const ConvForward& args) {
  const ConvShape& s = args.shape;
  const int threads = useful_threads(s, args.threads);
  const DirectGeometry geometry(s, args.kind);
  DirectConv product(geometry, s.batch, columns_of(s, args.weight, args.kind), args.y, epilogue_of(args), threads);
  const bool in_place = readable_in_place(args.x, geometry.layout);
  ScratchLayout shared, own;
  const auto for_product = shared.take<float>(product.shared_floats());
  const auto for_x = shared.take<float>(in_place ? 0 : s.batch * geometry.layout.image_floats());
  const auto for_task = own.take<float>(product.thread_floats());
  const Scratch scratch(shared, own, threads);
  if (!scratch.data()) return Outcome::no_memory;
  product.prepare(scratch.shared(for_product));
  float* const x = scratch.shared(for_x);
  const NhwcImage in = in_place ? image_in_place(args.x, geometry.layout) : image_in_scratch(geometry.layout, x);
#pragma omp parallel num_threads(threads)
  {
    if (!in_place) {
#pragma omp for schedule(dynamic)
      for (int64_t n = 0; n < s.batch; ++n)
        load_image(args.x, geometry.layout, n, x + n * geometry.layout.image_floats());
    }
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < product.tasks(); ++task) product.run_task(task, in, scratch.own(for_task));
  }
  if (args.statistics) product.write_statistics(args.statistics);
  return Outcome::done;
}

}  // namespace gk::GK_ISA::conv_bn_act

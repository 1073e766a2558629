// Sampling programs on a GPU in the Python module: tables for the kernel from the records, and the launch.
#include <array>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/cuda.h"
#include "bindings/sampler_plan.h"
#include "cuda/core/device.h"
#include "cuda/sampler/sampler.h"

namespace py = pybind11;
using namespace py::literals;

namespace gk::cuda {

namespace {

using Address = std::uintptr_t;
using Limits = std::tuple<int, int64_t, int>;
using Records = SamplerRecords;

template <class Integer>
int whole(Integer number) {
  const auto x = static_cast<int64_t>(number);
  Records::require(x >= std::numeric_limits<int>::min() && x <= std::numeric_limits<int>::max(),
                   "a number beyond 32 bits");
  return static_cast<int>(x);
}
int filled(int64_t x, int multiple) { return whole((x + multiple - 1) / multiple * multiple); }

// Lanes that share a row of a pixel phase's weight: one for each quad of reductions, of 4, 8, 16 or 32.
int lanes_for(int64_t reductions) {
  int lanes = 4;
  while (lanes < 32 && lanes * 4 < reductions) lanes *= 2;
  return lanes;
}

class CudaSamplerPlan {
 public:
  CudaSamplerPlan(const py::dict& records, int64_t weight_count, int64_t float_count)
      : records_(records, float_count), shape_({}) {
    const Records& r = records_;
    const SamplerSizes& sizes = r.sizes;
    r.require(sizes.levels >= 1 && sizes.levels <= SAMPLER_MAX_LEVELS, "levels: expected 1 to 65536");
    r.require(sizes.components <= SAMPLER_MAX_COMPONENTS, "components: expected at most 128");
    r.require(r.maps <= SAMPLER_MAX_MAPS, "maps: more than 16");
    shape_.height = whole(sizes.height), shape_.width = whole(sizes.width), shape_.grid_width = whole(sizes.grid_width);
    shape_.colours = whole(sizes.colours), shape_.levels = whole(sizes.levels);
    shape_.channels = whole(sizes.channels), shape_.predictions = whole(sizes.predictions);
    shape_.components = whole(sizes.components);
    shape_.rich = sizes.components > 0 || sizes.levels > SAMPLER_FEW_LEVELS;
    shape_.image_floats = whole(sizes.image_floats), shape_.table = whole(sizes.table);
    shape_.instructions = whole(r.size(r.instructions)), shape_.spans = whole(r.size(r.spans));
    shape_.places = whole(r.size(r.places));
    shape_.pixel_weights = whole(weight_count), whole(float_count);
    for (const auto& p : r.places) places_.push_back(place(p));
    for (int64_t k = 0; k < r.size(r.instructions); ++k) {
      const bool whole_rows = k >= r.phases[0].first && k < r.phases[0].last;
      instructions_.push_back(instruction(r.instructions[k], whole_rows, weight_count, float_count));
    }
  }

  // The program as the kernel reads it, to be copied to the device.
  py::bytes tables() const {
    std::string bytes;
    const auto append = [&](const auto& record) {
      bytes.append(reinterpret_cast<const char*>(&record), sizeof(record));
    };
    for (const auto& i : instructions_) append(i);
    for (const auto& s : records_.spans)
      append(DeviceSpan{whole(s.at), whole(s.length), whole(s.channel), whole(s.operand[0]), whole(s.operand[1]),
                        whole(s.operand[2]), whole(s.operand[3]), steps(s)});
    for (const auto& p : records_.phases) append(std::array<int, 2>{whole(p.first), whole(p.last)});
    bytes.resize((bytes.size() + 15) / 16 * 16);
    for (const auto& p : places_) append(p);
    return py::bytes(bytes);
  }

  py::dict division(int batch, const Limits& limits) const {
    const SamplerDivision d = divide(batch, limits);
    return py::dict("fits"_a = d.fits, "images"_a = d.images, "slices"_a = d.slices, "threads"_a = d.threads,
                    "resident"_a = d.resident, "weights"_a = shape_.pixel_weights, "shared_bytes"_a = d.shared_bytes);
  }

  // `tables`, `weights`, `floats` and `memory` are addresses on the device, as `undrawable` is.
  void run(int device, Address stream, const Limits& limits, Address tables, Address weights, Address floats,
           Address memory, const SamplerAddresses& maps, const SamplerRun& run, Address undrawable) const {
    records_.check_run(run, maps.size());
    SamplerLaunch call = {};
    call.shape = shape_;
    call.images = whole(run.images);
    call.division = divide(call.images, limits);
    records_.require(call.division.fits, "it does not fit this device: see `division`");
    call.tables = reinterpret_cast<const int*>(tables);
    call.weights = reinterpret_cast<const float*>(weights);
    call.floats = reinterpret_cast<const float*>(floats);
    call.memory = reinterpret_cast<float*>(memory);
    const std::vector<SamplerConstant> constants = sampler_constants(maps);
    std::copy(constants.begin(), constants.end(), call.maps);
    call.levels = run.levels, call.free = run.free, call.uniforms = run.uniforms, call.logits = run.logits;
    call.temperature = run.temperature;
    call.top_k = whole(run.top_k);
    call.last_row = whole(run.last_row), call.last_column = whole(run.last_column);
    call.last_colour = whole(run.last_colour);
    call.undrawable = reinterpret_cast<int64_t*>(undrawable);
    const py::gil_scoped_release no_gil;
    check_launch("cudaSetDevice", select_device(device));
    check_launch("sampler_walk", launch_sampler(call, reinterpret_cast<void*>(stream)));
  }

 private:
  SamplerDivision divide(int batch, const Limits& limits) const {
    records_.require(batch >= 1, "images: expected at least 1");
    records_.require(std::get<0>(limits) >= 1, "limits: expected at least one multiprocessor");
    return divide_sampler(shape_, batch, {std::get<0>(limits), std::get<1>(limits)});
  }

  DevicePlace place(const SamplerPlace& p) const {
    const SamplerBuffer& b = records_.buffers[p.value];
    const int64_t base = b.offset + (p.dx - b.first_column) * b.column_stride + p.channel;
    return {whole(base),       whole(p.dy), whole(b.rows), whole(b.row_stride), whole(b.column_stride),
            whole(b.external), 0,           0};
  }

  DeviceInstruction instruction(const SamplerInstruction& i, bool whole_rows, int64_t weight_count,
                                int64_t float_count) {
    DeviceInstruction d = {};
    d.kind = whole(i.kind);
    d.first_row = whole(i.first_row), d.first_column = whole(i.first_column), d.last_column = whole(i.last_column);
    d.function = whole(i.function), d.parameters = whole(i.parameters), d.accumulate = whole(i.accumulate);
    d.places = whole(i.places), d.operands = whole(i.operands), d.segments = whole(i.segments);
    d.spans = whole(i.spans), d.span_count = whole(i.span_count);
    d.rows = whole(i.rows), d.reductions = whole(i.reductions);
    d.weight = whole(i.weight), d.bias = whole(i.bias);
    d.body = whole(i.body), d.count = whole(i.count), d.number = whole(i.number);
    d.lanes = lanes_for(i.reductions);
    if (i.kind == SamplerKind::attention)
      records_.require(i.rows / i.number <= SAMPLER_MAX_HEAD && i.reductions / i.number <= SAMPLER_MAX_HEAD,
                       "attention: a head of more than 128 channels");
    const bool by_rows = i.kind == SamplerKind::lookup || i.kind == SamplerKind::attention;
    shape_.rich = shape_.rich || by_rows || i.kind == SamplerKind::across ||
                  (i.kind == SamplerKind::pointwise && i.operands > 2);
    if (by_rows || i.kind == SamplerKind::scan || is_draw(i.kind)) return d;
    d.rows = whole(rows_of_spans(i));
    if (i.kind != SamplerKind::affine) return d;
    records_.require(d.rows == i.rows, "spans: not those of the weight's rows");
    number_segments(i);
    if (whole_rows) {
      const int64_t columns = filled(i.reductions, 8), padded_rows = filled(i.rows, 16);
      records_.require(Records::inside(i.weight, padded_rows * columns, float_count), "a weight: out of range");
      records_.require(Records::inside(i.bias, padded_rows, float_count), "a bias: out of range");
    } else {
      const int columns = filled(i.reductions, 4), at_once = 4 * 32 / d.lanes;
      const int64_t floats = static_cast<int64_t>(filled(i.rows, at_once)) * (columns + 4);
      records_.require(Records::inside(i.weight, floats, weight_count), "a weight: out of range");
      shape_.most_columns = std::max(shape_.most_columns, columns);
      shape_.most_groups = std::max(shape_.most_groups, filled(i.rows, at_once) / at_once);
    }
    records_.require(i.weight % 4 == 0, "a weight: not aligned");
    return d;
  }

  static int steps(const SamplerSpan& span) {
    int bits = 0;
    for (int k = 0; k < SAMPLER_OPERANDS; ++k) bits |= static_cast<int>(span.step[k] != 0) << k;
    return bits;
  }

  // The rows of an instruction: those of its spans, one behind the other.
  int64_t rows_of_spans(const SamplerInstruction& i) const {
    int64_t rows = 0;
    for (int64_t k = i.spans; k < i.spans + i.span_count; ++k) {
      const SamplerSpan& span = records_.spans[k];
      records_.require(span.at == rows && span.length >= 1, "spans: with a gap");
      rows += span.length;
    }
    return rows;
  }

  // Writes into the segments of an affine instruction which of its reductions they are.
  void number_segments(const SamplerInstruction& i) {
    const int64_t first = i.places + 1 + i.operands;
    int64_t at = 0;
    for (int64_t k = first; k < first + i.segments; ++k) {
      const int64_t length = records_.places[k].length;
      records_.require(length >= 1 && at % SAMPLER_SEGMENT + length <= SAMPLER_SEGMENT, "a segment of another length");
      places_[k].span = whole(at << 6 | length);
      at += length;
    }
    records_.require(at == i.reductions, "segments: not those of the weight's columns");
  }

  const Records records_;
  SamplerShape shape_;
  std::vector<DevicePlace> places_;
  std::vector<DeviceInstruction> instructions_;
};

}  // namespace

void bind_sampler_plan(py::module_& m) {
  py::class_<CudaSamplerPlan>(m, "CudaSamplerPlan", py::module_local())
      .def(py::init<const py::dict&, int64_t, int64_t>(), py::arg("records"), py::arg("weight_count"),
           py::arg("float_count"))
      .def("tables", &CudaSamplerPlan::tables)
      .def("division", &CudaSamplerPlan::division, py::arg("batch"), py::arg("limits"))
      .def("run", &CudaSamplerPlan::run, py::arg("device"), py::arg("stream"), py::arg("limits"), py::arg("tables"),
           py::arg("weights"), py::arg("floats"), py::arg("memory"), py::arg("maps"), py::arg("run"),
           py::arg("undrawable"));
}

}  // namespace gk::cuda

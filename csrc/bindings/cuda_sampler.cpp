// Sampling programs on a GPU in the Python module: the records as the kernel wants them, and the launch.
#include <array>
#include <cstring>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/cuda.h"
#include "cuda/core/device.h"
#include "cuda/sampler/sampler.h"
#include "bindings/sampler_plan.h"

namespace py = pybind11;

namespace gk::cuda {

namespace {

using Address = std::uintptr_t;
using Records = SamplerRecords;
using Lists = Records::Lists;
using Limits = std::tuple<int, int64_t, int>;
using Maps = std::vector<std::tuple<Address, int64_t>>;
constexpr auto& require = Records::require;

int whole(int64_t x) {
  require(x >= std::numeric_limits<int>::min() && x <= std::numeric_limits<int>::max(), "a number beyond 32 bits");
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
  CudaSamplerPlan(int64_t weight_count, int64_t float_count, const std::vector<int64_t>& sizes, const Lists& buffers,
                  const Lists& places, const Lists& instructions, const Lists& groups, const Lists& runs,
                  const Lists& phases)
      : records_(sizes, float_count, buffers, places, instructions, groups, runs, phases), shape_({}) {
    const Records& r = records_;
    require(r.levels >= 1 && r.levels <= SAMPLER_MAX_LEVELS, "levels: expected 1 to 256");
    require(r.maps <= SAMPLER_MAX_MAPS, "maps: more than 16");
    shape_.height = whole(r.height), shape_.width = whole(r.width), shape_.grid_width = whole(r.grid_width);
    shape_.colours = whole(r.colours), shape_.levels = whole(r.levels);
    shape_.image_floats = whole(r.image_floats), shape_.table = whole(r.table);
    shape_.instructions = whole(Records::size(r.instructions)), shape_.runs = whole(Records::size(r.runs));
    shape_.places = whole(Records::size(r.places));
    shape_.pixel_weights = whole(weight_count), whole(float_count);
    for (const auto& p : r.places) places_.push_back(place(p));
    for (int64_t k = 0; k < Records::size(r.instructions); ++k) {
      const bool whole_rows = k >= r.phases[0].first && k < r.phases[0].last;
      instructions_.push_back(instruction(r.instructions[k], whole_rows, weight_count, float_count));
    }
  }

  // What the kernel reads of the program, for the device.
  py::bytes tables() const {
    std::string bytes;
    const auto append = [&](const auto& record) {
      bytes.append(reinterpret_cast<const char*>(&record), sizeof(record));
    };
    for (const auto& i : instructions_) append(i);
    for (const auto& r : records_.runs)
      append(WalkRun{whole(r.at), whole(r.length), whole(r.channel), whole(r.operand[0]), whole(r.operand[1]),
                     whole(r.operand[2]), whole(r.operand[3]), 0});
    for (const auto& p : records_.phases) append(std::array<int, 2>{whole(p.first), whole(p.last)});
    bytes.resize((bytes.size() + 15) / 16 * 16);
    for (const auto& p : places_) append(p);
    return py::bytes(bytes);
  }

  py::dict division(int batch, const Limits& limits) const {
    const SamplerDivision d = divide(batch, limits);
    py::dict result;
    result["fits"] = d.fits;
    result["images"] = d.images;
    result["slices"] = d.slices;
    result["threads"] = d.threads;
    result["resident"] = d.resident;
    result["weights"] = shape_.pixel_weights;
    result["shared_bytes"] = d.shared_bytes;
    return result;
  }

  void run(int device, Address stream, const Limits& limits, Address tables, Address weights, Address floats,
           Address memory, const Maps& maps, int images, Address levels, Address free, Address uniforms, Address logits,
           double temperature, int top_k, const std::array<int, 3>& last, Address undrawable) const {
    require(images >= 1, "images: expected at least 1");
    require(last[0] >= 0 && last[0] < shape_.height && last[1] >= 0 && last[1] < shape_.width && last[2] >= 0 &&
                last[2] < shape_.colours,
            "last: outside the image");
    require(Records::size(maps) == records_.maps, "maps: not as many as the plan was made with");
    SamplerWalkCall call = {};
    call.shape = shape_;
    call.division = divide(images, limits);
    require(call.division.fits, "it does not fit this device: ask `division` first");
    call.tables = reinterpret_cast<const int*>(tables);
    call.weights = reinterpret_cast<const float*>(weights);
    call.floats = reinterpret_cast<const float*>(floats);
    call.memory = reinterpret_cast<float*>(memory);
    for (size_t i = 0; i < maps.size(); ++i)
      call.maps[i] = {reinterpret_cast<const float*>(std::get<0>(maps[i])), std::get<1>(maps[i])};
    call.images = images;
    call.levels = reinterpret_cast<uint8_t*>(levels);
    call.free = reinterpret_cast<const uint8_t*>(free);
    call.uniforms = reinterpret_cast<const double*>(uniforms);
    call.logits = reinterpret_cast<float*>(logits);
    call.temperature = temperature;
    call.top_k = top_k;
    call.last_row = last[0], call.last_column = last[1], call.last_colour = last[2];
    call.undrawable = reinterpret_cast<int64_t*>(undrawable);
    const py::gil_scoped_release no_gil;
    check_launch("cudaSetDevice", select_device(device));
    check_launch("sampler_walk", sampler_walk(call, reinterpret_cast<void*>(stream)));
  }

 private:
  SamplerDivision divide(int batch, const Limits& limits) const {
    require(batch >= 1, "images: expected at least 1");
    require(std::get<0>(limits) >= 1, "limits: expected at least one multiprocessor");
    return divide_sampler(shape_, batch, {std::get<0>(limits), std::get<1>(limits)});
  }

  WalkPlace place(const SamplerPlace& p) const {
    const SamplerBuffer& b = records_.buffers[p.value];
    const int64_t base = b.offset + (p.dx - b.first_column) * b.column_stride + p.channel;
    return {whole(base),       whole(p.dy), whole(b.rows), whole(b.row_stride), whole(b.column_stride),
            whole(b.external), 0,           0};
  }

  // Also tells the segments of an affine instruction where they begin.
  WalkInstruction instruction(const SamplerInstruction& i, bool whole_rows, int64_t weight_count, int64_t float_count) {
    WalkInstruction w = {};
    w.kind = whole(i.kind);
    w.first_row = whole(i.first_row), w.first_column = whole(i.first_column), w.last_column = whole(i.last_column);
    w.function = whole(i.function), w.parameters = whole(i.parameters), w.accumulate = whole(i.accumulate);
    w.places = whole(i.places), w.operands = whole(i.operands), w.segments = whole(i.segments);
    w.runs = whole(i.runs), w.run_count = whole(i.run_count);
    w.rows = whole(i.rows), w.reductions = whole(i.reductions);
    w.weight = whole(i.weight), w.bias = whole(i.bias);
    w.body = whole(i.body), w.count = whole(i.count), w.number = whole(i.number);
    w.lanes = lanes_for(i.reductions);
    const auto kind = static_cast<SamplerKind>(i.kind);
    if (kind == SamplerKind::scan || kind == SamplerKind::draw) return w;
    int64_t rows = 0;
    for (int64_t k = i.runs; k < i.runs + i.run_count; ++k) {
      require(records_.runs[k].at == rows && records_.runs[k].length >= 1, "runs: with a gap");
      rows += records_.runs[k].length;
    }
    if (kind != SamplerKind::affine) {
      w.rows = whole(rows);
      return w;
    }
    require(rows == i.rows, "runs: not those of the weight's rows");
    int64_t at = 0;
    for (int64_t k = i.places + 1 + i.operands; k < i.places + 1 + i.operands + i.segments; ++k) {
      const int64_t length = records_.places[k].length;
      require(length >= 1 && at % SAMPLER_SEGMENT + length <= SAMPLER_SEGMENT, "a segment of another length");
      places_[k].span = whole(at << 6 | length);
      at += length;
    }
    require(at == i.reductions, "segments: not those of the weight's columns");
    if (whole_rows) {
      const int64_t columns = filled(i.reductions, 8), padded_rows = filled(i.rows, 16);
      require(Records::inside(i.weight, padded_rows * columns, float_count), "a weight: out of range");
      require(Records::inside(i.bias, padded_rows, float_count), "a bias: out of range");
      require(i.weight % 4 == 0, "a weight: not aligned");
    } else {
      const int columns = filled(i.reductions, 4), at_once = 4 * 32 / w.lanes;
      const int64_t floats = static_cast<int64_t>(filled(i.rows, at_once)) * (columns + 4);
      require(Records::inside(i.weight, floats, weight_count), "a weight: out of range");
      require(i.weight % 4 == 0, "a weight: not aligned");
      shape_.most_columns = std::max(shape_.most_columns, columns);
      shape_.most_groups = std::max(shape_.most_groups, filled(i.rows, at_once) / at_once);
    }
    return w;
  }

  const Records records_;
  SamplerShape shape_;
  std::vector<WalkPlace> places_;
  std::vector<WalkInstruction> instructions_;
};

}  // namespace

void bind_sampler_plan(py::module_& m) {
  py::class_<CudaSamplerPlan>(m, "CudaSamplerPlan")
      .def(py::init<int64_t, int64_t, const std::vector<int64_t>&, const Lists&, const Lists&, const Lists&,
                    const Lists&, const Lists&, const Lists&>(),
           py::arg("weight_count"), py::arg("float_count"), py::arg("sizes"), py::arg("buffers"), py::arg("places"),
           py::arg("instructions"), py::arg("groups"), py::arg("runs"), py::arg("phases"))
      .def("tables", &CudaSamplerPlan::tables)
      .def("division", &CudaSamplerPlan::division, py::arg("batch"), py::arg("limits"))
      .def("run", &CudaSamplerPlan::run, py::arg("device"), py::arg("stream"), py::arg("limits"), py::arg("tables"),
           py::arg("weights"), py::arg("floats"), py::arg("memory"), py::arg("maps"), py::arg("images"),
           py::arg("levels"), py::arg("free"), py::arg("uniforms"), py::arg("logits"), py::arg("temperature"),
           py::arg("top_k"), py::arg("last"), py::arg("undrawable"));
}

}  // namespace gk::cuda

// Sampling programs in the Python module genkernels._C; see bindings.h for the conventions.
#include "cpu/sampler.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"

namespace gk::bindings {

namespace {

void require(bool ok, const char* what) {
  if (!ok) throw py::value_error(std::string("sampler plan: ") + what);
}

// Records of whole numbers, in the order of the struct's members.
template <class Record>
std::vector<Record> records(const std::vector<std::vector<int64_t>>& lists) {
  constexpr std::size_t size = sizeof(Record) / sizeof(int64_t);
  std::vector<Record> result(lists.size());
  for (std::size_t i = 0; i < lists.size(); ++i) {
    require(lists[i].size() == size, "a record has the wrong length");
    std::memcpy(&result[i], lists[i].data(), sizeof(Record));
  }
  return result;
}

using Lists = std::vector<std::vector<int64_t>>;
using Constants = std::vector<std::tuple<Address, int64_t, int64_t, int64_t>>;

class SamplerPlan {
 public:
  SamplerPlan(const std::vector<int64_t>& sizes, Address floats, int64_t float_count, const Lists& buffers,
              const Lists& places, const Lists& instructions, const Lists& groups, const Lists& runs,
              const Lists& phases)
      : buffers_(records<SamplerBuffer>(buffers)),
        places_(records<SamplerPlace>(places)),
        instructions_(records<SamplerInstruction>(instructions)),
        groups_(records<SamplerGroup>(groups)),
        runs_(records<SamplerRun>(runs)),
        phases_(records<SamplerPhase>(phases)) {
    require(sizes.size() == 7, "sizes: expected 7 numbers");
    program_ = {};
    int64_t* const fields[] = {&program_.height, &program_.width,        &program_.grid_width, &program_.colours,
                               &program_.levels, &program_.image_floats, &program_.table};
    for (std::size_t i = 0; i < 7; ++i) *fields[i] = sizes[i];
    program_.floats = reinterpret_cast<const float*>(floats);
    program_.buffers = buffers_.data();
    program_.buffer_count = size(buffers_);
    program_.places = places_.data();
    program_.place_count = size(places_);
    program_.instructions = instructions_.data();
    program_.groups = groups_.data();
    program_.runs = runs_.data();
    program_.phases = phases_.data();
    check_plan(float_count);
  }
  SamplerPlan(const SamplerPlan&) = delete;
  SamplerPlan& operator=(const SamplerPlan&) = delete;

  bool run(int threads, int64_t images, Address levels, Address free, Address uniforms, Address logits,
           double temperature, int64_t top_k, const std::array<int64_t, 3>& last, const Constants& maps,
           const Constants& vectors, const py::function& row_done) const {
    require(threads >= 1 && threads <= 1024, "threads: expected 1 to 1024");
    require(images >= 1, "images: expected at least 1");
    require(last[0] >= 0 && last[0] < program_.height && last[1] >= 0 && last[1] < program_.width && last[2] >= 0 &&
                last[2] < program_.colours,
            "last: outside the image");
    require(static_cast<int64_t>(maps.size()) == maps_, "maps: not as many as the plan was made with");
    const auto map_views = constants(maps), vector_views = constants(vectors);
    for (const auto& v : vector_views)
      require(v.offset >= 0 && v.length >= 0 && v.offset + v.length <= program_.image_floats, "vectors: out of place");
    Caller caller{row_done, 0, last[0] + 1, std::nullopt};
    const SamplerCall call{program_,
                               images,
                               reinterpret_cast<uint8_t*>(levels),
                               reinterpret_cast<const uint8_t*>(free),
                               reinterpret_cast<const double*>(uniforms),
                               reinterpret_cast<float*>(logits),
                               temperature,
                               top_k,
                               last[0],
                               last[1],
                               last[2],
                               map_views.data(),
                               vector_views.data(),
                               size(vector_views),
                               threads,
                               &Caller::poll,
                               &caller};
    bool done;
    {
      py::gil_scoped_release no_gil;
      done = GK_DISPATCH(sampler_run, call);
    }
    if (caller.error) throw std::move(*caller.error);
    return done;
  }

 private:
  // The Python side of a run: signals, and what has been finished.
  struct Caller {
    const py::function& row_done;
    int64_t told, rows;
    std::optional<py::error_already_set> error;

    static bool poll(void* context, int64_t rows) {
      auto& self = *static_cast<Caller*>(context);
      if (self.error) return false;
      py::gil_scoped_acquire gil;
      try {
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        for (; self.told < std::min(rows, self.rows); ++self.told) self.row_done(self.told);
      } catch (py::error_already_set& error) {
        self.error.emplace(std::move(error));
      }
      return !self.error;
    }
  };

  template <class T>
  static int64_t size(const std::vector<T>& v) {
    return static_cast<int64_t>(v.size());
  }

  static std::vector<SamplerConstant> constants(const Constants& list) {
    std::vector<SamplerConstant> result;
    for (const auto& [data, image_stride, offset, length] : list)
      result.push_back({reinterpret_cast<const float*>(data), image_stride, offset, length});
    return result;
  }

  // Everything lies inside what it points into.
  void check_plan(int64_t float_count) {
    const auto inside = [](int64_t first, int64_t count, int64_t all) {
      return first >= 0 && count >= 0 && first + count <= all;
    };
    require(program_.height >= 1 && program_.width >= 1 && program_.grid_width >= program_.width, "bad sizes");
    require(inside(program_.table, program_.levels, float_count), "table: out of range");
    require(size(phases_) == program_.colours + 2, "phases: expected the row's and one for each step");
    for (const auto& b : buffers_) {
      require(b.rows >= 1 && b.columns >= 1 && b.channels >= 0, "an empty buffer");
      require(b.external >= 0 || inside(b.offset, b.rows * b.columns * b.channels, program_.image_floats),
              "a buffer: out of range");
      require(b.outside < 0 || (b.external < 0 && inside(b.outside, b.channels, float_count)),
              "what a buffer reads as outside: out of range");
      maps_ = std::max(maps_, b.external + 1);
    }
    for (const auto& place : places_) {
      require(place.value >= 0 && place.value < size(buffers_), "a place in no value");
      require(place.length >= 0, "a place of negative length");
    }
    for (const auto& phase : phases_)
      require(inside(phase.first, phase.last - phase.first, size(instructions_)), "phases: out of range");
    for (const auto& i : instructions_) {
      require(i.kind >= 0 && i.kind <= 4 && i.function >= 0 && i.function <= 17, "an unknown instruction");
      require(i.operands >= 0 && i.operands <= SAMPLER_OPERANDS, "an instruction with too many operands");
      require(inside(i.places, 1 + i.operands + i.segments, program_.place_count), "places: out of range");
      require(inside(i.groups, i.group_count, size(groups_)), "groups: out of range");
      require(inside(i.runs, i.run_count, size(runs_)), "runs: out of range");
      require(inside(i.body, i.count, size(instructions_)), "a scan's body: out of range");
      require(inside(i.weight, i.rows * i.reductions, float_count), "a weight: out of range");
      require(inside(i.bias, i.rows, float_count), "a bias: out of range");
      program_.most_segments = std::max(program_.most_segments, i.segments);
      program_.most_groups = std::max(program_.most_groups, i.group_count);
    }
  }

  SamplerProgram program_;
  std::vector<SamplerBuffer> buffers_;
  std::vector<SamplerPlace> places_;
  std::vector<SamplerInstruction> instructions_;
  std::vector<SamplerGroup> groups_;
  std::vector<SamplerRun> runs_;
  std::vector<SamplerPhase> phases_;
  int64_t maps_ = 0;
};

}  // namespace

void bind_sampler(py::module_& m) {
  m.def("sampler_panel", [] {
    int64_t columns, lanes;
    GK_DISPATCH(sampler_panel, &columns, &lanes);
    return std::make_pair(columns, lanes);
  });
  py::class_<SamplerPlan>(m, "SamplerPlan")
      .def(py::init<const std::vector<int64_t>&, Address, int64_t, const Lists&, const Lists&, const Lists&,
                    const Lists&, const Lists&, const Lists&>(),
           py::arg("sizes"), py::arg("floats"), py::arg("float_count"), py::arg("buffers"), py::arg("places"),
           py::arg("instructions"), py::arg("groups"), py::arg("runs"), py::arg("phases"))
      .def("run", &SamplerPlan::run, py::arg("threads"), py::arg("images"), py::arg("levels"), py::arg("free"),
           py::arg("uniforms"), py::arg("logits"), py::arg("temperature"), py::arg("top_k"), py::arg("last"),
           py::arg("maps"), py::arg("vectors"), py::arg("row_done"));
}

}  // namespace gk::bindings

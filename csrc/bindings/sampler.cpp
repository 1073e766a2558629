// Sampling programs in the Python module genkernels._C; see bindings/cuda.h for the conventions.
#include "cpu/sampler/sampler.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/sampler_plan.h"

namespace gk::bindings {

namespace {

using Records = SamplerRecords;
using Lists = Records::Lists;
constexpr auto& require = Records::require;
using Constants = std::vector<std::tuple<Address, int64_t, int64_t, int64_t>>;

class SamplerPlan {
 public:
  SamplerPlan(const std::vector<int64_t>& sizes, Address floats, int64_t float_count, const Lists& buffers,
              const Lists& places, const Lists& instructions, const Lists& groups, const Lists& runs,
              const Lists& phases)
      : records_(sizes, float_count, buffers, places, instructions, groups, runs, phases) {
    const Records& r = records_;
    program_ = {};
    program_.height = r.height, program_.width = r.width, program_.grid_width = r.grid_width;
    program_.colours = r.colours, program_.levels = r.levels, program_.image_floats = r.image_floats;
    program_.table = r.table, program_.floats = reinterpret_cast<const float*>(floats);
    program_.buffers = r.buffers.data(), program_.buffer_count = Records::size(r.buffers);
    program_.places = r.places.data(), program_.place_count = Records::size(r.places);
    program_.instructions = r.instructions.data(), program_.groups = r.groups.data();
    program_.runs = r.runs.data(), program_.phases = r.phases.data();
    for (const auto& i : r.instructions) {
      require(Records::inside(i.weight, i.rows * i.reductions, float_count), "a weight: out of range");
      require(Records::inside(i.bias, i.rows, float_count), "a bias: out of range");
      program_.most_segments = std::max(program_.most_segments, i.segments);
      program_.most_groups = std::max(program_.most_groups, i.group_count);
    }
  }
  SamplerPlan(const SamplerPlan&) = delete;
  SamplerPlan& operator=(const SamplerPlan&) = delete;

  // Whether there was memory, and a sub-pixel whose logits are no distribution, or -1.
  std::pair<bool, int64_t> run(int threads, int64_t images, Address levels, Address free, Address uniforms, Address logits,
           double temperature, int64_t top_k, const std::array<int64_t, 3>& last, const Constants& maps,
           const Constants& vectors, const py::function& row_done) const {
    require(threads >= 1 && threads <= 1024, "threads: expected 1 to 1024");
    require(images >= 1, "images: expected at least 1");
    require(last[0] >= 0 && last[0] < program_.height && last[1] >= 0 && last[1] < program_.width && last[2] >= 0 &&
                last[2] < program_.colours,
            "last: outside the image");
    require(Records::size(maps) == records_.maps, "maps: not as many as the plan was made with");
    const auto map_views = constants(maps), vector_views = constants(vectors);
    for (const auto& v : vector_views)
      require(v.offset >= 0 && v.length >= 0 && v.offset + v.length <= program_.image_floats, "vectors: out of place");
    Caller caller{row_done, 0, last[0] + 1, std::nullopt};
    int64_t undrawable = -1;
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
                               Records::size(vector_views),
                               threads,
                               &undrawable,
                               &Caller::poll,
                               &caller};
    bool done;
    {
      py::gil_scoped_release no_gil;
      done = GK_DISPATCH(sampler_run, call);
    }
    if (caller.error) throw std::move(*caller.error);
    return {done, undrawable};
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

  static std::vector<SamplerConstant> constants(const Constants& list) {
    std::vector<SamplerConstant> result;
    for (const auto& [data, image_stride, offset, length] : list)
      result.push_back({reinterpret_cast<const float*>(data), image_stride, offset, length});
    return result;
  }

  const Records records_;
  SamplerProgram program_;
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

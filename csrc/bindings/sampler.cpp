// Sampling programs on the CPU in the Python module genkernels._C; see bindings/bindings.h for the conventions.
#include "cpu/sampler/sampler.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/sampler_plan.h"

namespace gk::bindings {

namespace {

class SamplerPlan {
 public:
  SamplerPlan(const py::dict& records, Address floats, int64_t float_count) : records_(records, float_count) {
    const SamplerRecords& r = records_;
    program_.sizes = r.sizes;
    program_.floats = pointer<const float>(floats);
    program_.buffers = r.buffers.data(), program_.buffer_count = r.size(r.buffers);
    program_.vectors = r.vectors.data(), program_.vector_count = r.size(r.vectors);
    program_.places = r.places.data(), program_.place_count = r.size(r.places);
    program_.instructions = r.instructions.data(), program_.groups = r.groups.data();
    program_.spans = r.spans.data(), program_.phases = r.phases.data();
    for (const auto& i : r.instructions) {
      if (i.kind == SamplerKind::affine) {
        r.require(r.inside(i.weight, i.rows * i.reductions, float_count), "a weight: out of range");
        r.require(r.inside(i.bias, i.rows, float_count), "a bias: out of range");
      }
      program_.has_attention = program_.has_attention || i.kind == SamplerKind::attention;
      program_.most_segments = std::max(program_.most_segments, i.segments);
      program_.most_groups = std::max(program_.most_groups, i.group_count);
    }
  }
  SamplerPlan(const SamplerPlan&) = delete;
  SamplerPlan& operator=(const SamplerPlan&) = delete;

  // A sub-pixel whose logits are no distribution, or -1.
  int64_t run(int threads, const SamplerRun& run, const SamplerAddresses& maps, const SamplerAddresses& vectors,
              const py::function& row_done) const {
    check_threads(threads);
    records_.check_run(run, maps.size());
    records_.require(vectors.size() == records_.vectors.size(), "vectors: not as many as the plan was made with");
    const auto map_views = sampler_constants(maps), vector_views = sampler_constants(vectors);
    Caller caller{row_done, 0, run.last_row + 1, std::nullopt};
    int64_t undrawable = -1;
    const SamplerCall call{program_, run, map_views.data(), vector_views.data(), threads, &undrawable, &Caller::poll,
                           &caller};
    bool done;
    {
      py::gil_scoped_release no_gil;
      done = GK_DISPATCH(sampler_run, call);
    }
    if (caller.error) throw std::move(*caller.error);
    if (!done) {
      PyErr_SetString(PyExc_MemoryError, "sample: no memory for the values of the images that are drawn at once");
      throw py::error_already_set();
    }
    return undrawable;
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

  const SamplerRecords records_;
  SamplerProgram program_ = {};
};

}  // namespace

void bind_sampler(py::module_& m) {
  m.def("sampler_panel", [] {
    int64_t columns, lanes;
    GK_DISPATCH(sampler_panel, &columns, &lanes);
    return std::make_pair(columns, lanes);
  });
  bind_sampler_run(m);
  py::class_<SamplerPlan>(m, "SamplerPlan")
      .def(py::init<const py::dict&, Address, int64_t>(), py::arg("records"), py::arg("floats"), py::arg("float_count"))
      .def("run", &SamplerPlan::run, py::arg("threads"), py::arg("run"), py::arg("maps"), py::arg("vectors"),
           py::arg("row_done"));
}

}  // namespace gk::bindings

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

  // What a call of the native executor is made of; the constants must outlive it.
  SamplerCall call(const SamplerRun& run, const std::vector<SamplerConstant>& maps,
                   const std::vector<SamplerConstant>& vectors, int threads, int64_t* undrawable) const {
    check_threads(threads);
    records_.check_run(run, maps.size());
    records_.require(vectors.size() == records_.vectors.size(), "vectors: not as many as the plan was made with");
    return {program_, run, maps.data(), vectors.data(), threads, undrawable, nullptr, nullptr};
  }

  // A sub-pixel whose logits are no distribution, or -1.
  int64_t run(int threads, const SamplerRun& run, const SamplerAddresses& maps, const SamplerAddresses& vectors,
              const py::function& row_done) const {
    const auto map_views = sampler_constants(maps), vector_views = sampler_constants(vectors);
    int64_t undrawable = -1;
    SamplerCall call = this->call(run, map_views, vector_views, threads, &undrawable);
    Caller caller{row_done, 0, run.last_row + 1, std::nullopt};
    call.poll = &Caller::poll;
    call.context = &caller;
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

// A walk through the images of a run, see SamplerWalkCall. `parameters` and what the run points to are the caller's.
class SamplerWalk {
 public:
  SamplerWalk(const SamplerPlan& plan, const SamplerRun& run, const SamplerAddresses& maps,
              const SamplerAddresses& vectors, Address known, bool together, Address parameters)
      : maps_(sampler_constants(maps)), vectors_(sampler_constants(vectors)) {
    const SamplerWalkCall call{plan.call(run, maps_, vectors_, 1, &undrawable_), pointer<const uint8_t>(known),
                               together, pointer<float>(parameters)};
    walk_ = GK_DISPATCH(sampler_walk_begin, call);
    if (!walk_) {
      PyErr_SetString(PyExc_MemoryError, "steps: no memory for the values of the images");
      throw py::error_already_set();
    }
  }
  ~SamplerWalk() { GK_DISPATCH(sampler_walk_end, walk_); }
  SamplerWalk(const SamplerWalk&) = delete;
  SamplerWalk& operator=(const SamplerWalk&) = delete;

  // (row, column, colour), or None at the end. One thread at a time.
  std::optional<std::tuple<int64_t, int64_t, int64_t>> next() {
    if (ended_) return std::nullopt;
    int64_t place[3];
    {
      py::gil_scoped_release no_gil;
      ended_ = !GK_DISPATCH(sampler_walk_next, walk_, place);
    }
    if (ended_) return std::nullopt;
    return std::make_tuple(place[0], place[1], place[2]);
  }

 private:
  const std::vector<SamplerConstant> maps_, vectors_;
  int64_t undrawable_ = -1;
  void* walk_ = nullptr;
  bool ended_ = false;
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
  py::class_<SamplerWalk>(m, "SamplerWalk")
      .def(py::init<const SamplerPlan&, const SamplerRun&, const SamplerAddresses&, const SamplerAddresses&, Address,
                    bool, Address>(),
           py::arg("plan"), py::arg("run"), py::arg("maps"), py::arg("vectors"), py::arg("known"), py::arg("together"),
           py::arg("parameters"), py::keep_alive<1, 2>())
      .def("next", &SamplerWalk::next);
}

}  // namespace gk::bindings

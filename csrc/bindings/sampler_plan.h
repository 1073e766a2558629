// Records of a packed sampling program as the bindings of both native executors take them: read by name, held, checked.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "sampler_records.h"

namespace gk {

namespace py = pybind11;

class __attribute__((visibility("hidden"))) SamplerRecords {
 public:
  // Lists of records by name, each record a dict of its fields by name.
  SamplerRecords(const py::dict& given, int64_t float_count)
      : sizes(record<SamplerSizes>(entry(given, "records", "sizes"), "sizes")),
        buffers(list<SamplerBuffer>(given, "buffers")),
        vectors(list<SamplerVector>(given, "vectors")),
        places(list<SamplerPlace>(given, "places")),
        instructions(list<SamplerInstruction>(given, "instructions")),
        groups(list<SamplerGroup>(given, "groups")),
        spans(list<SamplerSpan>(given, "spans")),
        phases(list<SamplerPhase>(given, "phases")) {
    check_memory(float_count);
    check_instructions(float_count);
  }

  static void require(bool ok, const std::string& what) {
    if (!ok) throw py::value_error("sampler plan: " + what);
  }
  static bool inside(int64_t first, int64_t count, int64_t all) {
    return first >= 0 && count >= 0 && first + count <= all;
  }
  template <class T>
  static int64_t size(const std::vector<T>& v) {
    return static_cast<int64_t>(v.size());
  }

  // A run fits the program; its arrays are the caller's to have checked.
  void check_run(const SamplerRun& run, std::size_t map_count) const {
    require(run.images >= 1, "images: expected at least 1");
    require(run.last_row >= 0 && run.last_row < sizes.height && run.last_column >= 0 &&
                run.last_column < sizes.width && run.last_colour >= 0 && run.last_colour < sizes.colours,
            "last: outside the image");
    require(static_cast<int64_t>(map_count) == maps, "maps: not as many as the plan was made with");
  }

  const SamplerSizes sizes;
  const std::vector<SamplerBuffer> buffers;
  const std::vector<SamplerVector> vectors;
  const std::vector<SamplerPlace> places;
  const std::vector<SamplerInstruction> instructions;
  const std::vector<SamplerGroup> groups;
  const std::vector<SamplerSpan> spans;
  const std::vector<SamplerPhase> phases;
  int64_t maps = 0;  // constant maps that buffers lie in

 private:
  static py::object entry(const py::dict& given, const std::string& where, const char* name) {
    require(given.contains(name), where + ": '" + name + "' is missing");
    return given[name];
  }

  template <class Record>
  static std::vector<Record> list(const py::dict& given, const char* name) {
    std::vector<Record> result;
    for (const py::handle& one : py::list(entry(given, "records", name)))
      result.push_back(record<Record>(one, name + ("[" + std::to_string(result.size()) + "]")));
    return result;
  }

  template <class Record>
  static Record record(const py::handle& given, const std::string& where) {
    const auto fields = py::reinterpret_borrow<py::dict>(given);
    py::set unknown(fields);
    Record result = {};
    result.for_each_field([&](const char* name, auto& field) {
      const py::object value = entry(fields, where, name);
      try {
        read(value, field);
      } catch (const py::cast_error&) {
        require(false, where + ": unfit '" + name + "', " + std::string(py::repr(value)));
      }
      unknown.attr("discard")(name);
    });
    for (const py::handle& name : unknown) require(false, where + ": no field is named " + std::string(py::repr(name)));
    return result;
  }

  static void read(const py::object& value, int64_t& field) { field = value.cast<int64_t>(); }
  static void read(const py::object& value, SamplerOperands& field) {
    const auto numbers = value.cast<std::vector<int64_t>>();
    if (numbers.size() > SAMPLER_OPERANDS) throw py::cast_error();
    std::copy(numbers.begin(), numbers.end(), field);
  }
#define GK_SAMPLER_NAME(name) #name,
  static void read(const py::object& value, SamplerKind& field) {
    field = named<SamplerKind>(value, {GK_SAMPLER_KINDS(GK_SAMPLER_NAME)});
  }
  static void read(const py::object& value, SamplerFunction& field) {
    field = named<SamplerFunction>(value, {GK_SAMPLER_FUNCTIONS(GK_SAMPLER_NAME)});
  }
#undef GK_SAMPLER_NAME
  template <class Enum>
  static Enum named(const py::object& value, std::initializer_list<const char*> names) {
    const auto* const found = std::find(names.begin(), names.end(), value.cast<std::string>());
    if (found == names.end()) throw py::cast_error();
    return static_cast<Enum>(found - names.begin());
  }

  // Everything lies inside what it points into; the weights, which every executor packs in its own way, are its own to
  // check.
  void check_memory(int64_t float_count) {
    require(sizes.height >= 1 && sizes.width >= 1 && sizes.grid_width >= sizes.width, "bad sizes");
    require(sizes.channels >= 1 && sizes.components >= 0 &&
                (sizes.predictions == 1 || sizes.predictions == sizes.colours),
            "bad sizes of what is drawn from");
    require(inside(sizes.table, sizes.levels, float_count), "table: out of range");
    for (const auto& b : buffers) {
      require(b.rows >= 1 && b.columns >= 1 && b.channels >= 0, "an empty buffer");
      require(b.external >= 0 || inside(b.offset, b.rows * b.columns * b.channels, sizes.image_floats),
              "a buffer: out of range");
      require(b.outside < 0 || (b.external < 0 && inside(b.outside, b.channels, float_count)),
              "what a buffer reads as outside: out of range");
      maps = std::max(maps, b.external + 1);
    }
    for (const auto& v : vectors) require(inside(v.offset, v.length, sizes.image_floats), "a vector: out of range");
    for (const auto& place : places) {
      require(place.value >= 0 && place.value < size(buffers), "a place in no value");
      require(place.length >= 0, "a place of negative length");
    }
  }

  void check_attention(const SamplerInstruction& i, int64_t float_count) const {
    const int64_t pixels = sizes.height * sizes.width;
    require(i.operands == 3, "attention without query, keys or values");
    require(i.number >= 1 && i.rows >= 1 && i.reductions >= 1 && i.rows % i.number == 0 &&
                i.reductions % i.number == 0,
            "attention: not that many heads");
    require((i.count == 0) != (i.function == SamplerFunction::copy), "attention: sees what?");
    const bool for_all_or_each = i.count == 1 || i.count == i.number;
    require(i.count == 0 || (for_all_or_each && inside(i.weight, i.count * pixels * pixels, float_count)),
            "attention: a table out of range");
    for (int64_t k = i.places + 2; k < i.places + 4; ++k) {
      const SamplerBuffer& b = buffers[places[k].value];
      require(b.external < 0 && b.rows == sizes.height, "attention: keys or values are not kept for all rows");
    }
  }

  void check_instructions(int64_t float_count) const {
    require(size(phases) == sizes.colours + 2, "phases: expected the row's and one for each step");
    for (const auto& phase : phases)
      require(inside(phase.first, phase.last - phase.first, size(instructions)), "phases: out of range");
    for (const auto& i : instructions) {
      require(i.operands >= 0 && i.operands <= SAMPLER_OPERANDS, "an instruction with too many operands");
      require(inside(i.places, 1 + i.operands + i.segments, size(places)), "places: out of range");
      require(inside(i.groups, i.group_count, size(groups)), "groups: out of range");
      require(inside(i.spans, i.span_count, size(spans)), "spans: out of range");
      require(inside(i.body, i.count, size(instructions)), "a scan's body: out of range");
      if (i.kind == SamplerKind::attention) check_attention(i, float_count);
      if (i.kind == SamplerKind::lookup) {
        require(i.operands == 1, "a lookup without its number");
        require(i.number >= 1 && i.rows >= 1 && i.number <= float_count && i.rows <= float_count &&
                    inside(i.weight, i.number * i.rows, float_count),
                "a table: out of range");
      }
      require(i.kind != SamplerKind::across || i.operands == 1, "a function across channels of other than one operand");
    }
  }
};

// Constants as (address, floats from one image to the next).
using SamplerAddresses = std::vector<std::tuple<std::uintptr_t, int64_t>>;

inline std::vector<SamplerConstant> sampler_constants(const SamplerAddresses& given) {
  std::vector<SamplerConstant> result;
  for (const auto& [address, image_stride] : given)
    result.push_back({reinterpret_cast<const float*>(address), image_stride});
  return result;
}

// Arguments of one run, by name. Local to its module: genkernels._C and the emulated module have one each.
inline void bind_sampler_run(py::module_& m) {
  using Address = std::uintptr_t;
  const auto make = [](int64_t images, Address levels, Address free, Address uniforms, Address logits,
                       double temperature, int64_t top_k, const std::array<int64_t, 3>& last) {
    return SamplerRun{images,
                      reinterpret_cast<int32_t*>(levels),
                      reinterpret_cast<const uint8_t*>(free),
                      reinterpret_cast<const double*>(uniforms),
                      reinterpret_cast<float*>(logits),
                      temperature,
                      top_k,
                      last[0],
                      last[1],
                      last[2]};
  };
  py::class_<SamplerRun>(m, "SamplerRun", py::module_local())
      .def(py::init(make), py::arg("images"), py::arg("levels"), py::arg("free"), py::arg("uniforms"),
           py::arg("logits"), py::arg("temperature"), py::arg("top_k"), py::arg("last"));
}

}  // namespace gk

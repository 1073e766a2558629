// The records of a sampling program as they arrive from Python, held and checked: what the bindings of both native
// executors start from.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "sampler_records.h"

namespace gk {

class __attribute__((visibility("hidden"))) SamplerRecords {
 public:
  using Lists = std::vector<std::vector<int64_t>>;

  // sizes: height, width, grid width, colours, levels, floats of an image, where the table of levels stands.
  SamplerRecords(const std::vector<int64_t>& sizes, int64_t float_count, const Lists& buffer_lists,
                 const Lists& place_lists, const Lists& instruction_lists, const Lists& group_lists,
                 const Lists& run_lists, const Lists& phase_lists)
      : buffers(read<SamplerBuffer>(buffer_lists)),
        places(read<SamplerPlace>(place_lists)),
        instructions(read<SamplerInstruction>(instruction_lists)),
        groups(read<SamplerGroup>(group_lists)),
        runs(read<SamplerRun>(run_lists)),
        phases(read<SamplerPhase>(phase_lists)) {
    require(sizes.size() == 7, "sizes: expected 7 numbers");
    int64_t* const fields[] = {&height, &width, &grid_width, &colours, &levels, &image_floats, &table};
    for (std::size_t i = 0; i < 7; ++i) *fields[i] = sizes[i];
    check(float_count);
  }

  static void require(bool ok, const char* what) {
    if (!ok) throw pybind11::value_error(std::string("sampler plan: ") + what);
  }
  static bool inside(int64_t first, int64_t count, int64_t all) {
    return first >= 0 && count >= 0 && first + count <= all;
  }
  template <class T>
  static int64_t size(const std::vector<T>& v) {
    return static_cast<int64_t>(v.size());
  }

  int64_t height, width, grid_width, colours, levels, image_floats, table;
  std::vector<SamplerBuffer> buffers;
  std::vector<SamplerPlace> places;
  std::vector<SamplerInstruction> instructions;
  std::vector<SamplerGroup> groups;
  std::vector<SamplerRun> runs;
  std::vector<SamplerPhase> phases;
  int64_t maps = 0;

 private:
  // Records of whole numbers, in the order of the struct's members.
  template <class Record>
  static std::vector<Record> read(const Lists& lists) {
    constexpr std::size_t count = sizeof(Record) / sizeof(int64_t);
    std::vector<Record> result(lists.size());
    for (std::size_t i = 0; i < lists.size(); ++i) {
      require(lists[i].size() == count, "a record has the wrong length");
      std::memcpy(&result[i], lists[i].data(), sizeof(Record));
    }
    return result;
  }

  // Everything lies inside what it points into; the weights, which every executor packs in its own way, are its own to
  // check.
  void check(int64_t float_count) {
    require(height >= 1 && width >= 1 && grid_width >= width, "bad sizes");
    require(inside(table, levels, float_count), "table: out of range");
    require(size(phases) == colours + 2, "phases: expected the row's and one for each step");
    for (const auto& b : buffers) {
      require(b.rows >= 1 && b.columns >= 1 && b.channels >= 0, "an empty buffer");
      require(b.external >= 0 || inside(b.offset, b.rows * b.columns * b.channels, image_floats),
              "a buffer: out of range");
      require(b.outside < 0 || (b.external < 0 && inside(b.outside, b.channels, float_count)),
              "what a buffer reads as outside: out of range");
      maps = std::max(maps, b.external + 1);
    }
    for (const auto& place : places) {
      require(place.value >= 0 && place.value < size(buffers), "a place in no value");
      require(place.length >= 0, "a place of negative length");
    }
    for (const auto& phase : phases)
      require(inside(phase.first, phase.last - phase.first, size(instructions)), "phases: out of range");
    for (const auto& i : instructions) {
      require(i.kind >= 0 && i.kind <= 4 && i.function >= 0 && i.function <= 17, "an unknown instruction");
      require(i.operands >= 0 && i.operands <= SAMPLER_OPERANDS, "an instruction with too many operands");
      require(inside(i.places, 1 + i.operands + i.segments, size(places)), "places: out of range");
      require(inside(i.groups, i.group_count, size(groups)), "groups: out of range");
      require(inside(i.runs, i.run_count, size(runs)), "runs: out of range");
      require(inside(i.body, i.count, size(instructions)), "a scan's body: out of range");
    }
  }
};

}  // namespace gk

// State of core/selection.h.
#include "cpu/core/selection.h"

#include <atomic>
#include <set>
#include <string>

namespace gk {

namespace {

std::atomic<const char*> forced{nullptr};
thread_local const char* last = "";

}  // namespace

const char* forced_implementation() { return forced.load(std::memory_order_relaxed); }

void force_implementation(const char* name) {
  static std::set<std::string> names;  // kept: another thread may be reading one
  forced = name ? names.insert(name).first->c_str() : nullptr;
}

const char* last_implementation() { return last; }

void note_implementation(const char* name) { last = name; }

}  // namespace gk

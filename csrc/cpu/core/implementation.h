// One ordered list of implementations per operation: the first that suits a call runs it.
//
//     constexpr Implementation<MaskedConvForward> FORWARD[] = {
//         {"winograd_f23", winograd_f23_suits, winograd_f23_forward},
//         {"direct", always<MaskedConvForward>, direct_forward},
//     };
//     bool masked_conv_forward(const MaskedConvForward& args) { return run_first(FORWARD, args); }
//
// An implementation looks at sizes in `suits`, and may still find the numbers `uneven` (evenness.h): then the next one
// runs. One of a list suits every call; the last never declines.
#pragma once

#include <stdint.h>
#include <string.h>

#include "cpu/core/selection.h"

namespace gk::GK_ISA {

enum class Outcome { done, no_memory, uneven };

template <class Args>
struct Implementation {
  const char* name;
  bool (*suits)(const Args& args);
  Outcome (*run)(const Args& args);
};

template <class Args>
bool always(const Args&) {
  return true;
}

// The index of the first implementation that suits: the forced one, where it is in the list and does.
template <class Args, int COUNT>
int first_suitable(const Implementation<Args> (&list)[COUNT], const Args& args) {
  if (const char* const forced = forced_implementation())
    for (int i = 0; i < COUNT; ++i)
      if (strcmp(list[i].name, forced) == 0 && list[i].suits(args)) return i;
  int i = 0;
  while (!list[i].suits(args)) ++i;
  return i;
}

// False where there is no memory for scratch.
template <class Args, int COUNT>
bool run_first(const Implementation<Args> (&list)[COUNT], const Args& args) {
  for (int i = first_suitable(list, args);;) {
    const Outcome outcome = list[i].run(args);
    if (outcome != Outcome::uneven) {
      note_implementation(list[i].name);
      return outcome == Outcome::done;
    }
    do ++i;
    while (!list[i].suits(args));
  }
}

}  // namespace gk::GK_ISA

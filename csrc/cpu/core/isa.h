// Instruction sets of this machine, and the dispatch of an operation to the best of them.
//
// Every operation in csrc/cpu is compiled once per instruction set, each time inside `namespace gk::GK_ISA`
// (gk::baseline, gk::avx2, gk::avx512) with that instruction set's compiler flags. Such a file includes C
// headers alone (<cstdint>, <cmath>, <omp.h>): an inline function or template of the C++ library would be
// emitted with AVX-512 code under a shared name, and the linker might pick that copy for every machine.
//
// An operation's header declares the entry point for all of them at once, and a caller dispatches:
//
//     GK_DECLARE_PER_ISA(void, masked_conv_forward, (const MaskedConvForward& args))
//     ...
//     GK_DISPATCH(masked_conv_forward, args);
#pragma once

namespace gk {

enum class Isa { baseline = 0, avx2 = 1, avx512 = 2 };

// The best instruction set that both the processor and the operating system support.
Isa detected_isa();

// detected_isa(), lowered to the environment variable GENKERNELS_MAX_ISA where it is set. Read once, at the
// first call. Throws std::invalid_argument (ValueError in Python) when the variable names no instruction set.
Isa active_isa();

const char* isa_name(Isa isa);

// Whether kernels may use Winograd's algorithms: not with GENKERNELS_WINOGRAD=0. Read and checked with active_isa().
bool allows_winograd();

}  // namespace gk

#if GK_X86_64

#define GK_DECLARE_PER_ISA(result, name, parameters)    \
  namespace gk {                                        \
  namespace baseline { result name parameters; }        \
  namespace avx2 { result name parameters; }            \
  namespace avx512 { result name parameters; }          \
  }

#define GK_DISPATCH(name, ...)                                                          \
  (gk::active_isa() == gk::Isa::avx512  ? gk::avx512::name(__VA_ARGS__)                 \
   : gk::active_isa() == gk::Isa::avx2  ? gk::avx2::name(__VA_ARGS__)                   \
                                        : gk::baseline::name(__VA_ARGS__))

#else

#define GK_DECLARE_PER_ISA(result, name, parameters)    \
  namespace gk {                                        \
  namespace baseline { result name parameters; }        \
  }

#define GK_DISPATCH(name, ...) (gk::baseline::name(__VA_ARGS__))

#endif

// Detection of the instruction set. Compiled once only, without extra flags.
#include "cpu/core/isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if GK_X86_64
#include <cpuid.h>
#endif

namespace gk {

namespace {

#if GK_X86_64
// From the processor itself, since GCC before 11 does not know "f16c" in __builtin_cpu_supports.
bool has_f16c() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}
#endif

bool winograd = true;

bool choose_winograd() {
  const char* wanted = std::getenv("GENKERNELS_WINOGRAD");
  if (!wanted || !*wanted || std::strcmp(wanted, "1") == 0) return true;
  if (std::strcmp(wanted, "0") == 0) return false;
  throw std::invalid_argument("environment variable GENKERNELS_WINOGRAD: expected 0 or 1, got '" +
                              std::string(wanted) + "'");
}

Isa choose_active_isa() {
  winograd = choose_winograd();
  const Isa detected = detected_isa();
  const char* wanted = std::getenv("GENKERNELS_MAX_ISA");
  if (!wanted || !*wanted) return detected;
  for (Isa cap : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (std::strcmp(wanted, isa_name(cap)) == 0) return detected < cap ? detected : cap;
  }
  throw std::invalid_argument("environment variable GENKERNELS_MAX_ISA: expected baseline, avx2 or avx512, got '" +
                              std::string(wanted) + "'");
}

}  // namespace

Isa detected_isa() {
#if GK_X86_64
  // __builtin_cpu_supports also checks that the operating system saves the wide registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2") && has_f16c();
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::baseline;
#else
  return Isa::baseline;
#endif
}

Isa active_isa() {
  static const Isa isa = choose_active_isa();  // when this throws, the next call tries again
  return isa;
}

bool allows_winograd() { return winograd; }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "baseline";
  }
}

}  // namespace gk

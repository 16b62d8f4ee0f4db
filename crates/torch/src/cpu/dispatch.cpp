// Chooses the kernels of the best instruction set at run time.

#include "kernels.h"

#include <c10/util/Exception.h>
#include <cstdlib>
#include <string>

namespace vlm_r1 {
namespace {

// The best that the processor has, or what `VLM_R1_CPU_SET` names: `baseline`, `avx2`, `avx512` or `avx512_bf16`.
const Kernels &choose_kernels() {
  const char *variable = std::getenv("VLM_R1_CPU_SET");
  const std::string asked = variable ? variable : "";
#ifdef VLM_R1_X86
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool has_bf16 = has_avx512 && __builtin_cpu_supports("avx512bf16");
  const auto wanted = [&](bool has, const char *name) { return has && (asked.empty() || asked == name); };
  if (wanted(has_bf16, "avx512_bf16")) return kernels_avx512_bf16;
  if (wanted(has_avx512, "avx512")) return kernels_avx512;
  if (wanted(has_avx2, "avx2")) return kernels_avx2;
#endif
  TORCH_CHECK(asked.empty() || asked == "baseline", "VLM_R1_CPU_SET: this processor has no `", asked, "`");
  return kernels_baseline;
}

}  // namespace

const Kernels &best_kernels() {
  static const Kernels &best = choose_kernels();
  return best;
}

}  // namespace vlm_r1

// See `kernels.h`. Compiled once per instruction set, each time under another name (`VLM_R1_ISA`). Use only plain C headers and
// functions of this folder: of a library's inline function the linker could keep the AVX-512 copy for everybody.

#include "adamw.h"
#include "decode_attention.h"
#include "kernels.h"
#include "packed_linear.h"
#include "pointwise.h"
#include "segment_attention.h"
#include "logprob_kernels.h"

namespace vlm_r1 {
namespace {

template <typename T>
constexpr TypedKernels<T> table() {
  return {rms_norm<T>,
          rms_norm_backward<T>,
          activate<T>,
          activate_backward<T>,
          gated<T>,
          gated_backward<T>,
          rotate<T, T>,
          rotate<T, float>,
          decode_attention<T>,
          segment_attention<T>,
          segment_attention_rows<T>,
          segment_attention_keys<T>,
          pack<T>,
          arrange<T>,
          packed_linear<T>,
          add<T>,
          sample_token<T>,
          log_sum_exp<T>,
          log_prob_backward<T>};
}

}  // namespace

extern const Kernels VLM_R1_ISA = {table<float>(), table<bf16>(), adamw_bf16_master};

}  // namespace vlm_r1

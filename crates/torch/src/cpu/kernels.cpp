// See `kernels.h`. Compiled once for each instruction set, under another name (`VLM_R1_SET`). Nothing but plain C headers and functions
// of this folder may be used here: an inline function of a library, compiled for AVX-512, could be the copy that the
// linker keeps for everybody.

#include "adamw.h"
#include "decode_attention.h"
#include "kernels.h"
#include "packed_linear.h"
#include "pointwise.h"
#include "segment_attention.h"
#include "tokens.h"

namespace vlm_r1 {
namespace {

template <typename T>
constexpr TypedKernels<T> table() {
  return {rms_norm<T>,
          rms_norm_backward<T>,
          swiglu<T>,
          swiglu_backward<T>,
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
          choose<T>,
          log_sum_exp<T>,
          log_prob_backward<T>};
}

}  // namespace

extern const Kernels VLM_R1_SET = {table<float>(), table<bf16>(), adamw_split};

}  // namespace vlm_r1

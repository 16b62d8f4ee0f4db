// CPU kernels over raw pointers. `kernels.cpp` is compiled once per instruction set; `dispatch.cpp` chooses at run time.
//
// Kernels compute in f32 and round once, to the type of the output.

#pragma once

#include <stdint.h>

namespace vlm_r1 {

struct bf16 {
  uint16_t bits;
};

// Decoding attention: one new token per slot over the keys and values of its prompt, then of its completion so far.
template <typename T>
struct DecodeAttention {
  const T *q;  // [slots, heads, head_dim]
  const T *k;  // [slots, kv_heads, head_dim], of the new token; stored at `completion_lens`
  const T *v;
  const T *prompt_keys;    // [prompts, kv_heads, head_dim, prompt_width]
  const T *prompt_values;  // [prompts, kv_heads, prompt_width, head_dim]
  T *completion_keys;          // [slots or more, kv_heads, completion_width, head_dim]
  T *completion_values;
  const int64_t *prompt_indices;   // [slots]: which prompt
  const int64_t *prompt_lens;      // [slots]
  const int64_t *completion_lens;  // [slots]: tokens of the completion before the new one
  const int64_t *first;            // [slots]: the first key that is seen, of the prompt's and then the completion's; null: 0
  T *output;                       // [slots, heads, head_dim]
  int64_t heads, kv_heads, head_dim, prompt_width, completion_width;
  float scale;
};

// y [rows, out] = x [rows, in] W^T + bias.
template <typename T>
struct PackedLinear {
  const T *packed;
  const T *bias;  // or null
  T *y;
  int64_t in, out;
};

// A run of tokens that attend to one another and to `prefix`.
struct Segment {
  int64_t start, len, prefix;  // prefix: index of that segment, or -1
};

// `x [tokens, heads, head_dim]`, contiguous within a head.
template <typename T>
struct Strided {
  T *data;
  int64_t token, head;
};

// Rows of an RMS norm by weights w + offset: `heads` rows of n numbers for each token.
template <typename T>
struct NormRows {
  Strided<const T> x;
  const T *w;
  float offset, eps;
  int64_t heads, n;
};

// Rotary embedding of the first `width` channels of each head, the two halves of which form pairs, or (2 i, 2 i + 1) where
// `adjacent`. Tables [tokens, width], whose second half is not read; `sign` -1 is the inverse.
template <typename T, typename A>
struct Rotation {
  Strided<const T> x;
  const A *cos, *sin;
  int64_t heads, head_dim, width;
  float sign;
  bool adjacent;
};

// As `crate::Activation` numbers them.
enum class Activation : int { SILU, GELU_TANH, GELU, QUICK_GELU };

template <typename T>
struct SegmentAttention {
  Strided<const T> q;     // [tokens, heads, head_dim]
  Strided<const T> k, v;  // [tokens, kv_heads, head_dim]
  const Segment *segments;
  int64_t tokens, heads, kv_heads, head_dim;
  // [tokens, 2]: each token sees keys from the first number up to the second, of the prefix's keys and then its segment's. Null: all
  // of the prefix, and those of its segment up to its own with `causal`, or all.
  const int64_t *intervals;
  bool causal;
  float scale;
  T *output;   // as q
  float *lse;  // [kv_heads, tokens, heads / kv_heads]: log-sum-exp of a row's scores, base 2; null where not wanted
  // Backward pass. `dots`, of the shape of `lse`, is written with the gradients of rows and read for those of keys.
  const T *grad_output;
  float *dots;
  T *grad_q, *grad_k, *grad_v;
  // Segments that have segment i as their prefix: `viewers` from `viewers_from[i]` to `viewers_from[i + 1]`.
  const int64_t *viewers_from, *viewers;
};

// A range of rows or keys of one segment and kv head. Rows are the queries of all heads sharing the kv head, ordered by token;
// `from` is a multiple of 16.
struct AttentionTask {
  int64_t segment, kv_head, from, end;
};
// Limits of a task: rows, own keys, and how many keys (or rows) of the other side are packed at a time.
constexpr int64_t ATTENTION_ROWS = 256;
constexpr int64_t ATTENTION_OWN_KEYS = 128;
constexpr int64_t ATTENTION_KEYS = 128;

// Scratch of a task in floats, enough for each of the three kernels.
inline int64_t attention_scratch(int64_t head_dim) {
  const int64_t padded = (head_dim + 15) / 16 * 16;
  return padded * (3 * ATTENTION_ROWS + 4 * ATTENTION_OWN_KEYS + 4 * ATTENTION_KEYS) + 96 * ATTENTION_KEYS;
}

inline int64_t panels(int64_t out) { return (out + 15) / 16; }
inline int64_t even(int64_t n) { return (n + 1) / 2 * 2; }
// Size of a packed weight: inputs are zero-padded to pairs, outputs to panels.
inline int64_t packed_size(int64_t in, int64_t out) { return panels(out) * 16 * even(in); }

// The kernels of one instruction set for numbers of type T.
template <typename T>
struct TypedKernels {
  // y = (w + offset) * x * rstd, rstd = 1 / sqrt(mean(x^2) + eps), of rows `begin` to `end`; y [rows, n], `rstd` [rows] or null.
  void (*rms_norm)(const NormRows<T> &norm, int64_t begin, int64_t end, T *y, float *rstd);
  // Gradients; those of w are added to `grad_w`, in order of the rows.
  void (*rms_norm_backward)(const NormRows<T> &norm, int64_t begin, int64_t end, const T *grad_y, const float *rstd, T *grad_x,
                            float *grad_w);
  // Of n numbers: the activation, alone and times `up`.
  void (*activate)(Activation activation, const T *x, T *y, int64_t n);
  void (*activate_backward)(Activation activation, const T *grad_y, const T *x, T *grad_x, int64_t n);
  void (*gated)(Activation activation, const T *gate, const T *up, T *y, int64_t n);
  void (*gated_backward)(Activation activation, const T *grad_y, const T *gate, const T *up, T *grad_gate, T *grad_up, int64_t n);
  // Of tokens `begin` to `end`; y [tokens, heads, head_dim].
  void (*rotate)(const Rotation<T, T> &rotation, int64_t begin, int64_t end, T *y);
  void (*rotate_by_f32)(const Rotation<T, float> &rotation, int64_t begin, int64_t end, T *y);
  // Work items (slot, kv head) `from` to `to`, ordered by slot. `scratch` has `decode_scratch` floats.
  void (*decode_attention)(const DecodeAttention<T> &a, int64_t from, int64_t to, float *scratch);
  // One task each: outputs; gradients of rows; then, once all rows are done, gradients of keys and values. `scratch` has
  // `attention_scratch` floats.
  void (*segment_attention)(const SegmentAttention<T> &a, const AttentionTask &task, float *scratch);
  void (*segment_attention_rows)(const SegmentAttention<T> &a, const AttentionTask &task, float *scratch);
  void (*segment_attention_keys)(const SegmentAttention<T> &a, const AttentionTask &task, float *scratch);
  // Packs a weight [out, in] for `packed_linear`: 16 outputs interleaved, inputs one after another (bf16: in pairs).
  void (*pack)(const T *weight, int64_t in, int64_t out, T *packed);
  // Pairs of inputs `from` to `to` of `rows` rows of x, in the order that `packed_linear` reads; `arranged` has room for
  // rows * even(in) floats.
  void (*arrange)(const T *x, int64_t rows, int64_t in, int64_t from, int64_t to, float *arranged);
  // Panels of 16 outputs `from` to `to`, of the arranged x.
  void (*packed_linear)(const PackedLinear<T> &layer, const float *arranged, int64_t rows, int64_t from, int64_t to);
  // sum += x over columns `from` to `to` of `rows` rows of n.
  void (*add)(const T *x, T *sum, int64_t rows, int64_t n, int64_t from, int64_t to);
  // Samples one of n tokens that `banned` does not mark; `weights` has room for n. Writes the token, its log-softmax of
  // logits * scale over all n, and two numbers. Sampled: the distances of `uniform` to both ends of the token's interval (1 where
  // no token lies beyond). Greedy (`uniform` below 0): the second largest and the largest logit.
  void (*sample_token)(const T *logits, int64_t n, float scale, const bool *banned, double uniform, float *weights, double *out);
  // For rows of n logits: log-sum-exp of logits * scale, and the entropy of their softmax.
  void (*log_sum_exp)(const T *logits, float scale, float *lse, float *entropy, int64_t rows, int64_t n);
  // grad_logits = upstream * scale * ([column == target] - exp(logits * scale - lse)).
  void (*log_prob_backward)(const T *logits, float scale, const float *lse, const float *upstream,
                            const int64_t *targets, T *grad_logits, int64_t rows, int64_t n);
};

// An update by AdamW. `value` and `residual` as in `bf16_master.rs`. Scalars: `decay` = 1 - lr * weight decay, `step_size` = lr over the
// first bias correction, `root_of_correction2` = the root of the second.
struct AdamWBf16Master {
  uint16_t *value;
  int16_t *residual;
  const float *grad;
  float *exp_avg, *exp_avg_sq;
  float decay, one_minus_beta1, beta2, one_minus_beta2, step_size, root_of_correction2, eps;
};

struct Kernels {
  TypedKernels<float> f32;
  TypedKernels<bf16> bf16_;
  void (*adamw_bf16_master)(const AdamWBf16Master &a, int64_t from, int64_t to);
};

template <typename T>
inline int64_t decode_scratch(const DecodeAttention<T> &a) {
  const int64_t padded = (a.prompt_width + a.completion_width + 31) / 16 * 16;
  return 4 * (padded + a.head_dim);
}

extern const Kernels kernels_baseline;
#ifdef VLM_R1_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_bf16;
#endif

// The kernels of the best instruction set that the processor has, or of the one that `VLM_R1_CPU_SET` names.
const Kernels &best_kernels();

}  // namespace vlm_r1

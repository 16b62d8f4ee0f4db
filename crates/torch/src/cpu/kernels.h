// Loops of the model's small operations on the CPU, over raw pointers. `kernels.cpp` is compiled once for each
// instruction set; `fused.cpp` picks the best that the machine has.
//
// Numbers are read as f32, computed in f32 and rounded once, in the type they are stored in.

#pragma once

#include <stdint.h>

namespace vlm_r1 {

struct bf16 {
  uint16_t bits;
};

// Keys and values that one new token of each slot sees: first its prompt's, then its answer's.
template <typename T>
struct DecodeAttention {
  const T *q;  // [slots, heads, head_dim]
  const T *k;  // [slots, kv_heads, head_dim], of the new token; stored at `places`
  const T *v;
  const T *prompt_keys;    // [rows, kv_heads, head_dim, prompt_width]
  const T *prompt_values;  // [rows, kv_heads, prompt_width, head_dim]
  T *answer_keys;          // [slots or more, kv_heads, answer_width, head_dim]
  T *answer_values;
  const int64_t *rows;         // [slots]: row of the prompt
  const int64_t *prompt_lens;  // [slots]
  const int64_t *places;       // [slots]: tokens of the answer before the new one
  T *output;                   // [slots, heads, head_dim]
  int64_t heads, kv_heads, head_dim, prompt_width, answer_width;
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

// A run of tokens that see one another, and before them all of another segment.
struct Segment {
  int64_t start, len, prefix;  // prefix: index of that segment, or -1
};

// Numbers of `x [tokens, heads, head_dim]`, each head's in a row.
template <typename T>
struct Strided {
  T *data;
  int64_t token, head;
};

template <typename T>
struct SegmentAttention {
  Strided<const T> q;     // [tokens, heads, head_dim]
  Strided<const T> k, v;  // [tokens, kv_heads, head_dim]
  const Segment *segments;
  int64_t tokens, heads, kv_heads, head_dim;
  bool causal;
  float scale;
  T *output;   // as q
  float *lse;  // [kv_heads, tokens, heads / kv_heads], base 2: log of the sum of exponentials of a row's scores; null: not wanted
  // On the way back; `dots` as `lse`, written with the gradients of rows and read for those of keys.
  const T *grad_output;
  float *dots;
  T *grad_q, *grad_k, *grad_v;
  // Segments that have segment i as their prefix: `viewers` from `viewers_from[i]` to `viewers_from[i + 1]`.
  const int64_t *viewers_from, *viewers;
};

// Rows (queries of all heads over one key head, token by token) or keys of a segment; `from` is a multiple of 16.
struct AttentionTask {
  int64_t segment, kv_head, from, end;
};
// Most rows of a task, most keys of one, and how many of the other side are packed at a time.
constexpr int64_t ATTENTION_ROWS = 256;
constexpr int64_t ATTENTION_OWN_KEYS = 128;
constexpr int64_t ATTENTION_KEYS = 128;

// Floats of scratch of a task, the largest of the three.
inline int64_t attention_scratch(int64_t head_dim) {
  const int64_t padded = (head_dim + 15) / 16 * 16;
  return padded * (3 * ATTENTION_ROWS + 4 * ATTENTION_OWN_KEYS + 4 * ATTENTION_KEYS) + 96 * ATTENTION_KEYS;
}

inline int64_t panels(int64_t out) { return (out + 15) / 16; }
inline int64_t even(int64_t n) { return (n + 1) / 2 * 2; }
// Numbers of a packed weight: inputs are padded to pairs, outputs to panels, with zeros.
inline int64_t packed_size(int64_t in, int64_t out) { return panels(out) * 16 * even(in); }

// What an instruction set offers for numbers of type T.
template <typename T>
struct TypedKernels {
  // y = w * x * rstd, rstd = 1 / sqrt(mean(x^2) + eps), for `rows` rows of n.
  void (*rms_norm)(const T *x, const T *w, T *y, float *rstd, int64_t rows, int64_t n, float eps);
  // Gradients; those of w are added to `grad_w`, in order of the rows.
  void (*rms_norm_backward)(const T *grad_y, const T *x, const T *w, const float *rstd, T *grad_x, float *grad_w,
                            int64_t rows, int64_t n);
  // silu(gate) * up, n numbers.
  void (*swiglu)(const T *gate, const T *up, T *y, int64_t n);
  void (*swiglu_backward)(const T *grad_y, const T *gate, const T *up, T *grad_gate, T *grad_up, int64_t n);
  // Turns `heads` heads of each token by its angles; `sign` -1 turns back. Tables in T or f32, [tokens, head_dim].
  void (*rotate)(const T *x, int64_t token_stride, int64_t head_stride, const T *cos, const T *sin, float sign, T *y,
                 int64_t tokens, int64_t heads, int64_t head_dim);
  void (*rotate_by_f32)(const T *x, int64_t token_stride, int64_t head_stride, const float *cos, const float *sin,
                        float sign, T *y, int64_t tokens, int64_t heads, int64_t head_dim);
  // Pairs of slot and key head, `from` to `to`, numbered slot by slot. `scratch` has `decode_scratch` floats.
  void (*decode_attention)(const DecodeAttention<T> &a, int64_t from, int64_t to, float *scratch);
  // One task each: outputs; gradients of rows; gradients of keys and values, after those of all rows. `scratch` has
  // `attention_scratch` floats.
  void (*segment_attention)(const SegmentAttention<T> &a, const AttentionTask &task, float *scratch);
  void (*segment_attention_rows)(const SegmentAttention<T> &a, const AttentionTask &task, float *scratch);
  void (*segment_attention_keys)(const SegmentAttention<T> &a, const AttentionTask &task, float *scratch);
  // A weight [out, in] as `packed_linear` reads it: 16 outputs side by side, inputs one after another (bf16: in pairs).
  void (*pack)(const T *weight, int64_t in, int64_t out, T *packed);
  // Pairs of inputs `from` to `to` of `rows` rows of x, in the order in which `packed_linear` needs them; `arranged` has room for
  // rows * even(in) floats.
  void (*arrange)(const T *x, int64_t rows, int64_t in, int64_t from, int64_t to, float *arranged);
  // Panels of 16 outputs `from` to `to`, of the arranged x.
  void (*packed_linear)(const PackedLinear<T> &layer, const float *arranged, int64_t rows, int64_t from, int64_t to);
  // sum += x over columns `from` to `to` of `rows` rows of n.
  void (*add)(const T *x, T *sum, int64_t rows, int64_t n, int64_t from, int64_t to);
  // Chooses one of n tokens that `banned` does not mark; `weights` has room for n. Writes the token, its log-softmax
  // of logits * scale over all n, and: drawn, the distances of the draw to both ends of the token's interval (1 where nothing
  // lies beyond); greedy (`draw` below 0), the second largest and the largest logit.
  void (*choose)(const T *logits, int64_t n, float scale, const bool *banned, double draw, float *weights, double *out);
  // For rows of n logits: log of the sum of exponentials of logits * scale, and the entropy of their softmax.
  void (*log_sum_exp)(const T *logits, float scale, float *lse, float *entropy, int64_t rows, int64_t n);
  // grad_logits = upstream * scale * ([column == target] - exp(logits * scale - lse)).
  void (*log_prob_backward)(const T *logits, float scale, const float *lse, const float *upstream,
                            const int64_t *targets, T *grad_logits, int64_t rows, int64_t n);
};

// An update by AdamW. `value` and `rest` as in `split.rs`; numbers that are the same for all: 1 - lr * weight decay, 1 - beta1, beta2,
// 1 - beta2, lr over the first bias correction, the root of the second, eps.
struct AdamWSplit {
  uint16_t *value;
  int16_t *rest;
  const float *grad;
  float *exp_avg, *exp_avg_sq;
  float decay, rest1, beta2, rest2, step_size, root_of_correction2, eps;
};

struct Kernels {
  TypedKernels<float> f32;
  TypedKernels<bf16> bf16_;
  void (*adamw_split)(const AdamWSplit &a, int64_t from, int64_t to);
};

template <typename T>
inline int64_t decode_scratch(const DecodeAttention<T> &a) {
  const int64_t padded = (a.prompt_width + a.answer_width + 31) / 16 * 16;
  return 4 * (padded + a.head_dim);
}

extern const Kernels kernels_baseline;
#ifdef VLM_R1_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_bf16;
#endif

}  // namespace vlm_r1

// Decoding attention: one new token per slot over its prompt and its completion so far.

#pragma once

#include "simd.h"

namespace vlm_r1 {
namespace {

// Scores of Q queries with `keys` keys from `first` stored transposed, [head_dim, width]; 16 keys are read at a time.
template <int Q, typename T>
inline void scores_of_columns(const float *q, const T *columns, int64_t width, int64_t first, int64_t keys, int64_t head_dim,
                              float *scores, int64_t stride) {
  columns += first;
  int64_t j = 0;
  for (; j + 2 * LANES <= keys; j += 2 * LANES) {
    Lanes low[Q] = {}, high[Q] = {};
    for (int64_t d = 0; d < head_dim; ++d) {
      const Lanes a = load(columns + d * width + j), b = load(columns + d * width + j + LANES);
      for (int i = 0; i < Q; ++i) {
        low[i] += a * q[i * head_dim + d];
        high[i] += b * q[i * head_dim + d];
      }
    }
    for (int i = 0; i < Q; ++i) {
      store(scores + i * stride + j, low[i]);
      store(scores + i * stride + j + LANES, high[i]);
    }
  }
  for (; j < keys; j += LANES) {
    const int64_t left = width - first - j, len = left < LANES ? left : LANES;
    Lanes sums[Q] = {};
    for (int64_t d = 0; d < head_dim; ++d) {
      const Lanes a = get(columns + d * width + j, len);
      for (int i = 0; i < Q; ++i) sums[i] += a * q[i * head_dim + d];
    }
    for (int i = 0; i < Q; ++i) store(scores + i * stride + j, sums[i]);
  }
}

// The same with keys stored as [keys, head_dim].
template <int Q, typename T>
inline void scores_of_rows(const float *q, const T *rows, int64_t keys, int64_t head_dim, float *scores,
                           int64_t stride) {
  for (int64_t j = 0; j < keys; ++j, rows += head_dim) {
    Lanes sums[Q] = {};
    in_lanes(head_dim, [&](int64_t d, int64_t len) {
      const Lanes key = get(rows + d, len);
      for (int i = 0; i < Q; ++i) sums[i] += key * get(q + i * head_dim + d, len);
    });
    for (int i = 0; i < Q; ++i) scores[i * stride + j] = sum(sums[i]);
  }
}

// output[i] += sum over j of weights[i][j] * values[j].
template <int Q, typename T>
inline void add_weighted(const float *weights, int64_t stride, const T *values, int64_t keys, int64_t head_dim,
                         float *output) {
  in_lanes(head_dim, [&](int64_t d, int64_t len) {
    Lanes sums[Q];
    for (int i = 0; i < Q; ++i) sums[i] = get(output + i * head_dim + d, len);
    if (len == LANES) {
      for (int64_t j = 0; j < keys; ++j) {
        const Lanes value = load(values + j * head_dim + d);
        for (int i = 0; i < Q; ++i) sums[i] += value * weights[i * stride + j];
      }
    } else {
      for (int64_t j = 0; j < keys; ++j) {
        const Lanes value = load_some(values + j * head_dim + d, len);
        for (int i = 0; i < Q; ++i) sums[i] += value * weights[i * stride + j];
      }
    }
    for (int i = 0; i < Q; ++i) put(output + i * head_dim + d, sums[i], len);
  });
}

// Replaces scores by exp(score - largest) and returns 1 / their sum (softmax without the division). Up to 15 numbers behind the
// last are overwritten; what they add to the sum is too small to count.
inline float soften(float *scores, int64_t n, float scale) {
  for (int64_t i = n; i % LANES != 0; ++i) scores[i] = -INFINITY;
  Lanes most = all(-INFINITY);
  for (int64_t i = 0; i < n; i += LANES) most = greater(load(scores + i), most);
  const float top = largest(most);
  Lanes total = {};
  for (int64_t i = 0; i < n; i += LANES) {
    const Lanes weight = exponential((load(scores + i) - top) * scale);
    store(scores + i, weight);
    total += weight;
  }
  return 1.0f / sum(total);
}

// Q queries of one slot over one key head.
template <int Q, typename T>
inline void attend(const DecodeAttention<T> &a, int64_t slot, int64_t kv_head, int64_t first_head, float *scratch) {
  const int64_t dim = a.head_dim, first = a.first ? a.first[slot] : 0, prompt_len = a.prompt_lens[slot];
  const int64_t first_prompt = first < prompt_len ? first : prompt_len, first_completion = first - first_prompt;
  const int64_t prompt = prompt_len - first_prompt, completion = a.completion_lens[slot] + 1 - first_completion;
  const int64_t row = a.prompt_indices[slot] * a.kv_heads + kv_head, own = slot * a.kv_heads + kv_head;
  // Scores of the prompt are written 16 at a time: those behind its end are overwritten by the completion's.
  const int64_t stride = (a.prompt_width + a.completion_width + 31) / 16 * 16;
  float *scores = scratch, *q = scratch + Q * stride;
  const T *from = a.q + (slot * a.heads + first_head) * dim;
  for (int64_t i = 0; i < Q * dim; ++i) q[i] = read(from + i);
  const T *prompt_keys = a.prompt_keys + row * dim * a.prompt_width;
  const int64_t prompt_value = row * a.prompt_width + first_prompt, own_key = own * a.completion_width + first_completion;
  scores_of_columns<Q>(q, prompt_keys, a.prompt_width, first_prompt, prompt, dim, scores, stride);
  scores_of_rows<Q>(q, a.completion_keys + own_key * dim, completion, dim, scores + prompt, stride);
  float inverse[Q];
  for (int i = 0; i < Q; ++i) inverse[i] = soften(scores + i * stride, prompt + completion, a.scale);
  float *sums = q;
  for (int64_t i = 0; i < Q * dim; ++i) sums[i] = 0;
  add_weighted<Q>(scores, stride, a.prompt_values + prompt_value * dim, prompt, dim, sums);
  add_weighted<Q>(scores + prompt, stride, a.completion_values + own_key * dim, completion, dim, sums);
  T *to = a.output + (slot * a.heads + first_head) * dim;
  for (int i = 0; i < Q; ++i) {
    for (int64_t d = 0; d < dim; ++d) write(to + i * dim + d, sums[i * dim + d] * inverse[i]);
  }
}

template <typename T>
void decode_attention(const DecodeAttention<T> &a, int64_t from, int64_t to, float *scratch) {
  const int64_t repeats = a.heads / a.kv_heads;
  for (int64_t pair = from; pair < to; ++pair) {
    const int64_t slot = pair / a.kv_heads, kv_head = pair % a.kv_heads;
    const int64_t offset = (pair * a.completion_width + a.completion_lens[slot]) * a.head_dim;
    memcpy(a.completion_keys + offset, a.k + pair * a.head_dim, a.head_dim * sizeof(T));
    memcpy(a.completion_values + offset, a.v + pair * a.head_dim, a.head_dim * sizeof(T));
    int64_t head = kv_head * repeats;
    const int64_t end = head + repeats;
    for (; head + 4 <= end; head += 4) attend<4>(a, slot, kv_head, head, scratch);
    for (; head + 2 <= end; head += 2) attend<2>(a, slot, kv_head, head, scratch);
    for (; head < end; ++head) attend<1>(a, slot, kv_head, head, scratch);
  }
}

}  // namespace
}  // namespace vlm_r1

// See `kernels.h`. Compiled once for each instruction set, under another name (`VLM_R1_SET`). Nothing but plain C headers and functions
// of this file may be used here: an inline function of a library, compiled for AVX-512, could be the copy that the
// linker keeps for everybody.

#include "kernels.h"

#include <math.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace vlm_r1 {
namespace {

// Sixteen numbers; the compiler splits them where registers are narrower.
typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t IntLanes __attribute__((vector_size(64)));
typedef uint32_t WideLanes __attribute__((vector_size(64)));
typedef uint16_t HalfLanes __attribute__((vector_size(32)));
constexpr int64_t LANES = 16;

inline Lanes all(float x) { return Lanes{} + x; }

inline Lanes load(const float *p) {
  Lanes x;
  memcpy(&x, p, sizeof x);
  return x;
}

inline Lanes load(const bf16 *p) {
  HalfLanes half;
  memcpy(&half, p, sizeof half);
  return (Lanes)(__builtin_convertvector(half, WideLanes) << 16);
}

inline void store(float *p, Lanes x) { memcpy(p, &x, sizeof x); }

// To the nearest, ties to even; a NaN stays one.
inline void store(bf16 *p, Lanes x) {
  const WideLanes bits = (WideLanes)x;
  const WideLanes rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const IntLanes is_nan = x != x;
  const WideLanes result = ((WideLanes)is_nan & 0x7fc0u) | (~(WideLanes)is_nan & rounded);
  const HalfLanes half = __builtin_convertvector(result, HalfLanes);
  memcpy(p, &half, sizeof half);
}

inline float read(const float *p) { return *p; }
inline float read(const bf16 *p) {
  const uint32_t bits = (uint32_t)p->bits << 16;
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
inline void write(float *p, float x) { *p = x; }
inline void write(bf16 *p, float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  p->bits = x != x ? 0x7fc0u : (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// The first `n` < 16 numbers; zeros behind them.
template <typename T>
inline Lanes load_some(const T *p, int64_t n) {
  Lanes x = {};
  for (int64_t i = 0; i < n; ++i) x[i] = read(p + i);
  return x;
}
template <typename T>
inline void store_some(T *p, Lanes x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) write(p + i, x[i]);
}

typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));

inline float sum(Lanes x) {
  Eight eight[2];
  memcpy(eight, &x, sizeof x);
  eight[0] += eight[1];
  Four four[2];
  memcpy(four, eight, sizeof four);
  four[0] += four[1];
  return (four[0][0] + four[0][2]) + (four[0][1] + four[0][3]);
}
inline float largest(Lanes x) {
  float most = x[0];
  for (int i = 1; i < LANES; ++i) most = x[i] > most ? x[i] : most;
  return most;
}
inline Lanes greater(Lanes a, Lanes b) { return a > b ? a : b; }

// e^x within 2 units in the last place; below -87.3 as at -87.3, above 88.3 as there. A NaN stays one.
inline Lanes exponential(Lanes x) {
  x = x < all(-87.3f) ? all(-87.3f) : x;
  x = x > all(88.3f) ? all(88.3f) : x;
  // Adding 1.5 * 2^23 rounds to an integer.
  const Lanes magic = all(12582912.0f);
  const Lanes n = (x * 1.44269504088896341f + magic) - magic;
  const Lanes r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const IntLanes exponent = (__builtin_convertvector(n, IntLanes) + 127) << 23;
  return p * (Lanes)exponent;
}

inline float exponential(float x) { return exponential(all(x))[0]; }

// Calls `body(i, n)` for i in steps of 16, n < 16 at the end only.
template <typename F>
inline void in_lanes(int64_t n, F &&body) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) body(i, LANES);
  if (i < n) body(i, n - i);
}
template <typename T>
inline Lanes get(const T *p, int64_t n) {
  return n == LANES ? load(p) : load_some(p, n);
}
template <typename T>
inline void put(T *p, Lanes x, int64_t n) {
  if (n == LANES) {
    store(p, x);
  } else {
    store_some(p, x, n);
  }
}

template <typename T>
void rms_norm(const T *x, const T *w, T *y, float *rstd, int64_t rows, int64_t n, float eps) {
  for (int64_t row = 0; row < rows; ++row, x += n, y += n) {
    Lanes squares = {};
    in_lanes(n, [&](int64_t i, int64_t len) {
      const Lanes value = get(x + i, len);
      squares += value * value;
    });
    const float factor = 1.0f / sqrtf(sum(squares) / (float)n + eps);
    rstd[row] = factor;
    in_lanes(n, [&](int64_t i, int64_t len) { put(y + i, get(x + i, len) * factor * get(w + i, len), len); });
  }
}

template <typename T>
void rms_norm_backward(const T *grad_y, const T *x, const T *w, const float *rstd, T *grad_x, float *grad_w,
                       int64_t rows, int64_t n) {
  for (int64_t row = 0; row < rows; ++row, x += n, grad_y += n, grad_x += n) {
    const float factor = rstd[row];
    Lanes products = {};
    in_lanes(n, [&](int64_t i, int64_t len) {
      const Lanes g = get(grad_y + i, len), value = get(x + i, len);
      products += g * get(w + i, len) * value;
      put(grad_w + i, get(grad_w + i, len) + g * value * factor, len);
    });
    const float shrink = sum(products) / (float)n * factor * factor;
    in_lanes(n, [&](int64_t i, int64_t len) {
      const Lanes g = get(grad_y + i, len) * get(w + i, len);
      put(grad_x + i, (g - get(x + i, len) * shrink) * factor, len);
    });
  }
}

template <typename T>
void swiglu(const T *gate, const T *up, T *y, int64_t n) {
  in_lanes(n, [&](int64_t i, int64_t len) {
    const Lanes g = get(gate + i, len);
    put(y + i, g / (exponential(-g) + 1.0f) * get(up + i, len), len);
  });
}

template <typename T>
void swiglu_backward(const T *grad_y, const T *gate, const T *up, T *grad_gate, T *grad_up, int64_t n) {
  in_lanes(n, [&](int64_t i, int64_t len) {
    const Lanes g = get(gate + i, len), upstream = get(grad_y + i, len);
    const Lanes sigmoid = 1.0f / (exponential(-g) + 1.0f);
    put(grad_up + i, upstream * g * sigmoid, len);
    put(grad_gate + i, upstream * get(up + i, len) * sigmoid * ((1.0f - sigmoid) * g + 1.0f), len);
  });
}

template <typename T, typename A>
void rotate(const T *x, int64_t token_stride, int64_t head_stride, const A *cos, const A *sin, float sign, T *y,
            int64_t tokens, int64_t heads, int64_t head_dim) {
  const int64_t half = head_dim / 2;
  for (int64_t token = 0; token < tokens; ++token, cos += head_dim, sin += head_dim) {
    for (int64_t head = 0; head < heads; ++head, y += head_dim) {
      const T *from = x + token * token_stride + head * head_stride;
      in_lanes(half, [&](int64_t i, int64_t len) {
        const Lanes c = get(cos + i, len), s = get(sin + i, len) * sign;
        const Lanes a = get(from + i, len), b = get(from + half + i, len);
        put(y + i, a * c - b * s, len);
        put(y + half + i, b * c + a * s, len);
      });
    }
  }
}

// Scores of Q queries with `keys` keys that lie as columns of [head_dim, width]; 16 columns are read at a time.
template <int Q, typename T>
inline void scores_of_columns(const float *q, const T *columns, int64_t width, int64_t keys, int64_t head_dim,
                              float *scores, int64_t stride) {
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
    const int64_t len = width - j < LANES ? width - j : LANES;
    Lanes sums[Q] = {};
    for (int64_t d = 0; d < head_dim; ++d) {
      const Lanes a = get(columns + d * width + j, len);
      for (int i = 0; i < Q; ++i) sums[i] += a * q[i * head_dim + d];
    }
    for (int i = 0; i < Q; ++i) store(scores + i * stride + j, sums[i]);
  }
}

// The same with keys that lie as rows of [keys, head_dim].
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

// Scores to exponentials of their distance from the largest; returns one over their sum. Up to 15 numbers behind the
// last are overwritten; the least exponential is too small to count.
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
  const int64_t dim = a.head_dim, prompt = a.prompt_lens[slot], answer = a.places[slot] + 1;
  const int64_t row = a.rows[slot] * a.kv_heads + kv_head, own = slot * a.kv_heads + kv_head;
  // Scores of the prompt are written 16 at a time: those behind its end are overwritten by the answer's.
  const int64_t stride = (a.prompt_width + a.answer_width + 31) / 16 * 16;
  float *scores = scratch, *q = scratch + Q * stride;
  const T *from = a.q + (slot * a.heads + first_head) * dim;
  for (int64_t i = 0; i < Q * dim; ++i) q[i] = read(from + i);
  scores_of_columns<Q>(q, a.prompt_keys + row * dim * a.prompt_width, a.prompt_width, prompt, dim, scores, stride);
  scores_of_rows<Q>(q, a.answer_keys + own * a.answer_width * dim, answer, dim, scores + prompt, stride);
  float inverse[Q];
  for (int i = 0; i < Q; ++i) inverse[i] = soften(scores + i * stride, prompt + answer, a.scale);
  float *sums = q;
  for (int64_t i = 0; i < Q * dim; ++i) sums[i] = 0;
  add_weighted<Q>(scores, stride, a.prompt_values + row * a.prompt_width * dim, prompt, dim, sums);
  add_weighted<Q>(scores + prompt, stride, a.answer_values + own * a.answer_width * dim, answer, dim, sums);
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
    const int64_t line = (pair * a.answer_width + a.places[slot]) * a.head_dim;
    memcpy(a.answer_keys + line, a.k + pair * a.head_dim, a.head_dim * sizeof(T));
    memcpy(a.answer_values + line, a.v + pair * a.head_dim, a.head_dim * sizeof(T));
    int64_t head = kv_head * repeats;
    const int64_t end = head + repeats;
    for (; head + 4 <= end; head += 4) attend<4>(a, slot, kv_head, head, scratch);
    for (; head + 2 <= end; head += 2) attend<2>(a, slot, kv_head, head, scratch);
    for (; head < end; ++head) attend<1>(a, slot, kv_head, head, scratch);
  }
}

// Rows multiplied at a time: their sums stay in registers.
#ifdef __AVX512F__
constexpr int MOST_ROWS = 16;
#else
constexpr int MOST_ROWS = 4;
#endif

template <typename T>
void pack(const T *weight, int64_t in, int64_t out, T *packed) {
  const int64_t pair = sizeof(T) == 2 ? 2 : 1, groups = (in + pair - 1) / pair;
  const int64_t panel_size = packed_size(in, 16);
  for (int64_t panel = 0; panel < panels(out); ++panel) {
    T *to = packed + panel * panel_size;
    for (int64_t group = 0; group < groups; ++group) {
      for (int64_t lane = 0; lane < LANES; ++lane) {
        const int64_t output = panel * LANES + lane;
        for (int64_t i = 0; i < pair; ++i) {
          const int64_t input = group * pair + i;
          const bool there = output < out && input < in;
          *to++ = there ? weight[output * in + input] : T{};
        }
      }
    }
  }
}

template <int R>
inline void multiply(const float *panel, const float *, const float *x, int64_t in, Lanes *sums) {
  Lanes s[R] = {};
  for (int64_t i = 0; i < in; ++i) {
    const Lanes w = load(panel + i * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) s[r] += w * x[r * in + i];
  }
  for (int r = 0; r < R; ++r) sums[r] = s[r];
}

#ifdef __AVX512BF16__
template <int R>
inline void multiply(const bf16 *panel, const bf16 *x, const float *, int64_t in, Lanes *sums) {
  __m512 s[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) s[r] = _mm512_setzero_ps();
  const auto add = [&](int64_t i, const int32_t *pairs) {
    const __m512bh w = (__m512bh)_mm512_loadu_si512(panel + i * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) s[r] = _mm512_dpbf16_ps(s[r], w, (__m512bh)_mm512_set1_epi32(pairs[r]));
  };
  int32_t pairs[R];
  int64_t i = 0;
  for (; i + 2 <= in; i += 2) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) memcpy(&pairs[r], x + r * in + i, 4);
    add(i, pairs);
  }
  if (i < in) {
    for (int r = 0; r < R; ++r) pairs[r] = x[r * in + i].bits;
    add(i, pairs);
  }
  for (int r = 0; r < R; ++r) sums[r] = (Lanes)s[r];
}
#else
template <int R>
inline void multiply(const bf16 *panel, const bf16 *, const float *x, int64_t in, Lanes *sums) {
  Lanes s[R] = {};
  for (int64_t i = 0; i < in; i += 2) {
    WideLanes pair;
    memcpy(&pair, panel + i * LANES, sizeof pair);
    const Lanes even = (Lanes)(pair << 16), odd = (Lanes)(pair & 0xffff0000u);
    const bool both = i + 1 < in;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      s[r] += even * x[r * in + i];
      if (both) s[r] += odd * x[r * in + i + 1];
    }
  }
  for (int r = 0; r < R; ++r) sums[r] = s[r];
}
#endif

template <int R, typename T>
inline void multiply_rows(const PackedLinear<T> &layer, int64_t panel, const T *x, const float *x32, int64_t row) {
  Lanes sums[R];
  multiply<R>(layer.packed + panel * packed_size(layer.in, 16), x + row * layer.in, x32 + row * layer.in, layer.in,
              sums);
  const int64_t output = panel * LANES, len = layer.out - output < LANES ? layer.out - output : LANES;
  const Lanes bias = layer.bias ? get(layer.bias + output, len) : Lanes{};
  for (int r = 0; r < R; ++r) put(layer.y + (row + r) * layer.out + output, sums[r] + bias, len);
}

template <typename T>
void packed_linear(const PackedLinear<T> &layer, const T *x, const float *x32, int64_t rows, int64_t from,
                   int64_t to) {
  for (int64_t panel = from; panel < to; ++panel) {
    int64_t row = 0;
    for (; row + MOST_ROWS <= rows; row += MOST_ROWS) multiply_rows<MOST_ROWS>(layer, panel, x, x32, row);
    if (MOST_ROWS > 8 && row + 8 <= rows) multiply_rows<8>(layer, panel, x, x32, row), row += 8;
    if (MOST_ROWS > 4 && row + 4 <= rows) multiply_rows<4>(layer, panel, x, x32, row), row += 4;
    if (row + 2 <= rows) multiply_rows<2>(layer, panel, x, x32, row), row += 2;
    if (row < rows) multiply_rows<1>(layer, panel, x, x32, row);
  }
}

// Vectors whose sum is taken in f32 before it is added up in f64.
constexpr int64_t BLOCK = 64 * LANES;

template <typename T>
inline float largest_of(const T *x, int64_t n) {
  Lanes most = all(-INFINITY);
  const int64_t whole = n / LANES * LANES;
  for (int64_t i = 0; i < whole; i += LANES) most = greater(load(x + i), most);
  float top = largest(most);
  for (int64_t i = whole; i < n; ++i) top = read(x + i) > top ? read(x + i) : top;
  return top;
}

// Over n numbers: the sums of e^y and of y e^y, y = (x - top) * scale; e^y to `weights` where that is not null.
struct Sums {
  double total = 0, moment = 0;
};
template <typename T>
inline Sums sum_exponentials(const T *x, int64_t n, float top, float scale, float *weights) {
  Sums sums;
  for (int64_t block = 0; block < n; block += BLOCK) {
    const int64_t end = block + BLOCK < n ? block + BLOCK : n;
    Lanes totals = {}, moments = {};
    int64_t i = block;
    for (; i + LANES <= end; i += LANES) {
      const Lanes y = (load(x + i) - top) * scale, weight = exponential(y);
      if (weights) store(weights + i, weight);
      totals += weight;
      moments += weight * y;
    }
    for (; i < end; ++i) {
      const float y = (read(x + i) - top) * scale, weight = exponential(y);
      if (weights) weights[i] = weight;
      sums.total += weight;
      sums.moment += weight * y;
    }
    sums.total += sum(totals);
    sums.moment += sum(moments);
  }
  return sums;
}

template <typename T>
void log_sum_exp(const T *logits, float scale, float *lse, float *entropy, int64_t rows, int64_t n) {
  for (int64_t row = 0; row < rows; ++row, logits += n) {
    const float top = largest_of(logits, n);
    const Sums sums = sum_exponentials(logits, n, top, scale, nullptr);
    const double log_total = log(sums.total);
    lse[row] = (float)(top * scale + log_total);
    entropy[row] = (float)(log_total - sums.moment / sums.total);
  }
}

// Probabilities become integers of this many units before they are added: such sums are exact in any order.
constexpr double UNITS = 4503599627370496.0;  // 2^52

inline int64_t units(float weight, float inverse) { return (int64_t)((double)(weight * inverse) * UNITS); }

template <typename T>
void choose(const T *logits, int64_t n, float scale, const bool *banned, double draw, float *weights, double *out) {
  const float top = largest_of(logits, n);
  const Sums sums = sum_exponentials(logits, n, top, scale, weights);
  const double lse = top * scale + log(sums.total);
  const auto finish = [&](int64_t id, double low, double high) {
    out[0] = (double)id;
    out[1] = read(logits + id) * scale - lse;
    out[2] = low;
    out[3] = high;
    out[4] = 0;
  };
  if (draw < 0) {
    int64_t best = 0;
    float high = -INFINITY, low = -INFINITY;
    for (int64_t i = 0; i < n; ++i) {
      const float x = banned[i] ? -INFINITY : read(logits + i);
      if (x > high) {
        low = high;
        high = x;
        best = i;
      } else if (x > low) {
        low = x;
      }
    }
    return finish(best, low, high);
  }
  double allowed = 0;
  for (int64_t i = 0; i < n; ++i) {
    weights[i] = banned[i] ? 0 : weights[i];
    allowed += weights[i];
  }
  // Also where the logits are no numbers: the caller refuses such a row by its log-probability.
  if (!(allowed > 0)) return finish(0, 1, 1);
  const float inverse = (float)(1 / allowed);
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += units(weights[i], inverse);
  const int64_t target = (int64_t)(draw * (double)total);  // below `total`, since a draw is below 1
  int64_t start = 0;
  for (int64_t block = 0; block < n; block += BLOCK) {
    const int64_t last = block + BLOCK < n ? block + BLOCK : n;
    int64_t size = 0;
    for (int64_t i = block; i < last; ++i) size += units(weights[i], inverse);
    if (start + size <= target) {
      start += size;
      continue;
    }
    for (int64_t i = block; i < last; ++i) {
      const int64_t end = start + units(weights[i], inverse);
      if (end > target) {
        const double low = start <= 0 ? 1 : (double)(target - start) / (double)total;
        const double high = end >= total ? 1 : (double)(end - target) / (double)total;
        return finish(i, low, high);
      }
      start = end;
    }
  }
  finish(0, 1, 1);
}

template <typename T>
void log_prob_backward(const T *logits, float scale, const float *lse, const float *upstream, const int64_t *targets,
                       T *grad_logits, int64_t rows, int64_t n) {
  for (int64_t row = 0; row < rows; ++row, logits += n, grad_logits += n) {
    const float factor = upstream[row] * scale, top = lse[row];
    in_lanes(n, [&](int64_t i, int64_t len) {
      put(grad_logits + i, exponential(get(logits + i, len) * scale - top) * -factor, len);
    });
    const int64_t target = targets[row];
    const float p = exponential(read(logits + target) * scale - top);
    write(grad_logits + target, factor * (1.0f - p));
  }
}

template <typename T>
constexpr TypedKernels<T> table() {
  return {rms_norm<T>,         rms_norm_backward<T>, swiglu<T>,        swiglu_backward<T>, rotate<T, T>,
          rotate<T, float>,    decode_attention<T>,  pack<T>,          packed_linear<T>,   choose<T>,
          log_sum_exp<T>,      log_prob_backward<T>};
}

}  // namespace

extern const Kernels VLM_R1_SET = {table<float>(), table<bf16>()};

}  // namespace vlm_r1

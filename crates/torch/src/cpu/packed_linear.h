// Linear layers for few rows of input, by weights in the order in which they are read.

#pragma once

#include "lanes.h"

namespace vlm_r1 {
namespace {

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

}  // namespace
}  // namespace vlm_r1

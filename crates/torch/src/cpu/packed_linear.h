// Linear layers for few rows of input; weights are packed in the order in which they are read.

#pragma once

#include "simd.h"

namespace vlm_r1 {
namespace {

// Rows multiplied at a time: their sums stay in registers.
#ifdef __AVX512F__
constexpr int MOST_ROWS = 16;
#else
constexpr int MOST_ROWS = 4;
#endif
// How far ahead weights are prefetched; the hardware prefetcher stops at the end of a page.
constexpr int64_t AHEAD_BYTES = 4096;

template <typename T>
void pack(const T *weight, int64_t in, int64_t out, T *packed) {
  const int64_t pair = sizeof(T) == 2 ? 2 : 1, groups = even(in) / pair;
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

// Calls `body(row, R)` for blocks of R = 16, 8, 4, 2 or 1 rows; R is a compile-time constant.
template <int R>
struct Rows {
  static constexpr int COUNT = R;
};
template <typename F>
inline void in_row_blocks(int64_t rows, F &&body) {
  int64_t row = 0;
  for (; row + MOST_ROWS <= rows; row += MOST_ROWS) body(row, Rows<MOST_ROWS>{});
  if (MOST_ROWS > 8 && row + 8 <= rows) body(row, Rows<8>{}), row += 8;
  if (MOST_ROWS > 4 && row + 4 <= rows) body(row, Rows<4>{}), row += 4;
  if (row + 2 <= rows) body(row, Rows<2>{}), row += 2;
  if (row < rows) body(row, Rows<1>{});
}

// Arranged input: the rows of a block interleaved, in f32, or in pairs where bf16 is multiplied in pairs.
template <typename T>
void arrange(const T *x, int64_t rows, int64_t in, int64_t from, int64_t to, float *arranged) {
  in_row_blocks(rows, [&](int64_t row, auto block) {
    constexpr int R = decltype(block)::COUNT;
    const T *first = x + row * in;
    float *out = arranged + row * even(in);
#ifdef __AVX512BF16__
    if constexpr (sizeof(T) == 2) {
      const int64_t whole = to < in / 2 ? to : in / 2;
      for (int64_t pair = from; pair < whole; ++pair) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) memcpy(out + pair * R + r, first + r * in + 2 * pair, 4);
      }
      for (int r = 0; whole < to && r < R; ++r) {
        const uint32_t last = first[r * in + in - 1].bits;
        memcpy(out + whole * R + r, &last, 4);
      }
      return;
    }
#endif
    const int64_t whole = 2 * to < in ? 2 * to : in;
    for (int64_t i = 2 * from; i < whole; ++i) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) out[i * R + r] = read(first + r * in + i);
    }
    for (int r = 0; whole < 2 * to && r < R; ++r) out[whole * R + r] = 0;
  });
}

template <int R>
inline void multiply(const float *panel, const float *x, int64_t in, Lanes *sums) {
  Lanes s[R] = {};
  for (int64_t i = 0; i < in; ++i) {
    __builtin_prefetch(panel + i * LANES + AHEAD_BYTES / 4);
    const Lanes w = load(panel + i * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) s[r] += w * x[i * R + r];
  }
  for (int r = 0; r < R; ++r) sums[r] = s[r];
}

#ifdef __AVX512BF16__
template <int R>
inline void multiply(const bf16 *panel, const float *x, int64_t in, Lanes *sums) {
  __m512 s[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) s[r] = _mm512_setzero_ps();
  for (int64_t i = 0; i < in; i += 2) {
    __builtin_prefetch(panel + i * LANES + AHEAD_BYTES / 2);
    const __m512bh w = (__m512bh)_mm512_loadu_si512(panel + i * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      memcpy(&pair, x + i / 2 * R + r, sizeof pair);
      s[r] = _mm512_dpbf16_ps(s[r], w, (__m512bh)_mm512_set1_epi32(pair));
    }
  }
  for (int r = 0; r < R; ++r) sums[r] = (Lanes)s[r];
}
#else
template <int R>
inline void multiply(const bf16 *panel, const float *x, int64_t in, Lanes *sums) {
  Lanes s[R] = {};
  for (int64_t i = 0; i < in; i += 2) {
    __builtin_prefetch(panel + i * LANES + AHEAD_BYTES / 2);
    WideLanes pair;
    memcpy(&pair, panel + i * LANES, sizeof pair);
    const Lanes first = (Lanes)(pair << 16), second = (Lanes)(pair & 0xffff0000u);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) s[r] = s[r] + first * x[i * R + r] + second * x[(i + 1) * R + r];
  }
  for (int r = 0; r < R; ++r) sums[r] = s[r];
}
#endif

template <typename T>
void packed_linear(const PackedLinear<T> &layer, const float *arranged, int64_t rows, int64_t from, int64_t to) {
  const int64_t in = even(layer.in);
  for (int64_t panel = from; panel < to; ++panel) {
    const int64_t output = panel * LANES, len = layer.out - output < LANES ? layer.out - output : LANES;
    const Lanes bias = layer.bias ? get(layer.bias + output, len) : Lanes{};
    in_row_blocks(rows, [&](int64_t row, auto block) {
      constexpr int R = decltype(block)::COUNT;
      Lanes sums[R];
      multiply<R>(layer.packed + panel * packed_size(layer.in, 16), arranged + row * in, in, sums);
      for (int r = 0; r < R; ++r) put(layer.y + (row + r) * layer.out + output, sums[r] + bias, len);
    });
  }
}

// to += x over columns `from` to `to` of `rows` rows, `n` apart.
template <typename T>
void add(const T *x, T *sum, int64_t rows, int64_t n, int64_t from, int64_t to) {
  for (int64_t row = 0; row < rows; ++row, x += n, sum += n) {
    in_lanes(to - from, [&](int64_t i, int64_t len) {
      put(sum + from + i, get(sum + from + i, len) + get(x + from + i, len), len);
    });
  }
}

}  // namespace
}  // namespace vlm_r1

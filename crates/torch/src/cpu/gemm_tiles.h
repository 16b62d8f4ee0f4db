// Matrix products in tiles. A panel is 16 rows (or channels) interleaved, stored as 32-bit words along the summed dimension.
// A word is one f32 number, or two bf16 numbers where the processor multiplies bf16 in pairs.

#pragma once

#include "simd.h"

namespace vlm_r1 {
namespace {

template <typename T>
struct Word {
  static constexpr int64_t NUMBERS = 1;
};
#ifdef __AVX512BF16__
template <>
struct Word<bf16> {
  static constexpr int64_t NUMBERS = 2;
};
#endif

template <typename T>
inline int64_t words(int64_t numbers) {
  return (numbers + Word<T>::NUMBERS - 1) / Word<T>::NUMBERS;
}

// sum + products of the words of `column` with those of `number`.
template <typename T>
inline Lanes multiply_add(Lanes column, float number, Lanes sum) {
#ifdef __AVX512BF16__
  if constexpr (Word<T>::NUMBERS == 2) {
    return (Lanes)_mm512_dpbf16_ps((__m512)sum, (__m512bh)column, (__m512bh)_mm512_set1_ps(number));
  }
#endif
  return sum + column * number;
}

// sums[c][i] += sum over words of a[word][i] * b[c][word]. R rows of `a` by C panels of `b` at a time: the sums stay in registers
// and each number that is read is used in several products.
template <typename T, int R, int C>
inline void multiply_rows_of_panel(const float *a, const float *b, int64_t b_stride, int64_t words, Lanes (*sums)[LANES]) {
  for (int first = 0; first < LANES; first += R) {
    Lanes s[R][C];
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) s[i][c] = sums[c][first + i];
    }
    for (int64_t word = 0; word < words; ++word) {
      Lanes columns[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) columns[c] = load(b + c * b_stride + word * LANES);
#pragma GCC unroll 16
      for (int i = 0; i < R; ++i) {
        const float number = a[word * LANES + first + i];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) s[i][c] = multiply_add<T>(columns[c], number, s[i][c]);
      }
    }
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[c][first + i] = s[i][c];
    }
  }
}

template <typename T, int C>
inline void multiply_panels(const float *a, const float *b, int64_t b_stride, int64_t words, Lanes (*sums)[LANES]) {
#ifdef __AVX512F__
  multiply_rows_of_panel<T, C == 1 ? 16 : 8, C>(a, b, b_stride, words, sums);
#else
  for (int c = 0; c < C; ++c) multiply_rows_of_panel<T, 4, 1>(a, b + c * b_stride, 0, words, sums + c);
#endif
}

constexpr int MOST_COLUMNS = 3;
template <int N>
struct Number {
  static constexpr int value = N;
};

// Calls `body(first, Number<C>)` for n panels in groups of C, 1 to 3.
template <typename F>
inline void in_columns(int64_t n, F &&body) {
  int64_t i = 0;
  for (; n - i >= 4 || n - i == 2; i += 2) body(i, Number<2>{});
  if (n - i == 3) body(i, Number<3>{});
  if (n - i == 1) body(i, Number<1>{});
}

// to[i] = to[i] * factors[i] + sum over words of a[word][i] * b[word], for 16 rows of `to` and `columns` panels of b.
template <typename T>
inline void add_product(const float *a, const float *b, int64_t b_stride, int64_t words, const float *factors, float *to,
                        int64_t columns) {
  const int64_t stride = columns * LANES;
  in_columns(columns, [&](int64_t first, auto number) {
    constexpr int C = decltype(number)::value;
    Lanes sums[C][LANES];
    float *at = to + first * LANES;
    for (int c = 0; c < C; ++c) {
      for (int i = 0; i < LANES; ++i) sums[c][i] = load(at + i * stride + c * LANES) * factors[i];
    }
    multiply_panels<T, C>(a, b + first * b_stride, b_stride, words, sums);
    for (int c = 0; c < C; ++c) {
      for (int i = 0; i < LANES; ++i) store(at + i * stride + c * LANES, sums[c][i]);
    }
  });
}

template <int H>
inline void exchange(Lanes &a, Lanes &b) {
  const IntLanes at = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const IntLanes second = ((at & H) != 0) & (16 - H);
  const Lanes low = __builtin_shuffle(a, b, at + second), high = __builtin_shuffle(a, b, at + second + H);
  a = low;
  b = high;
}

inline void transpose(Lanes *x) {
#ifdef __AVX512F__
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) exchange<8>(x[i], x[i + 8]);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) exchange<4>(x[i / 4 * 8 + i % 4], x[i / 4 * 8 + i % 4 + 4]);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) exchange<2>(x[i / 2 * 4 + i % 2], x[i / 2 * 4 + i % 2 + 2]);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) exchange<1>(x[i * 2], x[i * 2 + 1]);
#else
  float turned[LANES][LANES];
  for (int i = 0; i < LANES; ++i) {
    for (int j = 0; j < LANES; ++j) turned[j][i] = x[i][j];
  }
  memcpy(x, turned, sizeof turned);
#endif
}

// The first `n` numbers of a row as words, zeros behind them.
template <typename T>
inline Lanes row_words(const T *row, int64_t n) {
#ifdef __AVX512BF16__
  if constexpr (Word<T>::NUMBERS == 2) {
    return (Lanes)_mm512_maskz_loadu_epi16((__mmask32)((1ull << n) - 1), row);
  }
#endif
  return get(row, n);
}

// Rows of one segment and key head.
template <typename T>
struct HeadRows {
  T *first;
  int64_t token_stride, head_stride, heads;
  T *at(int64_t row) const { return first + row / heads * token_stride + row % heads * head_stride; }
};

// Sixteen rows from `row`, of which `n` exist, side by side: `to [words(dim), 16]`.
template <typename T>
inline void pack_rows(const HeadRows<const T> &rows, int64_t row, int64_t n, int64_t dim, float *to) {
  constexpr int64_t STEP = LANES * Word<T>::NUMBERS;
  const T *from[LANES];
  for (int64_t i = 0; i < LANES; ++i) from[i] = i < n ? rows.at(row + i) : nullptr;
  for (int64_t d = 0; d < dim; d += STEP) {
    const int64_t len = dim - d < STEP ? dim - d : STEP;
    Lanes x[LANES];
    for (int i = 0; i < LANES; ++i) x[i] = from[i] ? row_words(from[i] + d, len) : Lanes{};
    transpose(x);
    for (int64_t word = 0; word < words<T>(len); ++word) store(to + (d / Word<T>::NUMBERS + word) * LANES, x[word]);
  }
}

// `n` rows, padded by zeros to a multiple of 16, channels side by side: `to [panels(dim), width, 16]`, `width` words.
template <typename T>
inline void pack_channels(const HeadRows<const T> &rows, int64_t row, int64_t n, int64_t dim, float *to, int64_t width) {
  const int64_t padded = (n + LANES - 1) / LANES * LANES;
  const auto lanes = [&](int64_t i, int64_t d, int64_t len) { return i < n ? get(rows.at(row + i) + d, len) : Lanes{}; };
  for (int64_t word = 0; word < words<T>(padded); ++word) {
    in_lanes(dim, [&](int64_t d, int64_t len) {
      float *at = to + (d / LANES * width + word) * LANES;
      if constexpr (Word<T>::NUMBERS == 1) {
        store(at, lanes(word, d, len));
      } else {
        const WideLanes even = (WideLanes)lanes(2 * word, d, len), odd = (WideLanes)lanes(2 * word + 1, d, len);
        store(at, (Lanes)(even >> 16 | odd));
      }
    });
  }
}

// Sixteen rows of weights as the words of a panel.
template <typename T>
inline void put_words(const Lanes *weights, float *to) {
#ifdef __AVX512BF16__
  if constexpr (Word<T>::NUMBERS == 2) {
    const WideLanes at = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const __m512i pairs = (__m512i)(at | (at + 16) << 16);
    for (int i = 0; i < LANES; i += 2) {
      const __m512bh both = _mm512_cvtne2ps_pbh((__m512)weights[i + 1], (__m512)weights[i]);
      store(to + i / 2 * LANES, (Lanes)_mm512_permutexvar_epi16(pairs, (__m512i)both));
    }
    return;
  }
#endif
  for (int i = 0; i < LANES; ++i) store(to + i * LANES, weights[i]);
}

inline int64_t tiles_of(int64_t rows) { return (rows + LANES - 1) / LANES; }

// 2^x for x up to 127, within 4 units in the last place; below -126 as there. A NaN stays one.
inline Lanes power_of_two(Lanes x) {
  x = greater(all(-126.0f), x);
  // Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits.
  const Lanes magic = all(12582912.0f), shifted = x + magic;
  const Lanes r = x - (shifted - magic);
  // Of all polynomials of this degree the nearest for -0.5 to 0.5, found by Remez' algorithm.
  Lanes p = r * 0.0013276471979f + 0.0096755413342f;
  p = p * r + 0.0555071327354f;
  p = p * r + 0.2402211972385f;
  p = p * r + 0.6931469670647f;
  p = p * r + 1.0f;
  return p * (Lanes)(((WideLanes)shifted << 23) + 0x3f800000u);
}

}  // namespace
}  // namespace vlm_r1

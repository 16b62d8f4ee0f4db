// Vectors of 16 numbers for the kernels of `kernels.cpp`.

#pragma once

#include "kernels.h"

#include <math.h>
#include <string.h>
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace vlm_r1 {
namespace {

// 16 numbers; the compiler splits them where registers are narrower.
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
#ifdef __AVX512BF16__
inline __mmask16 first_lanes(int64_t n) { return (__mmask16)((1u << n) - 1); }
inline Lanes load_some(const float *p, int64_t n) { return (Lanes)_mm512_maskz_loadu_ps(first_lanes(n), p); }
inline Lanes load_some(const bf16 *p, int64_t n) {
  const __m256i half = _mm256_maskz_loadu_epi16(first_lanes(n), p);
  return (Lanes)(__builtin_convertvector((HalfLanes)half, WideLanes) << 16);
}
inline void store_some(float *p, Lanes x, int64_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), (__m512)x); }
inline void store_some(bf16 *p, Lanes x, int64_t n) {
  __m256i half;
  store((bf16 *)&half, x);
  _mm256_mask_storeu_epi16(p, first_lanes(n), half);
}
#else
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
#endif

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

}  // namespace
}  // namespace vlm_r1

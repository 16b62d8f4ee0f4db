// AdamW over f32 master weights stored as a bf16 value plus a 16-bit residual, see `bf16_master.rs`.

#pragma once

#include "simd.h"

namespace vlm_r1 {
namespace {

void adamw_bf16_master(const AdamWBf16Master &a, int64_t from, int64_t to) {
  // Local copies: the compiler need not assume that a store changes the other fields.
  uint16_t *__restrict value = a.value;
  int16_t *__restrict residual = a.residual;
  const float *__restrict grad = a.grad;
  float *__restrict exp_avg = a.exp_avg;
  float *__restrict exp_avg_sq = a.exp_avg_sq;
  const float one_minus_beta1 = a.one_minus_beta1, beta2 = a.beta2, one_minus_beta2 = a.one_minus_beta2;
  const float decay = a.decay, step_size = a.step_size;
  const float root = a.root_of_correction2, eps = a.eps;
  for (int64_t i = from; i < to; ++i) {
    uint32_t bits = ((uint32_t)value[i] << 16) + (uint32_t)(int32_t)residual[i];
    float w;
    memcpy(&w, &bits, 4);
    const float g = grad[i];
    const float m = exp_avg[i] + (g - exp_avg[i]) * one_minus_beta1;
    const float v = exp_avg_sq[i] * beta2 + g * g * one_minus_beta2;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    w = w * decay - step_size * m / (__builtin_sqrtf(v) / root + eps);
    memcpy(&bits, &w, 4);
    bits = w != w ? 0x7fc00000u : bits;
    value[i] = (uint16_t)((bits + 0x8000u) >> 16);
    residual[i] = (int16_t)(uint16_t)bits;
  }
}

}  // namespace
}  // namespace vlm_r1

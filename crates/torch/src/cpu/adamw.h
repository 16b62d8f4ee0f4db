// AdamW over weights that are kept as a bf16 and what it lacks, see `split.rs`.

#pragma once

#include "lanes.h"

namespace vlm_r1 {
namespace {

void adamw_split(const AdamWSplit &a, int64_t from, int64_t to) {
  // Names of their own, so that a store is not taken to change the others.
  uint16_t *__restrict value = a.value;
  int16_t *__restrict rest = a.rest;
  const float *__restrict grad = a.grad;
  float *__restrict exp_avg = a.exp_avg;
  float *__restrict exp_avg_sq = a.exp_avg_sq;
  const float decay = a.decay, rest1 = a.rest1, beta2 = a.beta2, rest2 = a.rest2, step_size = a.step_size;
  const float root = a.root_of_correction2, eps = a.eps;
  for (int64_t i = from; i < to; ++i) {
    uint32_t bits = ((uint32_t)value[i] << 16) + (uint32_t)(int32_t)rest[i];
    float w;
    memcpy(&w, &bits, 4);
    const float g = grad[i];
    const float m = exp_avg[i] + (g - exp_avg[i]) * rest1;
    const float v = exp_avg_sq[i] * beta2 + g * g * rest2;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    w = w * decay - step_size * m / (__builtin_sqrtf(v) / root + eps);
    memcpy(&bits, &w, 4);
    bits = w != w ? 0x7fc00000u : bits;
    value[i] = (uint16_t)((bits + 0x8000u) >> 16);
    rest[i] = (int16_t)(uint16_t)bits;
  }
}

}  // namespace
}  // namespace vlm_r1

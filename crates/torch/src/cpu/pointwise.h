// RMS norm, gated activation and rotary embedding, forward and backward.

#pragma once

#include "simd.h"

namespace vlm_r1 {
namespace {

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

}  // namespace
}  // namespace vlm_r1

// RMS norm, activations and rotary embedding, forward and backward.

#pragma once

#include "simd.h"

namespace vlm_r1 {
namespace {

template <typename T>
inline const T *row_of(const NormRows<T> &norm, int64_t row) {
  return norm.x.data + row / norm.heads * norm.x.token + row % norm.heads * norm.x.head;
}

template <typename T>
void rms_norm(const NormRows<T> &norm, int64_t begin, int64_t end, T *y, float *rstd) {
  const int64_t n = norm.n;
  y += begin * n;
  for (int64_t row = begin; row < end; ++row, y += n) {
    const T *x = row_of(norm, row);
    Lanes squares = {};
    in_lanes(n, [&](int64_t i, int64_t len) {
      const Lanes value = get(x + i, len);
      squares += value * value;
    });
    const float factor = 1.0f / sqrtf(sum(squares) / (float)n + norm.eps);
    if (rstd) rstd[row] = factor;
    in_lanes(n, [&](int64_t i, int64_t len) {
      put(y + i, get(x + i, len) * factor * (get(norm.w + i, len) + norm.offset), len);
    });
  }
}

template <typename T>
void rms_norm_backward(const NormRows<T> &norm, int64_t begin, int64_t end, const T *grad_y, const float *rstd, T *grad_x,
                       float *grad_w) {
  const int64_t n = norm.n;
  grad_y += begin * n, grad_x += begin * n;
  for (int64_t row = begin; row < end; ++row, grad_y += n, grad_x += n) {
    const T *x = row_of(norm, row);
    const float factor = rstd[row];
    Lanes products = {};
    in_lanes(n, [&](int64_t i, int64_t len) {
      const Lanes g = get(grad_y + i, len), value = get(x + i, len);
      products += g * (get(norm.w + i, len) + norm.offset) * value;
      put(grad_w + i, get(grad_w + i, len) + g * value * factor, len);
    });
    const float shrink = sum(products) / (float)n * factor * factor;
    in_lanes(n, [&](int64_t i, int64_t len) {
      const Lanes g = get(grad_y + i, len) * (get(norm.w + i, len) + norm.offset);
      put(grad_x + i, (g - get(x + i, len) * shrink) * factor, len);
    });
  }
}

// x sigmoid(U::of(x)). `ROUNDED`: a gate is rounded to T before it is multiplied, as the references do. `At`: gradients.
template <typename U, bool ROUNDED_GATE>
struct SigmoidUnit {
  static constexpr bool ROUNDED = ROUNDED_GATE;
  static Lanes value(Lanes x) { return x / (exponential(-U::of(x)) + 1.0f); }
  struct At {
    Lanes x, sigmoid;
    explicit At(Lanes x) : x(x), sigmoid(1.0f / (exponential(-U::of(x)) + 1.0f)) {}
    Lanes times_value(Lanes y) const { return y * x * sigmoid; }
    Lanes times_slope(Lanes y) const { return y * sigmoid * ((1.0f - sigmoid) * x * U::slope(x) + 1.0f); }
  };
};
struct Itself {
  static Lanes of(Lanes x) { return x; }
  static Lanes slope(Lanes) { return all(1.0f); }
};
struct Scaled {
  static constexpr float FACTOR = 1.702f;
  static Lanes of(Lanes x) { return x * FACTOR; }
  static Lanes slope(Lanes) { return all(FACTOR); }
};
// (1 + tanh(z)) / 2 = sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3).
struct Cubic {
  static constexpr float TWICE = 1.59576912160573f, THIRD = 0.044715f;
  static Lanes of(Lanes x) { return (x * x * x * THIRD + x) * TWICE; }
  static Lanes slope(Lanes x) { return (x * x * (3.0f * THIRD) + 1.0f) * TWICE; }
};
using Silu = SigmoidUnit<Itself, false>;
using QuickGelu = SigmoidUnit<Scaled, true>;
using GeluTanh = SigmoidUnit<Cubic, true>;

// x P(x), P the normal distribution's function.
struct Gelu {
  static constexpr bool ROUNDED = true;
  static Lanes bell(Lanes x) { return exponential(x * x * -0.5f); }
  // P(x) from bell(x): P(-|x|) / bell(x) is a polynomial of t = 1 / (1 + 0.21 |x|) within 2e-8 of itself, found by weighted least
  // squares.
  static Lanes distribution(Lanes x, Lanes bell) {
    const Lanes t = 1.0f / (greater(x, -x) * 0.21f + 1.0f);
    Lanes p = t * -0.0719417752f + 0.2849307517f;
    p = p * t - 0.3329410636f;
    p = p * t + 0.3523903295f;
    p = p * t - 0.0959422543f;
    p = p * t + 0.1257172517f;
    p = p * t + 0.0689780729f;
    p = p * t + 0.0850988932f;
    p = p * t + 0.0837097902f;
    const Lanes tail = p * t * bell;
    return x < Lanes{} ? tail : 1.0f - tail;
  }
  static Lanes value(Lanes x) { return x * distribution(x, bell(x)); }
  struct At {
    Lanes x, density, probability;
    explicit At(Lanes x) : x(x), density(bell(x)), probability(distribution(x, density)) {}
    Lanes times_value(Lanes y) const { return y * x * probability; }
    Lanes times_slope(Lanes y) const { return y * (x * density * 0.3989422804f + probability); }
  };
};

// Calls `body` with the activation.
template <typename F>
inline void by_activation(Activation activation, F &&body) {
  switch (activation) {
    case Activation::SILU:
      return body(Silu{});
    case Activation::GELU_TANH:
      return body(GeluTanh{});
    case Activation::GELU:
      return body(Gelu{});
    case Activation::QUICK_GELU:
      return body(QuickGelu{});
  }
}

template <typename T>
inline Lanes rounded(Lanes x) {
  T numbers[LANES];
  store(numbers, x);
  return load(numbers);
}

template <typename T>
void activate(Activation activation, const T *x, T *y, int64_t n) {
  by_activation(activation, [&](auto f) {
    in_lanes(n, [&](int64_t i, int64_t len) { put(y + i, f.value(get(x + i, len)), len); });
  });
}

template <typename T>
void activate_backward(Activation activation, const T *grad_y, const T *x, T *grad_x, int64_t n) {
  by_activation(activation, [&](auto f) {
    in_lanes(n, [&](int64_t i, int64_t len) {
      const typename decltype(f)::At at(get(x + i, len));
      put(grad_x + i, at.times_slope(get(grad_y + i, len)), len);
    });
  });
}

template <typename T>
void gated(Activation activation, const T *gate, const T *up, T *y, int64_t n) {
  by_activation(activation, [&](auto f) {
    in_lanes(n, [&](int64_t i, int64_t len) {
      const Lanes value = f.value(get(gate + i, len));
      put(y + i, (f.ROUNDED ? rounded<T>(value) : value) * get(up + i, len), len);
    });
  });
}

template <typename T>
void gated_backward(Activation activation, const T *grad_y, const T *gate, const T *up, T *grad_gate, T *grad_up, int64_t n) {
  by_activation(activation, [&](auto f) {
    in_lanes(n, [&](int64_t i, int64_t len) {
      const typename decltype(f)::At at(get(gate + i, len));
      const Lanes upstream = get(grad_y + i, len);
      put(grad_up + i, at.times_value(upstream), len);
      put(grad_gate + i, at.times_slope(upstream * get(up + i, len)), len);
    });
  });
}

// `LANES` pairs (2 i, 2 i + 1), of which `len` exist.
template <typename T>
inline void get_pairs(const T *x, int64_t len, Lanes &first, Lanes &second) {
  const IntLanes even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
  const Lanes a = get(x, 2 * len < LANES ? 2 * len : LANES);
  const Lanes b = 2 * len > LANES ? get(x + LANES, 2 * len - LANES) : Lanes{};
  first = __builtin_shuffle(a, b, even), second = __builtin_shuffle(a, b, even + 1);
}
template <typename T>
inline void put_pairs(T *y, Lanes first, Lanes second, int64_t len) {
  const IntLanes low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  put(y, __builtin_shuffle(first, second, low), 2 * len < LANES ? 2 * len : LANES);
  if (2 * len > LANES) put(y + LANES, __builtin_shuffle(first, second, low + 8), 2 * len - LANES);
}

template <bool ADJACENT, typename T, typename A>
inline void rotate_pairs(const Rotation<T, A> &r, int64_t begin, int64_t end, T *y) {
  const int64_t half = r.width / 2;
  for (int64_t token = begin; token < end; ++token) {
    const A *cos = r.cos + token * r.width, *sin = r.sin + token * r.width;
    T *to = y + token * r.heads * r.head_dim;
    for (int64_t head = 0; head < r.heads; ++head, to += r.head_dim) {
      const T *from = r.x.data + token * r.x.token + head * r.x.head;
      in_lanes(half, [&](int64_t i, int64_t len) {
        const Lanes c = get(cos + i, len), s = get(sin + i, len) * r.sign;
        Lanes a, b;
        if constexpr (ADJACENT) {
          get_pairs(from + 2 * i, len, a, b);
          put_pairs(to + 2 * i, a * c - b * s, b * c + a * s, len);
        } else {
          a = get(from + i, len), b = get(from + half + i, len);
          put(to + i, a * c - b * s, len);
          put(to + half + i, b * c + a * s, len);
        }
      });
      if (to != from && r.width < r.head_dim) {
        memcpy(to + r.width, from + r.width, (r.head_dim - r.width) * sizeof(T));
      }
    }
  }
}

template <typename T, typename A>
void rotate(const Rotation<T, A> &r, int64_t begin, int64_t end, T *y) {
  r.adjacent ? rotate_pairs<true>(r, begin, end, y) : rotate_pairs<false>(r, begin, end, y);
}

}  // namespace
}  // namespace vlm_r1

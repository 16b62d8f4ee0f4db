// Log-probabilities of tokens, their gradient, and sampling.

#pragma once

#include "simd.h"

namespace vlm_r1 {
namespace {

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

// The sums of e^y and of y e^y over n numbers, y = (x - top) * scale; e^y is stored in `weights` unless that is null.
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

// Probabilities are scaled by this and truncated to integers before they are summed: the sums are exact in any order.
constexpr double UNITS = 4503599627370496.0;  // 2^52

inline int64_t units(float weight, float inverse) { return (int64_t)((double)(weight * inverse) * UNITS); }

template <typename T>
void sample_token(const T *logits, int64_t n, float scale, const bool *banned, double uniform, float *weights, double *out) {
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
  if (uniform < 0) {
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
  // NaN logits end here too; the caller refuses such a row by its log-probability.
  if (!(allowed > 0)) return finish(0, 1, 1);
  const float inverse = (float)(1 / allowed);
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += units(weights[i], inverse);
  const int64_t target = (int64_t)(uniform * (double)total);  // below `total`, since `uniform` is below 1
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

}  // namespace
}  // namespace vlm_r1

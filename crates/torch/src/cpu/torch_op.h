// Helpers of the torch operations over `kernels.h`. `kernels.cpp` must not include it.

#pragma once

#include "kernels.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <type_traits>

namespace vlm_r1 {

template <typename T>
const TypedKernels<T> &typed() {
  if constexpr (std::is_same_v<T, float>) {
    return best_kernels().f32;
  } else {
    return best_kernels().bf16_;
  }
}

// Below this many numbers a second thread costs more than it saves.
constexpr int64_t GRAIN = at::internal::GRAIN_SIZE;

inline int64_t rows_at_once(int64_t n) { return std::max<int64_t>(1, GRAIN / std::max<int64_t>(n, 1)); }

template <typename T>
const T *read(const at::Tensor &x) {
  return static_cast<const T *>(x.const_data_ptr());
}
template <typename T>
T *write(at::Tensor &x) {
  return static_cast<T *>(x.mutable_data_ptr());
}

// Calls `body` with a value of the C++ type of `kind`.
template <typename F>
void by_type(at::ScalarType kind, F &&body) {
  if (kind == at::kFloat) {
    body(float{});
  } else {
    TORCH_CHECK(kind == at::kBFloat16, "expected float32 or bfloat16, got ", kind);
    body(bf16{});
  }
}

inline bool recorded(std::initializer_list<const at::Tensor *> inputs) {
  if (!at::GradMode::is_enabled()) return false;
  for (const at::Tensor *x : inputs) {
    if (x->requires_grad()) return true;
  }
  return false;
}

}  // namespace vlm_r1

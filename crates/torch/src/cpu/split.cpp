// An f32 number as a bf16 and what that lacks, and AdamW over such weights: see `split.rs`.

#include "operation.h"

#include <ATen/core/grad_mode.h>
#include <cmath>
#include <cstring>

#include "../guarded.h"

namespace {

using namespace vlm_r1;
using at::Tensor;

void check(const Tensor &exact, const Tensor &value, const Tensor &rest) {
  TORCH_CHECK(exact.scalar_type() == at::kFloat && value.scalar_type() == at::kBFloat16 &&
                  rest.scalar_type() == at::kShort && exact.numel() == value.numel() && value.numel() == rest.numel() &&
                  exact.is_contiguous() && value.is_contiguous() && rest.is_contiguous(),
              "split: tensors that do not fit: ", exact.sizes(), ", ", value.sizes(), ", ", rest.sizes());
}

}  // namespace

extern "C" {

int vlm_r1_split(Tensor *exact, Tensor *value, Tensor *rest, char *error, size_t capacity) {
  return guarded(error, capacity, [&] {
    at::NoGradGuard no_grad;
    check(*exact, *value, *rest);
    const float *from = read<float>(*exact);
    uint16_t *high = write<uint16_t>(*value), *low = write<uint16_t>(*rest);
    at::parallel_for(0, exact->numel(), GRAIN, [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; ++i) {
        uint32_t bits;
        std::memcpy(&bits, from + i, 4);
        if ((bits & 0x7fffffffu) > 0x7f800000u) bits = 0x7fc00000u;
        high[i] = static_cast<uint16_t>((bits + 0x8000u) >> 16);
        low[i] = static_cast<uint16_t>(bits);
      }
    });
  });
}

int vlm_r1_join(Tensor *value, Tensor *rest, Tensor **exact, char *error, size_t capacity) {
  return guarded(error, capacity, [&] {
    at::NoGradGuard no_grad;
    Tensor result = at::empty(value->sizes(), value->options().dtype(at::kFloat).requires_grad(false));
    check(result, *value, *rest);
    const uint16_t *high = read<uint16_t>(*value);
    const int16_t *low = read<int16_t>(*rest);
    float *to = write<float>(result);
    at::parallel_for(0, result.numel(), GRAIN, [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; ++i) {
        const uint32_t bits = (static_cast<uint32_t>(high[i]) << 16) + static_cast<uint32_t>(static_cast<int32_t>(low[i]));
        std::memcpy(to + i, &bits, 4);
      }
    });
    *exact = new Tensor(std::move(result));
  });
}

// `tensors`: value, rest, gradient, both moments. `step`: which update it is, from 1.
int vlm_r1_adamw_split(Tensor **tensors, double step, double lr, double beta1, double beta2, double weight_decay, double eps,
                       char *error, size_t capacity) {
  return guarded(error, capacity, [&] {
    at::NoGradGuard no_grad;
    Tensor &value = *tensors[0], &rest = *tensors[1], &exp_avg = *tensors[3], &exp_avg_sq = *tensors[4];
    for (int i : {2, 3, 4}) check(*tensors[i], value, rest);
    const AdamWSplit a{
        write<uint16_t>(value),
        write<int16_t>(rest),
        read<float>(*tensors[2]),
        write<float>(exp_avg),
        write<float>(exp_avg_sq),
        static_cast<float>(1 - lr * weight_decay),
        static_cast<float>(1 - beta1),
        static_cast<float>(beta2),
        static_cast<float>(1 - beta2),
        static_cast<float>(lr / (1 - std::pow(beta1, step))),
        static_cast<float>(std::sqrt(1 - std::pow(beta2, step))),
        static_cast<float>(eps),
    };
    at::parallel_for(0, value.numel(), GRAIN, [&](int64_t from, int64_t to) { best_kernels().adamw_split(a, from, to); });
  });
}

}  // extern "C"

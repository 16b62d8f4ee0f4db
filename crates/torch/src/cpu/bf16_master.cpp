// f32 master weights stored as a bf16 value plus a 16-bit residual, and AdamW over them: see `bf16_master.rs`.

#include "torch_op.h"

#include <ATen/core/grad_mode.h>
#include <cmath>
#include <cstring>

#include "../adamw_options.h"
#include "../catch.h"

namespace {

using namespace vlm_r1;
using at::Tensor;

void check(const Tensor &weight, const Tensor &value, const Tensor &residual) {
  TORCH_CHECK(weight.scalar_type() == at::kFloat && value.scalar_type() == at::kBFloat16 &&
                  residual.scalar_type() == at::kShort && weight.numel() == value.numel() && value.numel() == residual.numel() &&
                  weight.is_contiguous() && value.is_contiguous() && residual.is_contiguous(),
              "bf16 master: tensors that do not fit: ", weight.sizes(), ", ", value.sizes(), ", ", residual.sizes());
}

}  // namespace

extern "C" {

int vlm_r1_bf16_master_store(Tensor *weight, Tensor *value, Tensor *residual, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    at::NoGradGuard no_grad;
    check(*weight, *value, *residual);
    const float *from = read<float>(*weight);
    uint16_t *high = write<uint16_t>(*value), *low = write<uint16_t>(*residual);
    at::parallel_for(0, weight->numel(), GRAIN, [&](int64_t a, int64_t b) {
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

int vlm_r1_bf16_master_load(Tensor *value, Tensor *residual, Tensor **weight, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    at::NoGradGuard no_grad;
    Tensor result = at::empty(value->sizes(), value->options().dtype(at::kFloat).requires_grad(false));
    check(result, *value, *residual);
    const uint16_t *high = read<uint16_t>(*value);
    const int16_t *low = read<int16_t>(*residual);
    float *to = write<float>(result);
    at::parallel_for(0, result.numel(), GRAIN, [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; ++i) {
        const uint32_t bits = (static_cast<uint32_t>(high[i]) << 16) + static_cast<uint32_t>(static_cast<int32_t>(low[i]));
        std::memcpy(to + i, &bits, 4);
      }
    });
    *weight = new Tensor(std::move(result));
  });
}

// `tensors`: value, residual, gradient, both moments. `step`: which update it is, from 1.
int vlm_r1_bf16_master_adamw(Tensor **tensors, double step, const AdamWOptions *options, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    at::NoGradGuard no_grad;
    Tensor &value = *tensors[0], &residual = *tensors[1], &exp_avg = *tensors[3], &exp_avg_sq = *tensors[4];
    const auto [lr, beta1, beta2, eps, weight_decay] = *options;
    for (int i : {2, 3, 4}) check(*tensors[i], value, residual);
    const AdamWBf16Master a{
        write<uint16_t>(value),
        write<int16_t>(residual),
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
    at::parallel_for(0, value.numel(), GRAIN, [&](int64_t from, int64_t to) { best_kernels().adamw_bf16_master(a, from, to); });
  });
}

}  // extern "C"

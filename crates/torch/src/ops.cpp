// libtorch functions that `tch` does not bind.

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <memory>
#include <mutex>
#include <vector>

#include "adamw_options.h"
#include "catch.h"

namespace {

std::vector<at::Tensor> gather(at::Tensor **tensors, size_t n) {
  std::vector<at::Tensor> out;
  out.reserve(n);
  for (size_t i = 0; i < n; ++i) out.push_back(*tensors[i]);
  return out;
}

}  // namespace

extern "C" {

// One AdamW step over n tensors, in place, by libtorch's fused kernel.
int vlm_r1_fused_adamw(at::Tensor **params, at::Tensor **grads, at::Tensor **exp_avgs,
                       at::Tensor **exp_avg_sqs, at::Tensor **steps, size_t n,
                       const AdamWOptions *options, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    at::NoGradGuard no_grad;
    auto p = gather(params, n);
    auto g = gather(grads, n);
    auto m = gather(exp_avgs, n);
    auto v = gather(exp_avg_sqs, n);
    auto s = gather(steps, n);
    at::_fused_adamw_(p, g, m, v, {}, s, options->lr, options->beta1, options->beta2,
                      options->weight_decay, options->eps,
                      /*amsgrad=*/false, /*maximize=*/false);
  });
}

// Takes the gradient out of a leaf: `*gradient` is a new handle, or null where there is none.
int vlm_r1_take_grad(at::Tensor *leaf, at::Tensor **gradient, char *error, size_t capacity) {
  *gradient = nullptr;
  return catch_into(error, capacity, [&] {
    at::Tensor &held = leaf->mutable_grad();
    if (!held.defined()) return;
    *gradient = new at::Tensor(held.detach());
    held.reset();
  });
}

// Flash attention (CUDA, 16 bits) over sequences of different lengths, with its gradient; `qkv` are
// three tensors, `cumulative` the ends of the sequences' queries and keys.
int vlm_r1_flash_attention(at::Tensor **qkv, at::Tensor **cumulative, int64_t max_queries,
                           int64_t max_keys, int causal, int64_t window, double scale,
                           at::Tensor **output, char *error, size_t capacity) {
  *output = nullptr;
  return catch_into(error, capacity, [&] {
    const auto left = window > 0 ? std::optional<int64_t>(window - 1) : std::nullopt;
    auto results = at::_flash_attention_forward(
        *qkv[0], *qkv[1], *qkv[2], *cumulative[0], *cumulative[1], max_queries, max_keys,
        /*dropout_p=*/0.0, causal != 0, /*return_debug_mask=*/false, scale, left);
    *output = new at::Tensor(std::get<0>(results));
  });
}

// Attention (CUDA, 16 bits) of equally many queries per sequence, without gradient, with its log-sum-exps. `tables` in int32 on the device:
// ends of the sequences' queries, where the keys of each begin (one number more than sequences), how many keys each has.
int vlm_r1_flash_sequences(at::Tensor **qkv, at::Tensor **tables, int64_t max_queries, int64_t max_keys, double scale,
                           at::Tensor **output, at::Tensor **lse, char *error, size_t capacity) {
  *output = *lse = nullptr;
  return catch_into(error, capacity, [&] {
    at::NoGradGuard no_grad;
    auto results = at::_flash_attention_forward(
        *qkv[0], *qkv[1], *qkv[2], *tables[0], *tables[1], max_queries, max_keys, /*dropout_p=*/0.0,
        /*is_causal=*/false, /*return_debug_mask=*/false, scale, /*window_size_left=*/std::nullopt,
        /*window_size_right=*/std::nullopt, /*seqused_k=*/*tables[2]);
    *output = new at::Tensor(std::get<0>(results));
    *lse = new at::Tensor(std::get<1>(results));
  });
}

// `tch` names a device, which libtorch warns of.
int vlm_r1_pin_memory(at::Tensor *tensor, at::Tensor **pinned, char *error, size_t capacity) {
  *pinned = nullptr;
  return catch_into(error, capacity, [&] { *pinned = new at::Tensor(tensor->pin_memory()); });
}

int vlm_r1_is_pinned(at::Tensor *tensor, int *is_pinned, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] { *is_pinned = tensor->is_pinned(); });
}

// Fills a tensor from a generator of its own: Bernoulli with probability `first` (distribution 0), or uniform from `first` to
// `second` (distribution 1).
int vlm_r1_fill_random(at::Tensor *tensor, uint64_t key, int distribution, double first,
                       double second, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    at::NoGradGuard no_grad;
    at::Generator shared = at::globalContext().defaultGenerator(tensor->device());
    at::Generator own = [&] {
      std::lock_guard<std::mutex> lock(shared.mutex());
      return shared.clone();
    }();
    own.set_current_seed(key);
    if (distribution == 0) {
      tensor->bernoulli_(first, own);
    } else {
      tensor->uniform_(first, second, own);
    }
  });
}

// Records an event on the GPU's stream through libtorch's device interface, so that CUDA need not be linked.
int vlm_r1_event_record(int device, c10::Event **event, char *error, size_t capacity) {
  *event = nullptr;
  return catch_into(error, capacity, [&] {
    const c10::Device gpu(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device));
    const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    auto made = std::make_unique<c10::Event>(c10::DeviceType::CUDA);
    made->record(guard.getStream(gpu));
    *event = made.release();
  });
}

int vlm_r1_event_wait(c10::Event *event, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] { event->synchronize(); });
}

void vlm_r1_event_delete(c10::Event *event) { delete event; }

}  // extern "C"

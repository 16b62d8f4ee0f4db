// What sampling does on the CPU, without gradients: attention of new tokens, linear layers of packed weights, the choice of tokens.

#include "operation.h"

#include <ATen/core/grad_mode.h>
#include <vector>

#include "../guarded.h"

namespace {

using namespace vlm_r1;
using at::Tensor;

}  // namespace

extern "C" {

// `tensors`: q, k, v, prompt keys, prompt values, answer keys, answer values, rows, prompt lengths, places.
int vlm_r1_decode_attention(Tensor **tensors, double scale, Tensor **output, char *error, size_t capacity) {
  return guarded(error, capacity, [&] {
    at::NoGradGuard no_grad;
    const Tensor q = tensors[0]->contiguous(), k = tensors[1]->contiguous(), v = tensors[2]->contiguous();
    Tensor &prompt_keys = *tensors[3], &prompt_values = *tensors[4];
    Tensor &answer_keys = *tensors[5], &answer_values = *tensors[6];
    for (int i = 3; i < 10; ++i) TORCH_CHECK(tensors[i]->is_contiguous(), "tensor ", i, " has gaps");
    Tensor y = at::empty_like(q);
    by_type(q.scalar_type(), [&](auto one) {
      using T = decltype(one);
      const DecodeAttention<T> a{
          read<T>(q),
          read<T>(k),
          read<T>(v),
          read<T>(prompt_keys),
          read<T>(prompt_values),
          write<T>(answer_keys),
          write<T>(answer_values),
          read<int64_t>(*tensors[7]),
          read<int64_t>(*tensors[8]),
          read<int64_t>(*tensors[9]),
          write<T>(y),
          q.size(1),
          k.size(1),
          q.size(2),
          prompt_values.size(2),
          answer_keys.size(2),
          static_cast<float>(scale),
      };
      const int64_t pairs = q.size(0) * a.kv_heads;
      const int64_t work = (a.heads / a.kv_heads) * (a.prompt_width + a.answer_width) * a.head_dim;
      at::parallel_for(0, pairs, std::max<int64_t>(1, 8 * GRAIN / std::max<int64_t>(work, 1)), [&](int64_t from, int64_t to) {
        std::vector<float> scratch(decode_scratch(a));
        typed<T>().decode_attention(a, from, to, scratch.data());
      });
    });
    *output = new Tensor(std::move(y));
  });
}

// `weight [out, in]` in the order of `kernels.h`, `[panels * 16, in]` with an even `in`.
int vlm_r1_pack_linear(Tensor *weight, Tensor **packed, char *error, size_t capacity) {
  return guarded(error, capacity, [&] {
    at::NoGradGuard no_grad;
    const Tensor w = weight->contiguous();
    const int64_t in = w.size(1), out = w.size(0), panel_size = packed_size(in, 16);
    Tensor result = at::empty({panels(out) * 16, panel_size / 16}, w.options());
    by_type(w.scalar_type(), [&](auto one) {
      using T = decltype(one);
      const T *from = read<T>(w);
      T *to = write<T>(result);
      at::parallel_for(0, panels(out), rows_at_once(panel_size), [&](int64_t a, int64_t b) {
        typed<T>().pack(from + a * 16 * in, in, std::min(out, b * 16) - a * 16, to + a * panel_size);
      });
    });
    *packed = new Tensor(std::move(result));
  });
}

// `x [rows, in]` by `n` packed layers of `outs` outputs, each with a bias or null: `n` handles into `y`.
int vlm_r1_packed_linears(Tensor *x, size_t n, Tensor **packed, Tensor **biases, const int64_t *outs, Tensor **y,
                          char *error, size_t capacity) {
  return guarded(error, capacity, [&] {
    at::NoGradGuard no_grad;
    const Tensor input = x->contiguous();
    const int64_t rows = input.size(0), in = input.size(1);
    const Tensor wide = input.scalar_type() == at::kFloat ? input : input.to(at::kFloat);
    std::vector<Tensor> results;
    std::vector<Tensor> shifts;
    for (size_t i = 0; i < n; ++i) {
      results.push_back(at::empty({rows, outs[i]}, input.options()));
      shifts.push_back(biases[i] ? biases[i]->contiguous() : Tensor());
    }
    by_type(input.scalar_type(), [&](auto one) {
      using T = decltype(one);
      const T *from = read<T>(input);
      const float *from32 = read<float>(wide);
      std::vector<PackedLinear<T>> layers;
      std::vector<int64_t> ends;  // in panels
      for (size_t i = 0; i < n; ++i) {
        const T *bias = shifts[i].defined() ? read<T>(shifts[i]) : nullptr;
        layers.push_back({read<T>(*packed[i]), bias, write<T>(results[i]), in, outs[i]});
        ends.push_back((ends.empty() ? 0 : ends.back()) + panels(outs[i]));
      }
      // Reading weights takes longer than arithmetic does.
      const int64_t grain = std::max<int64_t>(1, GRAIN / (16 * std::max<int64_t>(in, 1)));
      at::parallel_for(0, ends.back(), grain, [&](int64_t a, int64_t b) {
        for (size_t i = 0; i < n; ++i) {
          const int64_t start = i == 0 ? 0 : ends[i - 1];
          const int64_t first = std::max(a, start) - start, last = std::min(b, ends[i]) - start;
          if (first < last) typed<T>().packed_linear(layers[i], from, from32, rows, first, last);
        }
      });
    });
    for (size_t i = 0; i < n; ++i) y[i] = new Tensor(std::move(results[i]));
  });
}

// `logits [rows, vocabulary]`, `banned` two masks `[vocabulary]`: for all rows, and for those that `unfinished`
// (`[rows, 1]` or null) marks; `draws [rows]` in f64, null for the largest. Gives `[rows, 5]` in f64, see `kernels.h`.
int vlm_r1_choose(Tensor *logits, Tensor **banned, Tensor *unfinished, Tensor *draws, double scale, Tensor **table,
                  char *error, size_t capacity) {
  return guarded(error, capacity, [&] {
    at::NoGradGuard no_grad;
    const Tensor scores = logits->contiguous();
    const int64_t rows = scores.size(0), n = scores.size(1);
    Tensor result = at::empty({rows, 5}, scores.options().dtype(at::kDouble));
    const bool *masks[2] = {read<bool>(*banned[0]), read<bool>(*banned[1])};
    const bool *early = unfinished ? read<bool>(*unfinished) : nullptr;
    const double *uniform = draws ? read<double>(*draws) : nullptr;
    double *out = write<double>(result);
    by_type(scores.scalar_type(), [&](auto one) {
      using T = decltype(one);
      const T *from = read<T>(scores);
      at::parallel_for(0, rows, rows_at_once(4 * n), [&](int64_t a, int64_t b) {
        std::vector<float> weights(n);
        for (int64_t i = a; i < b; ++i) {
          typed<T>().choose(from + i * n, n, static_cast<float>(scale), masks[early && early[i]],
                            uniform ? uniform[i] : -1.0, weights.data(), out + 5 * i);
        }
      });
    });
    *table = new Tensor(std::move(result));
  });
}

}  // extern "C"

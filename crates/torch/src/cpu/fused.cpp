// Fused operations of models on the CPU with their gradients, each one pass over memory: torch operations over `kernels.h`.
// f32 and bf16 only; the Rust side checks that.

#include "torch_op.h"

#include <torch/csrc/autograd/custom_function.h>

#include "../catch.h"

namespace {

using namespace vlm_r1;
using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows of one partial sum of a weight's gradient. Fixed, so that sums do not depend on the number of threads.
constexpr int64_t ROWS_OF_A_SUM = 64;

std::tuple<Tensor, Tensor> rms_norm(const Tensor &x, const Tensor &w, double eps) {
  Tensor y = at::empty_like(x);
  const int64_t n = x.size(-1), rows = x.numel() / n;
  Tensor rstd = at::empty({rows}, x.options().dtype(at::kFloat));
  by_type(x.scalar_type(), [&](auto one) {
    using T = decltype(one);
    const T *from = read<T>(x), *scale = read<T>(w);
    T *to = write<T>(y);
    float *factors = write<float>(rstd);
    at::parallel_for(0, rows, rows_at_once(n), [&](int64_t a, int64_t b) {
      typed<T>().rms_norm(from + a * n, scale, to + a * n, factors + a, b - a, n, static_cast<float>(eps));
    });
  });
  return {y, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor &grad, const Tensor &x, const Tensor &w, const Tensor &rstd) {
  Tensor grad_x = at::empty_like(x);
  const int64_t n = x.size(-1), rows = x.numel() / n, sums = (rows + ROWS_OF_A_SUM - 1) / ROWS_OF_A_SUM;
  Tensor grad_w = at::zeros({sums, n}, x.options().dtype(at::kFloat));
  by_type(x.scalar_type(), [&](auto one) {
    using T = decltype(one);
    const T *upstream = read<T>(grad), *from = read<T>(x), *scale = read<T>(w);
    const float *factors = read<float>(rstd);
    T *to = write<T>(grad_x);
    float *sum = write<float>(grad_w);
    at::parallel_for(0, sums, 1, [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; ++i) {
        const int64_t row = i * ROWS_OF_A_SUM, len = std::min(ROWS_OF_A_SUM, rows - row);
        typed<T>().rms_norm_backward(upstream + row * n, from + row * n, scale, factors + row, to + row * n,
                                     sum + i * n, len, n);
      }
    });
  });
  return {grad_x, grad_w.sum(0).to(w.scalar_type())};
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &w, double eps) {
    auto [y, rstd] = rms_norm(x, w, eps);
    context->save_for_backward({x, w, rstd});
    return y;
  }
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    auto [grad_x, grad_w] = rms_norm_backward(grads[0].contiguous(), saved[0], saved[1], saved[2]);
    return {grad_x, grad_w, Tensor()};
  }
};

Tensor swiglu(const Tensor &gate, const Tensor &up) {
  Tensor y = at::empty_like(gate);
  by_type(gate.scalar_type(), [&](auto one) {
    using T = decltype(one);
    const T *g = read<T>(gate), *u = read<T>(up);
    T *to = write<T>(y);
    at::parallel_for(0, gate.numel(), GRAIN, [&](int64_t a, int64_t b) { typed<T>().swiglu(g + a, u + a, to + a, b - a); });
  });
  return y;
}

std::tuple<Tensor, Tensor> swiglu_backward(const Tensor &grad, const Tensor &gate, const Tensor &up) {
  Tensor grad_gate = at::empty_like(gate), grad_up = at::empty_like(up);
  by_type(gate.scalar_type(), [&](auto one) {
    using T = decltype(one);
    const T *upstream = read<T>(grad), *g = read<T>(gate), *u = read<T>(up);
    T *to_gate = write<T>(grad_gate), *to_up = write<T>(grad_up);
    at::parallel_for(0, gate.numel(), GRAIN, [&](int64_t a, int64_t b) {
      typed<T>().swiglu_backward(upstream + a, g + a, u + a, to_gate + a, to_up + a, b - a);
    });
  });
  return {grad_gate, grad_up};
}

struct SwiGlu : torch::autograd::Function<SwiGlu> {
  static Tensor forward(AutogradContext *context, const Tensor &gate, const Tensor &up) {
    context->save_for_backward({gate, up});
    return swiglu(gate, up);
  }
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    auto [grad_gate, grad_up] = swiglu_backward(grads[0].contiguous(), saved[0], saved[1]);
    return {grad_gate, grad_up};
  }
};

// Gradient of a weight [out, in] from that of y [rows, out]; undefined where not needed.
Tensor weight_gradient(const Tensor &weight, const Tensor &grad, const Tensor &x) {
  return weight.requires_grad() ? grad.t().mm(x) : Tensor();
}
Tensor bias_gradient(const Tensor &bias, const Tensor &grad) {
  return bias.defined() && bias.requires_grad() ? grad.sum(0) : Tensor();
}

// Linear layers fused with their RMS norm: saves the norm's input only; the backward pass recomputes the norm.
struct NormedLinears : torch::autograd::Function<NormedLinears> {
  // `layers`: n weights, then the biases that exist; bit i of `biased` says whether layer i has one.
  static variable_list forward(AutogradContext *context, const Tensor &x, const Tensor &w, at::TensorList layers,
                               int64_t n, int64_t biased, double eps) {
    const Tensor normed = std::get<0>(rms_norm(x, w, eps));
    variable_list kept = {x, w}, outputs;
    kept.insert(kept.end(), layers.begin(), layers.end());
    context->save_for_backward(std::move(kept));
    context->saved_data["n"] = n;
    context->saved_data["biased"] = biased;
    context->saved_data["eps"] = eps;
    context->set_materialize_grads(false);
    int64_t bias = n;
    for (int64_t i = 0; i < n; ++i) {
      outputs.push_back(at::linear(normed, layers[i], biased >> i & 1 ? layers[bias++] : Tensor()));
    }
    return outputs;
  }
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &w = saved[1];
    const int64_t n = context->saved_data["n"].toInt(), biased = context->saved_data["biased"].toInt();
    auto [normed, rstd] = rms_norm(x, w, context->saved_data["eps"].toDouble());
    variable_list result(saved.size() + 3);
    Tensor upstream;
    int64_t bias = 2 + n;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t own_bias = biased >> i & 1 ? bias++ : 0;
      if (!grads[i].defined()) continue;
      const Tensor grad = grads[i].contiguous(), &weight = saved[2 + i];
      result[2 + i] = weight_gradient(weight, grad, normed);
      if (own_bias > 0) result[own_bias] = bias_gradient(saved[own_bias], grad);
      if (!x.requires_grad() && !w.requires_grad()) continue;
      if (upstream.defined()) {
        upstream.addmm_(grad, weight);
      } else {
        upstream = grad.mm(weight);
      }
    }
    normed.reset();
    if (upstream.defined()) std::tie(result[0], result[1]) = rms_norm_backward(upstream, x, w, rstd);
    return result;
  }
};

// A linear layer fused with its gated activation, which the backward pass recomputes.
struct GatedLinear : torch::autograd::Function<GatedLinear> {
  static Tensor forward(AutogradContext *context, const Tensor &gate, const Tensor &up, const Tensor &weight,
                        const std::optional<Tensor> &bias) {
    context->save_for_backward({gate, up, weight, bias.value_or(Tensor())});
    return at::linear(swiglu(gate, up), weight, bias);
  }
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor grad = grads[0].contiguous(), &gate = saved[0], &up = saved[1], &weight = saved[2];
    variable_list result(4);
    result[2] = weight_gradient(weight, grad, swiglu(gate, up));
    result[3] = bias_gradient(saved[3], grad);
    if (gate.requires_grad() || up.requires_grad()) {
      std::tie(result[0], result[1]) = swiglu_backward(grad.mm(weight), gate, up);
    }
    return result;
  }
};

// `x [tokens, heads, head_dim]`, contiguous within a head.
Tensor rotate(const Tensor &x, const Tensor &cos, const Tensor &sin, float sign) {
  const int64_t tokens = x.size(0), heads = x.size(1), head_dim = x.size(2);
  Tensor y = at::empty({tokens, heads, head_dim}, x.options());
  by_type(x.scalar_type(), [&](auto one) {
    using T = decltype(one);
    by_type(cos.scalar_type(), [&](auto other) {
      using A = decltype(other);
      const T *from = read<T>(x);
      const A *c = read<A>(cos), *s = read<A>(sin);
      T *to = write<T>(y);
      const int64_t token_stride = x.stride(0), head_stride = x.stride(1);
      at::parallel_for(0, tokens, rows_at_once(heads * head_dim), [&](int64_t a, int64_t b) {
        const T *first = from + a * token_stride;
        T *out = to + a * heads * head_dim;
        if constexpr (std::is_same_v<T, A>) {
          typed<T>().rotate(first, token_stride, head_stride, c + a * head_dim, s + a * head_dim, sign, out, b - a,
                            heads, head_dim);
        } else if constexpr (std::is_same_v<A, float>) {
          typed<T>().rotate_by_f32(first, token_stride, head_stride, c + a * head_dim, s + a * head_dim, sign, out,
                                   b - a, heads, head_dim);
        } else {
          TORCH_CHECK(false, "a table in bfloat16 for numbers in float32");
        }
      });
    });
  });
  return y;
}

struct Rotate : torch::autograd::Function<Rotate> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &cos, const Tensor &sin) {
    context->save_for_backward({cos, sin});
    return rotate(x, cos, sin, 1);
  }
  // The inverse of a rotation is its transpose.
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    return {rotate(grads[0].contiguous(), saved[0], saved[1], -1), Tensor(), Tensor()};
  }
};

// `logits [rows, vocabulary]`, `targets [rows]` -> log-probabilities and entropies `[rows]` in f32. Saves only the
// logits for the backward pass, in their own type.
struct TokenScores : torch::autograd::Function<TokenScores> {
  static variable_list forward(AutogradContext *context, const Tensor &logits, const Tensor &targets, double scale) {
    const int64_t rows = logits.size(0), n = logits.size(1);
    Tensor lse = at::empty({rows}, logits.options().dtype(at::kFloat)), entropy = at::empty_like(lse);
    by_type(logits.scalar_type(), [&](auto one) {
      using T = decltype(one);
      const T *from = read<T>(logits);
      float *sums = write<float>(lse), *entropies = write<float>(entropy);
      at::parallel_for(0, rows, rows_at_once(n), [&](int64_t a, int64_t b) {
        typed<T>().log_sum_exp(from + a * n, static_cast<float>(scale), sums + a, entropies + a, b - a, n);
      });
    });
    // Also checks the targets.
    const Tensor chosen = logits.gather(1, targets.unsqueeze(1)).squeeze(1).to(at::kFloat) * scale - lse;
    context->save_for_backward({logits, targets, lse});
    context->saved_data["scale"] = scale;
    context->mark_non_differentiable({entropy});
    return {chosen, entropy};
  }
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &logits = saved[0], &targets = saved[1], &lse = saved[2];
    const Tensor upstream = grads[0].contiguous();
    const float scale = static_cast<float>(context->saved_data["scale"].toDouble());
    const int64_t rows = logits.size(0), n = logits.size(1);
    Tensor grad = at::empty_like(logits);
    by_type(logits.scalar_type(), [&](auto one) {
      using T = decltype(one);
      const T *from = read<T>(logits);
      const float *sums = read<float>(lse), *factors = read<float>(upstream);
      const int64_t *ids = read<int64_t>(targets);
      T *to = write<T>(grad);
      at::parallel_for(0, rows, rows_at_once(n), [&](int64_t a, int64_t b) {
        typed<T>().log_prob_backward(from + a * n, scale, sums + a, factors + a, ids + a, to + a * n, b - a, n);
      });
    });
    return {grad, Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

int vlm_r1_rms_norm(Tensor *x, Tensor *w, double eps, Tensor **y, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    const Tensor from = x->contiguous();
    const bool graph = recorded({x, w});
    *y = new Tensor(graph ? RmsNorm::apply(from, *w, eps) : std::get<0>(rms_norm(from, *w, eps)));
  });
}

int vlm_r1_swiglu(Tensor *gate, Tensor *up, Tensor **y, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    const Tensor g = gate->contiguous(), u = up->contiguous();
    TORCH_CHECK(g.sizes() == u.sizes() && g.scalar_type() == u.scalar_type(), "gate and up differ");
    *y = new Tensor(recorded({gate, up}) ? SwiGlu::apply(g, u) : swiglu(g, u));
  });
}

// `layers`: n weights, then n biases or null.
int vlm_r1_normed_linears(Tensor *x, Tensor *w, double eps, size_t n, Tensor **layers, Tensor **y, char *error,
                          size_t capacity) {
  return catch_into(error, capacity, [&] {
    variable_list all;
    int64_t biased = 0;
    for (size_t i = 0; i < 2 * n; ++i) {
      if (!layers[i]) continue;
      all.push_back(*layers[i]);
      if (i >= n) biased |= int64_t{1} << (i - n);
    }
    auto results = NormedLinears::apply(x->contiguous(), *w, at::TensorList(all), static_cast<int64_t>(n), biased, eps);
    for (size_t i = 0; i < n; ++i) y[i] = new Tensor(std::move(results[i]));
  });
}

int vlm_r1_gated_linear(Tensor *gate, Tensor *up, Tensor *weight, Tensor *bias, Tensor **y, char *error,
                        size_t capacity) {
  return catch_into(error, capacity, [&] {
    const Tensor g = gate->contiguous(), u = up->contiguous();
    TORCH_CHECK(g.sizes() == u.sizes() && g.scalar_type() == u.scalar_type(), "gate and up differ");
    *y = new Tensor(GatedLinear::apply(g, u, *weight, bias ? std::optional<Tensor>(*bias) : std::nullopt));
  });
}

int vlm_r1_rotate(Tensor *x, Tensor *cos, Tensor *sin, Tensor **y, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    TORCH_CHECK(x->dim() == 3 && cos->dim() == 2 && cos->size(0) == x->size(0) && cos->size(1) == x->size(2) &&
                    cos->sizes() == sin->sizes() && x->size(2) % 2 == 0,
                "angles ", cos->sizes(), " do not fit ", x->sizes());
    const Tensor from = x->stride(2) == 1 ? *x : x->contiguous();
    const Tensor c = cos->contiguous(), s = sin->contiguous();
    *y = new Tensor(recorded({x}) ? Rotate::apply(from, c, s) : rotate(from, c, s, 1));
  });
}

int vlm_r1_token_scores(Tensor *logits, Tensor *targets, double scale, Tensor **logprobs, Tensor **entropies,
                        char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    auto results = TokenScores::apply(logits->contiguous(), targets->contiguous(), scale);
    *logprobs = new Tensor(results[0]);
    *entropies = new Tensor(results[1]);
  });
}

}  // extern "C"

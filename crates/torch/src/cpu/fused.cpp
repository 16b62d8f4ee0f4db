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

// Of an RMS norm: what is added to the mean square, and to the weight.
struct NormNumbers {
  double eps, offset;
};

// `x` is contiguous, or `[tokens, heads, n]` and contiguous within a head.
template <typename T>
NormRows<T> norm_rows(const Tensor &x, const Tensor &w, NormNumbers numbers) {
  const int64_t n = x.size(-1);
  const bool has_heads = x.dim() == 3;
  const Strided<const T> rows = {read<T>(x), has_heads ? x.stride(0) : n, has_heads ? x.stride(1) : 0};
  return {rows, read<T>(w), static_cast<float>(numbers.offset), static_cast<float>(numbers.eps), has_heads ? x.size(1) : 1, n};
}

std::tuple<Tensor, Tensor> rms_norm(const Tensor &x, const Tensor &w, NormNumbers numbers) {
  Tensor y = at::empty(x.sizes(), x.options());
  const int64_t n = x.size(-1), rows = x.numel() / n;
  Tensor rstd = at::empty({rows}, x.options().dtype(at::kFloat));
  by_type(x.scalar_type(), [&](auto one) {
    using T = decltype(one);
    const auto norm = norm_rows<T>(x, w, numbers);
    T *to = write<T>(y);
    float *factors = write<float>(rstd);
    at::parallel_for(0, rows, rows_at_once(n), [&](int64_t a, int64_t b) { typed<T>().rms_norm(norm, a, b, to, factors); });
  });
  return {y, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor &grad, const Tensor &x, const Tensor &w, const Tensor &rstd,
                                             NormNumbers numbers) {
  Tensor grad_x = at::empty(x.sizes(), x.options());
  const int64_t n = x.size(-1), rows = x.numel() / n, sums = (rows + ROWS_OF_A_SUM - 1) / ROWS_OF_A_SUM;
  Tensor grad_w = at::zeros({sums, n}, x.options().dtype(at::kFloat));
  by_type(x.scalar_type(), [&](auto one) {
    using T = decltype(one);
    const auto norm = norm_rows<T>(x, w, numbers);
    const T *upstream = read<T>(grad);
    const float *factors = read<float>(rstd);
    T *to = write<T>(grad_x);
    float *sum = write<float>(grad_w);
    at::parallel_for(0, sums, 1, [&](int64_t a, int64_t b) {
      for (int64_t i = a; i < b; ++i) {
        const int64_t row = i * ROWS_OF_A_SUM;
        typed<T>().rms_norm_backward(norm, row, std::min(row + ROWS_OF_A_SUM, rows), upstream, factors, to, sum + i * n);
      }
    });
  });
  return {grad_x, grad_w.sum(0).to(w.scalar_type())};
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &w, double eps, double offset) {
    auto [y, rstd] = rms_norm(x, w, {eps, offset});
    context->save_for_backward({x, w, rstd});
    context->saved_data["eps"] = eps;
    context->saved_data["offset"] = offset;
    return y;
  }
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    auto [grad_x, grad_w] = rms_norm_backward(grads[0].contiguous(), saved[0], saved[1], saved[2], norm_numbers(context));
    return {grad_x, grad_w, Tensor(), Tensor()};
  }
  static NormNumbers norm_numbers(AutogradContext *context) {
    return {context->saved_data["eps"].toDouble(), context->saved_data["offset"].toDouble()};
  }
};

Activation saved_activation(AutogradContext *context) {
  return static_cast<Activation>(context->saved_data["activation"].toInt());
}

Tensor activate(const Tensor &x, Activation activation) {
  Tensor y = at::empty_like(x);
  by_type(x.scalar_type(), [&](auto one) {
    using T = decltype(one);
    const T *from = read<T>(x);
    T *to = write<T>(y);
    at::parallel_for(0, x.numel(), GRAIN, [&](int64_t a, int64_t b) { typed<T>().activate(activation, from + a, to + a, b - a); });
  });
  return y;
}

Tensor activate_backward(const Tensor &grad, const Tensor &x, Activation activation) {
  Tensor grad_x = at::empty_like(x);
  by_type(x.scalar_type(), [&](auto one) {
    using T = decltype(one);
    const T *upstream = read<T>(grad), *from = read<T>(x);
    T *to = write<T>(grad_x);
    at::parallel_for(0, x.numel(), GRAIN, [&](int64_t a, int64_t b) {
      typed<T>().activate_backward(activation, upstream + a, from + a, to + a, b - a);
    });
  });
  return grad_x;
}

struct Activate : torch::autograd::Function<Activate> {
  static Tensor forward(AutogradContext *context, const Tensor &x, int64_t activation) {
    context->save_for_backward({x});
    context->saved_data["activation"] = activation;
    return activate(x, static_cast<Activation>(activation));
  }
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    return {activate_backward(grads[0].contiguous(), saved[0], saved_activation(context)), Tensor()};
  }
};

Tensor gated(const Tensor &gate, const Tensor &up, Activation activation) {
  Tensor y = at::empty_like(gate);
  by_type(gate.scalar_type(), [&](auto one) {
    using T = decltype(one);
    const T *g = read<T>(gate), *u = read<T>(up);
    T *to = write<T>(y);
    at::parallel_for(0, gate.numel(), GRAIN, [&](int64_t a, int64_t b) {
      typed<T>().gated(activation, g + a, u + a, to + a, b - a);
    });
  });
  return y;
}

std::tuple<Tensor, Tensor> gated_backward(const Tensor &grad, const Tensor &gate, const Tensor &up, Activation activation) {
  Tensor grad_gate = at::empty_like(gate), grad_up = at::empty_like(up);
  by_type(gate.scalar_type(), [&](auto one) {
    using T = decltype(one);
    const T *upstream = read<T>(grad), *g = read<T>(gate), *u = read<T>(up);
    T *to_gate = write<T>(grad_gate), *to_up = write<T>(grad_up);
    at::parallel_for(0, gate.numel(), GRAIN, [&](int64_t a, int64_t b) {
      typed<T>().gated_backward(activation, upstream + a, g + a, u + a, to_gate + a, to_up + a, b - a);
    });
  });
  return {grad_gate, grad_up};
}

struct Gated : torch::autograd::Function<Gated> {
  static Tensor forward(AutogradContext *context, const Tensor &gate, const Tensor &up, int64_t activation) {
    context->save_for_backward({gate, up});
    context->saved_data["activation"] = activation;
    return gated(gate, up, static_cast<Activation>(activation));
  }
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    auto [grad_gate, grad_up] = gated_backward(grads[0].contiguous(), saved[0], saved[1], saved_activation(context));
    return {grad_gate, grad_up, Tensor()};
  }
};

// Gradient of a weight [out, in] from that of y [rows, out]; undefined where not needed.
Tensor weight_gradient(const Tensor &weight, const Tensor &grad, const Tensor &x) {
  return weight.requires_grad() ? grad.t().mm(x) : Tensor();
}
Tensor bias_gradient(const Tensor &bias, const Tensor &grad) {
  return bias.defined() && bias.requires_grad() ? grad.sum(0) : Tensor();
}

// The norm before linear layers: a layer norm, whose bias may be undefined, or an RMS norm.
struct AnyNorm {
  Tensor weight, bias;
  NormNumbers numbers;
  bool is_layer_norm;

  // Of `x [rows, n]`, and what the backward pass takes: the means, undefined for an RMS norm, and the factors of the rows.
  std::tuple<Tensor, Tensor, Tensor> forward(const Tensor &x) const {
    if (is_layer_norm) return at::native_layer_norm(x, {x.size(1)}, weight, bias, numbers.eps);
    auto [y, rstd] = rms_norm(x, weight, numbers);
    return {y, Tensor(), rstd};
  }
  // Gradients of x, weight and bias.
  std::tuple<Tensor, Tensor, Tensor> backward(const Tensor &grad, const Tensor &x, const Tensor &mean, const Tensor &rstd) const {
    if (is_layer_norm) {
      const std::array<bool, 3> wanted = {true, true, bias.defined()};
      return at::native_layer_norm_backward(grad, x, {x.size(1)}, mean, rstd, weight, bias, wanted);
    }
    auto [grad_x, grad_w] = rms_norm_backward(grad, x, weight, rstd, numbers);
    return {grad_x, grad_w, Tensor()};
  }
};

// Linear layers fused with their norm: saves the norm's input only; the backward pass recomputes the norm.
struct NormedLinears : torch::autograd::Function<NormedLinears> {
  // `layers`: n weights, then the biases that exist; bit i of `biased` says whether layer i has one.
  static variable_list forward(AutogradContext *context, const Tensor &x, const Tensor &w, const std::optional<Tensor> &b,
                               at::TensorList layers, int64_t n, int64_t biased, double eps, double offset, bool is_layer_norm) {
    const AnyNorm norm = {w, b.value_or(Tensor()), {eps, offset}, is_layer_norm};
    const Tensor normed = std::get<0>(norm.forward(x));
    variable_list kept = {x, w, norm.bias}, outputs;
    kept.insert(kept.end(), layers.begin(), layers.end());
    context->save_for_backward(std::move(kept));
    context->saved_data["n"] = n;
    context->saved_data["biased"] = biased;
    context->saved_data["eps"] = eps;
    context->saved_data["offset"] = offset;
    context->saved_data["is_layer_norm"] = is_layer_norm;
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
    const AnyNorm norm = {w, saved[2], RmsNorm::norm_numbers(context), context->saved_data["is_layer_norm"].toBool()};
    auto [normed, mean, rstd] = norm.forward(x);
    variable_list result(saved.size() + 5);
    Tensor upstream;
    int64_t bias = FIRST_LAYER + n;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t own_bias = biased >> i & 1 ? bias++ : 0;
      if (!grads[i].defined()) continue;
      const Tensor grad = grads[i].contiguous(), &weight = saved[FIRST_LAYER + i];
      result[FIRST_LAYER + i] = weight_gradient(weight, grad, normed);
      if (own_bias > 0) result[own_bias] = bias_gradient(saved[own_bias], grad);
      if (!x.requires_grad() && !w.requires_grad() && !(norm.bias.defined() && norm.bias.requires_grad())) continue;
      if (upstream.defined()) {
        upstream.addmm_(grad, weight);
      } else {
        upstream = grad.mm(weight);
      }
    }
    normed.reset();
    if (upstream.defined()) std::tie(result[0], result[1], result[2]) = norm.backward(upstream, x, mean, rstd);
    return result;
  }

 private:
  // Its place among what is saved.
  static constexpr int64_t FIRST_LAYER = 3;
};

// A linear layer fused with its gated activation, which the backward pass recomputes.
struct GatedLinear : torch::autograd::Function<GatedLinear> {
  static Tensor forward(AutogradContext *context, const Tensor &gate, const Tensor &up, const Tensor &weight,
                        const std::optional<Tensor> &bias, int64_t activation) {
    context->save_for_backward({gate, up, weight, bias.value_or(Tensor())});
    context->saved_data["activation"] = activation;
    return at::linear(gated(gate, up, static_cast<Activation>(activation)), weight, bias);
  }
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor grad = grads[0].contiguous(), &gate = saved[0], &up = saved[1], &weight = saved[2];
    const Activation activation = saved_activation(context);
    variable_list result(5);
    if (weight.requires_grad()) result[2] = weight_gradient(weight, grad, gated(gate, up, activation));
    result[3] = bias_gradient(saved[3], grad);
    if (gate.requires_grad() || up.requires_grad()) {
      std::tie(result[0], result[1]) = gated_backward(grad.mm(weight), gate, up, activation);
    }
    return result;
  }
};

// A linear layer fused with the activation of its input, which the backward pass recomputes.
struct ActivatedLinear : torch::autograd::Function<ActivatedLinear> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &weight, const std::optional<Tensor> &bias,
                        int64_t activation) {
    context->save_for_backward({x, weight, bias.value_or(Tensor())});
    context->saved_data["activation"] = activation;
    return at::linear(activate(x, static_cast<Activation>(activation)), weight, bias);
  }
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor grad = grads[0].contiguous(), &x = saved[0], &weight = saved[1];
    const Activation activation = saved_activation(context);
    variable_list result(4);
    if (weight.requires_grad()) result[1] = weight_gradient(weight, grad, activate(x, activation));
    result[2] = bias_gradient(saved[2], grad);
    if (x.requires_grad()) result[0] = activate_backward(grad.mm(weight), x, activation);
    return result;
  }
};

// `x [tokens, heads, head_dim]`, contiguous within a head; tables `[tokens, width]`.
Tensor rotate(const Tensor &x, const Tensor &cos, const Tensor &sin, bool adjacent, float sign) {
  const int64_t tokens = x.size(0), heads = x.size(1), head_dim = x.size(2);
  Tensor y = at::empty({tokens, heads, head_dim}, x.options());
  by_type(x.scalar_type(), [&](auto one) {
    using T = decltype(one);
    by_type(cos.scalar_type(), [&](auto other) {
      using A = decltype(other);
      const Rotation<T, A> rotation = {{read<T>(x), x.stride(0), x.stride(1)}, read<A>(cos), read<A>(sin), heads, head_dim,
                                       cos.size(1), sign, adjacent};
      T *to = write<T>(y);
      at::parallel_for(0, tokens, rows_at_once(heads * head_dim), [&](int64_t a, int64_t b) {
        if constexpr (std::is_same_v<T, A>) {
          typed<T>().rotate(rotation, a, b, to);
        } else if constexpr (std::is_same_v<A, float>) {
          typed<T>().rotate_by_f32(rotation, a, b, to);
        } else {
          TORCH_CHECK(false, "a table in bfloat16 for numbers in float32");
        }
      });
    });
  });
  return y;
}

struct Rotate : torch::autograd::Function<Rotate> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &cos, const Tensor &sin, bool adjacent) {
    context->save_for_backward({cos, sin});
    context->saved_data["adjacent"] = adjacent;
    return rotate(x, cos, sin, adjacent, 1);
  }
  // The inverse of a rotation is its transpose.
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const bool adjacent = context->saved_data["adjacent"].toBool();
    return {rotate(grads[0].contiguous(), saved[0], saved[1], adjacent, -1), Tensor(), Tensor(), Tensor()};
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

int vlm_r1_rms_norm(Tensor *x, Tensor *w, double eps, double offset, Tensor **y, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    const Tensor from = x->dim() == 3 && x->stride(2) == 1 ? *x : x->contiguous(), weight = w->contiguous();
    const bool graph = recorded({x, w});
    *y = new Tensor(graph ? RmsNorm::apply(from, weight, eps, offset) : std::get<0>(rms_norm(from, weight, {eps, offset})));
  });
}

int vlm_r1_activate(Tensor *x, int activation, Tensor **y, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    const Tensor from = x->contiguous();
    *y = new Tensor(recorded({x}) ? Activate::apply(from, activation) : activate(from, static_cast<Activation>(activation)));
  });
}

int vlm_r1_gated(Tensor *gate, Tensor *up, int activation, Tensor **y, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    const Tensor g = gate->contiguous(), u = up->contiguous();
    TORCH_CHECK(g.sizes() == u.sizes() && g.scalar_type() == u.scalar_type(), "gate and up differ");
    *y = new Tensor(recorded({gate, up}) ? Gated::apply(g, u, activation) : gated(g, u, static_cast<Activation>(activation)));
  });
}

// `b`: a layer norm's bias, or null. `layers`: n weights, then n biases or null.
int vlm_r1_normed_linears(Tensor *x, Tensor *w, Tensor *b, double eps, double offset, int is_layer_norm, size_t n, Tensor **layers,
                          Tensor **y, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    variable_list all;
    int64_t biased = 0;
    for (size_t i = 0; i < 2 * n; ++i) {
      if (!layers[i]) continue;
      all.push_back(*layers[i]);
      if (i >= n) biased |= int64_t{1} << (i - n);
    }
    const std::optional<Tensor> bias = b ? std::optional<Tensor>(*b) : std::nullopt;
    auto results = NormedLinears::apply(x->contiguous(), *w, bias, at::TensorList(all), static_cast<int64_t>(n), biased, eps, offset,
                                        is_layer_norm != 0);
    for (size_t i = 0; i < n; ++i) y[i] = new Tensor(std::move(results[i]));
  });
}

int vlm_r1_gated_linear(Tensor *gate, Tensor *up, Tensor *weight, Tensor *bias, int activation, Tensor **y, char *error,
                        size_t capacity) {
  return catch_into(error, capacity, [&] {
    const Tensor g = gate->contiguous(), u = up->contiguous();
    TORCH_CHECK(g.sizes() == u.sizes() && g.scalar_type() == u.scalar_type(), "gate and up differ");
    *y = new Tensor(GatedLinear::apply(g, u, *weight, bias ? std::optional<Tensor>(*bias) : std::nullopt, activation));
  });
}

int vlm_r1_activated_linear(Tensor *x, Tensor *weight, Tensor *bias, int activation, Tensor **y, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    const auto optional_bias = bias ? std::optional<Tensor>(*bias) : std::nullopt;
    *y = new Tensor(ActivatedLinear::apply(x->contiguous(), *weight, optional_bias, activation));
  });
}

int vlm_r1_rotate(Tensor *x, Tensor *cos, Tensor *sin, int adjacent, Tensor **y, char *error, size_t capacity) {
  return catch_into(error, capacity, [&] {
    TORCH_CHECK(x->dim() == 3 && cos->dim() == 2 && cos->size(0) == x->size(0) && cos->size(1) <= x->size(2) &&
                    cos->sizes() == sin->sizes() && cos->scalar_type() == sin->scalar_type() && cos->size(1) % 2 == 0,
                "angles ", cos->sizes(), " do not fit ", x->sizes());
    const Tensor from = x->stride(2) == 1 ? *x : x->contiguous();
    const Tensor c = cos->contiguous(), s = sin->contiguous();
    *y = new Tensor(recorded({x}) ? Rotate::apply(from, c, s, adjacent != 0) : rotate(from, c, s, adjacent != 0, 1));
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

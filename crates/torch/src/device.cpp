// Rotary embedding in three of libtorch's operations, with its gradient: for devices without a kernel of ours.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "catch.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// x [T, heads, head_dim] turned by angles of the given sign; cos, sin [T, head_dim], whose second half equals the first.
// Products of f32 tables are rounded once, at the end.
Tensor turned(const Tensor &x, const Tensor &cos, const Tensor &sin, double sign) {
  const int64_t half = x.size(2) / 2;
  const Tensor scaled = x * cos.unsqueeze(1), sines = sin.narrow(1, 0, half).unsqueeze(1);
  Tensor y = at::empty(x.sizes(), x.options());
  Tensor first = y.narrow(2, 0, half), second = y.narrow(2, half, half);
  at::addcmul_out(first, scaled.narrow(2, 0, half), x.narrow(2, half, half), sines, -sign);
  at::addcmul_out(second, scaled.narrow(2, half, half), x.narrow(2, 0, half), sines, sign);
  return y;
}

struct Rotate : torch::autograd::Function<Rotate> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &cos, const Tensor &sin) {
    context->save_for_backward({cos, sin});
    return turned(x, cos, sin, 1.0);
  }

  // The transpose of a rotation turns back.
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    return {turned(grads[0], saved[0], saved[1], -1.0), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" int vlm_r1_rotate_by_operations(const Tensor *x, const Tensor *cos, const Tensor *sin, Tensor **y, char *error,
                                           size_t capacity) {
  *y = nullptr;
  return catch_into(error, capacity, [&] {
    TORCH_CHECK(x->dim() == 3 && x->size(2) % 2 == 0 && cos->sizes() == sin->sizes() && cos->dim() == 2 &&
                    cos->size(0) == x->size(0) && cos->size(1) == x->size(2),
                "rotate: tables ", cos->sizes(), " and ", sin->sizes(), " do not fit ", x->sizes());
    if (at::GradMode::is_enabled() && x->requires_grad()) {
      *y = new Tensor(Rotate::apply(*x, *cos, *sin));
    } else {
      const at::NoGradGuard no_grad;
      *y = new Tensor(turned(*x, *cos, *sin, 1.0));
    }
  });
}

// Rotary embedding in three of libtorch's operations, with its gradient: for devices without a kernel of ours.

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "catch.h"

namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The first `width` channels of x as pairs [T, heads, 2, width / 2].
Tensor pairs(const Tensor &x, int64_t width, bool adjacent) {
  const Tensor turned = x.narrow(2, 0, width);
  return adjacent ? turned.unflatten(2, {width / 2, 2}).transpose(2, 3) : turned.unflatten(2, {2, width / 2});
}

// x [T, heads, head_dim] turned by angles of the given sign; cos, sin [T, width], whose second half equals the first.
// Products of f32 tables are rounded once, at the end.
Tensor turned(const Tensor &x, const Tensor &cos, const Tensor &sin, bool adjacent, double sign) {
  const int64_t width = cos.size(1), rest = x.size(2) - width;
  const auto table = [&](const Tensor &all) { return all.narrow(1, 0, width / 2).unsqueeze(1); };
  const Tensor from = pairs(x, width, adjacent), scaled = from * table(cos).unsqueeze(2), sines = table(sin);
  Tensor y = at::empty(x.sizes(), x.options());
  const Tensor to = pairs(y, width, adjacent);
  Tensor first = to.select(2, 0), second = to.select(2, 1);
  at::addcmul_out(first, scaled.select(2, 0), from.select(2, 1), sines, -sign);
  at::addcmul_out(second, scaled.select(2, 1), from.select(2, 0), sines, sign);
  if (rest > 0) y.narrow(2, width, rest).copy_(x.narrow(2, width, rest));
  return y;
}

struct Rotate : torch::autograd::Function<Rotate> {
  static Tensor forward(AutogradContext *context, const Tensor &x, const Tensor &cos, const Tensor &sin, bool adjacent) {
    context->save_for_backward({cos, sin});
    context->saved_data["adjacent"] = adjacent;
    return turned(x, cos, sin, adjacent, 1.0);
  }

  // The transpose of a rotation turns back.
  static variable_list backward(AutogradContext *context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const bool adjacent = context->saved_data["adjacent"].toBool();
    return {turned(grads[0], saved[0], saved[1], adjacent, -1.0), Tensor(), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" int vlm_r1_rotate_by_operations(const Tensor *x, const Tensor *cos, const Tensor *sin, int adjacent, Tensor **y,
                                           char *error, size_t capacity) {
  *y = nullptr;
  return catch_into(error, capacity, [&] {
    TORCH_CHECK(x->dim() == 3 && cos->sizes() == sin->sizes() && cos->dim() == 2 && cos->size(1) % 2 == 0 &&
                    cos->size(0) == x->size(0) && cos->size(1) <= x->size(2),
                "rotate: tables ", cos->sizes(), " and ", sin->sizes(), " do not fit ", x->sizes());
    if (at::GradMode::is_enabled() && x->requires_grad()) {
      *y = new Tensor(Rotate::apply(*x, *cos, *sin, adjacent != 0));
    } else {
      const at::NoGradGuard no_grad;
      *y = new Tensor(turned(*x, *cos, *sin, adjacent != 0, 1.0));
    }
  });
}

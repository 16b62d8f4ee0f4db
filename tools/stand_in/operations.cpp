// Operations on device tensors: each runs on the CPU, over the same memory, if CUDA would have taken it.

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>
#include <cstring>
#include <unordered_map>
#include <unordered_set>

#include "generator.h"
#include "stand_in.h"
// Names with CUDA kernels, one per line in quotes; made from libtorch's headers.
static const std::unordered_set<std::string> &cuda_kernels() {
  static const auto *names = new std::unordered_set<std::string>{
#include "cuda_kernels.inc"
  };
  return *names;
}

namespace stand_in {

namespace {

using c10::DispatchKey;
using c10::IValue;
using at::Tensor;
using Stack = torch::jit::Stack;

// Where CUDA takes a CPU tensor of no dimensions as a number.
bool takes_cpu_numbers(const std::string &name) {
  static const auto *names = new std::unordered_set<std::string>{
      "add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "pow", "pow_", "remainder", "fmod", "eq", "ne", "lt",
      "le", "gt", "ge", "maximum", "minimum", "where", "lerp", "lerp_", "addcmul", "addcmul_", "addcdiv", "addcdiv_",
      "masked_fill", "masked_fill_", "fill_", "clamp", "clamp_", "clamp_min", "clamp_max", "logical_and", "logical_or",
      "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor", "atan2", "copysign", "floor_divide", "index_fill_", "xlogy",
      "sigmoid_backward", "tanh_backward", "threshold_backward"};
  return names->count(name) != 0;
}

// Where the host learns something that it can only know once the device is done.
bool makes_host_wait(const std::string &name) {
  static const auto *names = new std::unordered_set<std::string>{
      "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "unique_consecutive", "bincount", "repeat_interleave",
      "is_set_to", "histc", "multinomial", "_linalg_svd", "linalg_lu_factor_ex"};
  return names->count(name) != 0;
}

bool takes_cpu_indices(const std::string &name) {
  return name == "index" || name == "index_put_" || name == "_index_put_impl_" || name == "_unsafe_index";
}

bool is_product(const std::string &name) {
  static const auto *names = new std::unordered_set<std::string>{"mm",  "bmm",    "addmm",   "addmm_", "baddbmm",
                                                                 "baddbmm_", "addmv", "addbmm", "dot", "_addmm_activation"};
  return names->count(name) != 0;
}

std::string base_name(const std::string &qualified) {
  const size_t colons = qualified.rfind(':');
  return colons == std::string::npos ? qualified : qualified.substr(colons + 1);
}

bool has_cuda_kernel(std::string name) {
  const auto &kernels = cuda_kernels();
  if (kernels.count(name) != 0) return true;
  if (!name.empty() && name.back() == '_') name.pop_back();
  return kernels.count(name) != 0;
}

Tensor with_memory(const c10::Storage &storage, const Tensor &like, DispatchKey key) {
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key), like.dtype());
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  return tensor;
}

c10::Storage host_storage(const c10::Storage &storage) {
  void *host = storage.data() == nullptr ? nullptr : to_host_address(storage.data());
  return c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(),
                      c10::DataPtr(host, c10::Device(c10::DeviceType::CPU)), c10::GetCPUAllocator(), /*resizable=*/true);
}

// The CPU tensors of a call: one storage for each storage, one tensor for each tensor.
struct Views {
  struct Memory {
    c10::Storage device;
    c10::Storage host;
    void *address;
  };
  std::unordered_map<c10::StorageImpl *, Memory> memory;
  std::unordered_map<c10::TensorImpl *, std::pair<Tensor, Tensor>> tensors;

  Tensor view(const Tensor &tensor) {
    const auto known = tensors.find(tensor.unsafeGetTensorImpl());
    if (known != tensors.end()) return known->second.second;
    c10::StorageImpl *storage = tensor.storage().unsafeGetStorageImpl();
    auto found = memory.find(storage);
    if (found == memory.end()) {
      c10::Storage host = host_storage(tensor.storage());
      void *address = host.mutable_data();
      found = memory.emplace(storage, Memory{tensor.storage(), std::move(host), address}).first;
    }
    Tensor made = with_memory(found->second.host, tensor, DispatchKey::CPU);
    tensors.emplace(tensor.unsafeGetTensorImpl(), std::pair(tensor, made));
    return made;
  }

  // Gives tensors that the operation resized their new sizes and memory.
  void write_back() {
    for (auto &[impl, pair] : tensors) {
      auto &[device, host] = pair;
      Memory &own = memory.at(device.storage().unsafeGetStorageImpl());
      if (host.storage().data() != own.address) {
        const size_t bytes = host.storage().nbytes();
        c10::DataPtr fresh = c10::GetAllocator(c10::DeviceType::CUDA)->allocate(bytes);
        if (bytes != 0) std::memcpy(to_host_address(fresh.get()), host.storage().data(), bytes);
        device.storage().set_data_ptr_noswap(std::move(fresh));
        device.storage().set_nbytes(bytes);
        own.address = const_cast<void *>(host.storage().data());
      }
      if (device.sizes() != host.sizes() || device.strides() != host.strides() ||
          device.storage_offset() != host.storage_offset()) {
        impl->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
      }
    }
  }

  // The device tensor of a result: an argument, a view of one, or a new one.
  std::pair<Tensor, bool> device_tensor(const Tensor &result, c10::Device device) {
    for (auto &[impl, pair] : tensors) {
      if (pair.second.is_same(result)) return {pair.first, false};
    }
    for (auto &[impl, own] : memory) {
      if (own.host.unsafeGetStorageImpl() == result.storage().unsafeGetStorageImpl()) {
        return {with_memory(own.device, result, DispatchKey::CUDA), false};
      }
    }
    Tensor made = at::empty_strided(result.sizes(), result.strides(), result.options().device(device));
    host_view(made).copy_(result);
    return {made, true};
  }
};

// Applies `change` to every tensor of a value.
template <typename F>
IValue map_tensors(const IValue &value, F &&change) {
  if (value.isTensor()) {
    const Tensor &tensor = value.toTensor();
    return tensor.defined() ? IValue(change(tensor)) : value;
  }
  if (value.isTensorList()) {
    c10::List<Tensor> out;
    for (const Tensor &tensor : value.toTensorVector()) out.push_back(tensor.defined() ? change(tensor) : tensor);
    return out;
  }
  if (value.isList() && value.toListRef().size() != 0) {
    bool any = false;
    for (const IValue &item : value.toListRef()) any |= item.isTensor();
    if (any) {
      c10::List<std::optional<Tensor>> out;
      for (const IValue &item : value.toListRef()) {
        if (item.isTensor() && item.toTensor().defined()) {
          out.push_back(change(item.toTensor()));
        } else {
          out.push_back(std::nullopt);
        }
      }
      return out;
    }
  }
  return value;
}

struct Call {
  const c10::OperatorHandle op;
  std::string name;
  std::vector<IValue> arguments;
  c10::Device device{c10::DeviceType::CPU};

  // Finds the device, and refuses what CUDA refuses.
  void check() {
    for (const IValue &argument : arguments) {
      map_tensors(argument, [&](const Tensor &tensor) {
        if (!tensor.is_cuda()) return tensor;
        if (device.is_cpu()) device = tensor.device();
        TORCH_CHECK(tensor.device() == device, "Expected all tensors to be on the same device, but found at least two devices, ",
                    device, " and ", tensor.device(), "! (", name, ")");
        TORCH_CHECK(!is_product(name) || !c10::isIntegralType(tensor.scalar_type(), true), '"', name,
                    "_cuda\" not implemented for '", tensor.scalar_type(), "'");
        return tensor;
      });
    }
    TORCH_CHECK(has_cuda_kernel(name), "Could not run '", op.schema(), "' with arguments from the 'CUDA' backend.");
    for (size_t i = 0; i < arguments.size(); ++i) {
      map_tensors(arguments[i], [&](const Tensor &tensor) {
        if (tensor.is_cuda()) return tensor;
        if (takes_cpu_indices(name) && arguments[i].isList()) {
          count_copy(CopyKind::TO_DEVICE_PAGEABLE, tensor.nbytes());
          wait("an index in host memory");
          return tensor;
        }
        const bool is_number = tensor.dim() == 0 && (takes_cpu_numbers(name) || tensor.unsafeGetTensorImpl()->is_wrapped_number());
        TORCH_CHECK(is_number, "Expected all tensors to be on the same device, but found at least two devices, ", device,
                    " and cpu! (", name, ", argument ", i, ")");
        return tensor;
      });
    }
    if (name == "_fused_adamw_") check_adamw();
    if (makes_host_wait(name) || has_bool_index()) wait(name.c_str());
  }

  void check_adamw() const {
    const auto list = [&](size_t i) { return arguments[i].toTensorVector(); };
    const auto params = list(0);
    for (size_t which = 1; which <= 3; ++which) {
      const auto others = list(which);
      for (size_t i = 0; i < params.size(); ++i) {
        TORCH_CHECK(others[i].scalar_type() == params[i].scalar_type() && others[i].strides() == params[i].strides(),
                    "params, grads, exp_avgs, and exp_avg_sqs must have same dtype, device, and layout");
      }
    }
    for (const Tensor &step : list(5)) TORCH_CHECK(step.is_cuda(), "state_steps must be on the device");
  }

  bool has_bool_index() const {
    if (!takes_cpu_indices(name)) return false;
    bool any = false;
    map_tensors(arguments[1], [&](const Tensor &tensor) {
      any |= tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte;
      return tensor;
    });
    return any;
  }

  // Runs it on the CPU and returns what it returned there.
  std::vector<IValue> run(Views &views) const {
    Stack stack;
    for (size_t i = 0; i < arguments.size(); ++i) {
      const IValue &argument = arguments[i];
      if (argument.isDevice()) {
        stack.emplace_back(c10::Device(c10::DeviceType::CPU));
      } else if (argument.isGenerator() || takes_generator(i)) {
        const at::Generator given = argument.isGenerator() ? argument.toGenerator() : at::Generator();
        stack.emplace_back(cpu_generator(given, device.index()));
      } else {
        stack.push_back(map_tensors(argument, [&](const Tensor &x) { return x.is_cuda() ? views.view(x) : x; }));
      }
    }
    at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(c10::DispatchKeySet(DispatchKey::CPU), &stack);
    views.write_back();
    const Fault fault = fault_of(fault_name());
    const auto spoil = [&](const Tensor &tensor) {
      damage(fault, name, tensor);
      return tensor;
    };
    for (const IValue &result : stack) map_tensors(result, spoil);
    // What only works in place returns nothing.
    if (stack.empty() && fault != Fault::NONE) {
      map_tensors(arguments[0], [&](const Tensor &tensor) { return spoil(views.view(tensor)); });
    }
    return stack;
  }

  // A product that adds a whole matrix, unlike the one that adds a bias, has a name of its own.
  std::string fault_name() const {
    return name == "addmm" && arguments[0].toTensor().dim() == 2 ? "addmm.residual" : name;
  }

  bool takes_generator(size_t i) const {
    const auto &type = op.schema().arguments()[i].type();
    return type->kind() == c10::TypeKind::OptionalType &&
           type->expectRef<c10::OptionalType>().getElementType()->kind() == c10::TypeKind::GeneratorType;
  }

  // A tensor of its own over the same memory: later changes of sizes do not reach it.
  static Tensor frozen(const Tensor &tensor) {
    return tensor.is_cuda() ? with_memory(tensor.storage(), tensor, DispatchKey::CUDA) : tensor;
  }

  void protect_targets() const {
    const auto &declared = op.schema().arguments();
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (declared[i].alias_info() == nullptr || !declared[i].alias_info()->isWrite()) continue;
      map_tensors(arguments[i], [&](const Tensor &tensor) {
        if (tensor.is_cuda()) protect(tensor);
        return tensor;
      });
    }
  }

  std::vector<IValue> operator()() {
    check();
    const bool is_recorded = is_capturing();
    if (is_recorded) {
      protect_targets();
    } else {
      count_launch(name);
    }
    Views views;
    std::vector<IValue> results = run(views);
    std::vector<std::pair<size_t, Tensor>> fresh;
    size_t number = 0;
    for (IValue &result : results) {
      result = map_tensors(result, [&](const Tensor &tensor) {
        auto [made, is_new] = views.device_tensor(tensor, device);
        if (is_new) fresh.emplace_back(number, frozen(made));
        ++number;
        return made;
      });
    }
    if (is_recorded) record_again(std::move(fresh));
    return results;
  }

  void record_again(std::vector<std::pair<size_t, Tensor>> fresh) const {
    Call again = *this;
    for (IValue &argument : again.arguments) argument = map_tensors(argument, frozen);
    record([again = std::move(again), fresh = std::move(fresh)] {
      Views views;
      const std::vector<IValue> results = again.run(views);
      size_t number = 0, next = 0;
      for (const IValue &result : results) {
        map_tensors(result, [&](const Tensor &tensor) {
          if (tensor.is_floating_point()) damage(fault_of("graph"), "graph", tensor);
          if (next < fresh.size() && fresh[next].first == number) host_view(fresh[next++].second).copy_(tensor);
          ++number;
          return tensor;
        });
      }
    });
  }
};

void on_the_cpu(const c10::OperatorHandle &op, Stack *stack) {
  const size_t count = op.schema().arguments().size();
  Call call{op, base_name(op.schema().name()), {stack->end() - static_cast<long>(count), stack->end()}};
  std::vector<IValue> results = call();
  stack->erase(stack->end() - static_cast<long>(count), stack->end());
  for (IValue &result : results) stack->push_back(std::move(result));
}

// Work of our own on the device: counted, or recorded too.
void launch(const std::string &name, const std::vector<Tensor> &targets, const std::function<void()> &work) {
  if (!is_capturing()) {
    count_launch(name);
    work();
    return;
  }
  for (const Tensor &target : targets) protect(target);
  work();
  record(work);
}

// --- allocation

c10::Device chosen(std::optional<at::Device> device) {
  const c10::Device asked = device.value_or(c10::Device(c10::DeviceType::CUDA));
  const c10::DeviceIndex index = asked.has_index() ? asked.index() : current_device();
  TORCH_CHECK(index < device_count(), "CUDA error: invalid device ordinal");
  return {c10::DeviceType::CUDA, index};
}

Tensor allocated(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> type, std::optional<at::Device> device) {
  const c10::DeviceIndex before = current_device();
  set_current_device(chosen(device).index());
  const auto kind = c10::scalarTypeToTypeMeta(type.value_or(at::kFloat));
  size_t bytes = 0;
  bool is_empty = false;
  int64_t last = 0;
  for (size_t i = 0; i < size.size(); ++i) {
    is_empty |= size[i] == 0;
    last += (size[i] - 1) * stride[i];
  }
  if (!is_empty) bytes = static_cast<size_t>(last + 1) * kind.itemsize();
  c10::Storage storage;
  try {
    auto *allocator = c10::GetAllocator(c10::DeviceType::CUDA);
    storage = c10::Storage(c10::Storage::use_byte_size_t(), bytes, allocator->allocate(bytes), allocator, true);
  } catch (...) {
    set_current_device(before);
    throw;
  }
  set_current_device(before);
  auto tensor = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(DispatchKey::CUDA), kind);
  tensor.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return tensor;
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                     std::optional<at::Device> device, std::optional<bool>) {
  return allocated(size, stride, type, device);
}

std::vector<int64_t> packed_strides(at::IntArrayRef size) {
  std::vector<int64_t> strides(size.size());
  int64_t next = 1;
  for (size_t i = size.size(); i-- > 0;) {
    strides[i] = next;
    next *= std::max<int64_t>(size[i], 1);
  }
  return strides;
}

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>, std::optional<at::Device> device,
             std::optional<bool>, std::optional<at::MemoryFormat> format) {
  Tensor made = allocated(size, packed_strides(size), type, device);
  const auto asked = format.value_or(at::MemoryFormat::Contiguous);
  if (asked != at::MemoryFormat::Contiguous && asked != at::MemoryFormat::Preserve) {
    made.unsafeGetTensorImpl()->empty_tensor_restride(asked);
  }
  return made;
}

const Tensor &resize_(const Tensor &self, at::IntArrayRef size, std::optional<at::MemoryFormat>) {
  if (self.sizes() == size) return self;
  auto *impl = self.unsafeGetTensorImpl();
  const auto strides = packed_strides(size);
  size_t bytes = self.dtype().itemsize();
  for (const int64_t length : size) bytes *= static_cast<size_t>(length);
  bytes += static_cast<size_t>(self.storage_offset()) * self.dtype().itemsize();
  if (bytes > self.storage().nbytes()) {
    if (is_capturing()) refuse_in_capture("a tensor that grows");
    c10::DataPtr fresh = c10::GetAllocator(c10::DeviceType::CUDA)->allocate(bytes);
    std::memcpy(to_host_address(fresh.get()), to_host_address(self.storage().data()), self.storage().nbytes());
    self.storage().set_data_ptr_noswap(std::move(fresh));
    self.storage().set_nbytes(bytes);
  }
  impl->set_sizes_and_strides(size, strides);
  return self;
}

Tensor &set_storage_(Tensor &self, c10::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  const auto strides = stride.empty() ? packed_strides(size) : stride.vec();
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, strides, offset);
  return self;
}

Tensor &set_tensor_(Tensor &self, const Tensor &source) {
  if (self.is_same(source)) return self;
  return set_storage_(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

Tensor &set_nothing_(Tensor &self) {
  Tensor nothing = at::empty({0}, self.options());
  return set_storage_(self, nothing.storage(), 0, {0}, {1});
}

// --- copies

bool is_plain(const Tensor &a, const Tensor &b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() && a.is_contiguous() && b.is_contiguous();
}

char *bytes_of(const Tensor &tensor) {
  return static_cast<char *>(to_host_address(tensor.storage().data())) + tensor.storage_offset() * static_cast<int64_t>(tensor.itemsize());
}

void copy_within(const Tensor &target, const Tensor &source) {
  const Tensor to = with_memory(target.storage(), target, DispatchKey::CUDA);
  const Tensor from = with_memory(source.storage(), source, DispatchKey::CUDA);
  count_copy(target.device() == source.device() ? CopyKind::WITHIN_DEVICE : CopyKind::BETWEEN_DEVICES, target.nbytes());
  launch("copy_", {target}, [to, from] {
    Views views;
    views.view(to).copy_(views.view(from));
  });
}

void copy_to_device(const Tensor &target, const Tensor &source, bool non_blocking) {
  const bool is_fast = is_plain(target, source) && source.is_pinned();
  const Tensor whole = is_fast ? source : source.to(target.scalar_type()).expand_as(target).contiguous();
  count_copy(is_fast && non_blocking ? CopyKind::TO_DEVICE_PINNED : CopyKind::TO_DEVICE_PAGEABLE, whole.nbytes());
  if (is_fast && non_blocking) {
    const Tensor to = with_memory(target.storage(), target, DispatchKey::CUDA);
    const auto work = [to, whole] {
      host_view(to).copy_(whole);
      damage(fault_of("pinned"), "pinned", to.is_floating_point() ? host_view(to) : Tensor());
      watch_pinned(whole.const_data_ptr(), whole.nbytes());
    };
    if (is_capturing()) {
      protect(target);
      record(work);
    } else {
      work();
    }
    return;
  }
  if (non_blocking && !is_capturing()) {
    // CUDA takes the bytes at once; the host goes on.
  } else {
    wait("a copy from pageable host memory");
  }
  host_view(target).copy_(whole);
}

void copy_to_host(const Tensor &target, const Tensor &source, bool non_blocking) {
  const bool is_fast = non_blocking && is_plain(target, source) && target.is_pinned();
  count_copy(is_fast ? CopyKind::TO_HOST_PINNED : CopyKind::TO_HOST_PAGEABLE, target.nbytes());
  if (is_fast) {
    const Tensor from = with_memory(source.storage(), source, DispatchKey::CUDA);
    const auto work = [target, from] {
      const Tensor sent = host_view(from).clone();
      damage(fault_of("pinned"), "pinned", sent.is_floating_point() ? sent : Tensor());
      copy_to_pinned(target.mutable_data_ptr(), sent.const_data_ptr(), sent.nbytes());
    };
    is_capturing() ? record(work) : work();
    return;
  }
  wait("a copy to host memory");
  target.copy_(host_view(source));
}

Tensor &copy_(Tensor &self, const Tensor &source, bool non_blocking) {
  if (self.is_same(source) || self.numel() == 0) return self;
  at::AutoDispatchBelowADInplaceOrView below;
  if (self.is_cuda() && source.is_cuda()) {
    copy_within(self, source);
  } else if (self.is_cuda()) {
    copy_to_device(self, source, non_blocking);
  } else {
    copy_to_host(self, source, non_blocking);
  }
  return self;
}

at::Scalar read_number(const Tensor &self) {
  count_copy(CopyKind::TO_HOST_PAGEABLE, self.nbytes());
  wait("item()");
  return at::_local_scalar_dense(host_view(self));
}

void record_stream(Tensor &, at::Stream) {}

// --- norm and attention, which have no kernel for the CPU of the same shape

std::tuple<Tensor, Tensor> rms_norm(const Tensor &input, at::IntArrayRef shape, const std::optional<Tensor> &weight,
                                    std::optional<double> eps) {
  TORCH_CHECK(shape.size() == 1, "stand-in: a norm over one dimension");
  TORCH_CHECK(!weight || !weight->defined() || weight->is_cuda(), "Expected all tensors to be on the same device (_fused_rms_norm)");
  std::vector<int64_t> size = input.sizes().vec();
  size.back() = 1;
  Tensor output = at::empty(input.sizes(), input.options()), rstd = at::empty(size, input.options().dtype(at::kFloat));
  const double added = eps.value_or(std::numeric_limits<float>::epsilon());
  const Tensor scale = weight.value_or(Tensor());
  launch("_fused_rms_norm", {}, [=] {
    const Tensor x = host_view(input).to(at::kFloat);
    const Tensor root = (x.square().mean(-1, true) + added).rsqrt();
    Tensor y = x * root;
    if (scale.defined()) y = y * host_view(scale).to(at::kFloat);
    host_view(output).copy_(y);
    host_view(rstd).copy_(root);
    damage(fault_of("_fused_rms_norm"), "_fused_rms_norm", host_view(output));
  });
  return {output, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(const Tensor &grad, const Tensor &input, at::IntArrayRef, const Tensor &rstd,
                                             const std::optional<Tensor> &weight, std::array<bool, 2> mask) {
  const Tensor scale = weight.value_or(Tensor());
  Tensor grad_input = mask[0] ? at::empty(input.sizes(), input.options()) : Tensor();
  Tensor grad_weight = mask[1] && scale.defined() ? at::empty(scale.sizes(), scale.options()) : Tensor();
  launch("_fused_rms_norm_backward", {}, [=] {
    const Tensor x = host_view(input).to(at::kFloat), g = host_view(grad).to(at::kFloat), r = host_view(rstd);
    const Tensor normed = x * r;
    const Tensor scaled = scale.defined() ? g * host_view(scale).to(at::kFloat) : g;
    if (grad_input.defined()) host_view(grad_input).copy_((scaled - normed * (scaled * normed).mean(-1, true)) * r);
    if (grad_weight.defined()) host_view(grad_weight).copy_((g * normed).reshape({-1, scale.size(0)}).sum(0));
  });
  return {grad_input, grad_weight};
}

// The sequences of a call with tensors of lengths.
struct Sequences {
  std::vector<std::array<int64_t, 4>> of;  // first query, queries, first key, keys
  Sequences(const Tensor &ends_q, const Tensor &ends_k, const Tensor &used) {
    const Tensor q = host_view(ends_q), k = host_view(ends_k);
    const auto at = [](const Tensor &x, int64_t i) { return int64_t{x.const_data_ptr<int32_t>()[i]}; };
    for (int64_t i = 0; i + 1 < q.size(0); ++i) {
      const int64_t keys = used.defined() ? at(host_view(used), i) : at(k, i + 1) - at(k, i);
      of.push_back({at(q, i), at(q, i + 1) - at(q, i), at(k, i), keys});
    }
  }
};

void check_flash(const Tensor &q, const Tensor &k, const Tensor &v, const Tensor &ends_q, const Tensor &ends_k, const Tensor &used) {
  for (const Tensor &x : {q, k, v}) {
    TORCH_CHECK(x.is_cuda() && (x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16),
                "FlashAttention only support fp16 and bf16 data type");
    TORCH_CHECK(x.stride(-1) == 1, "Input tensor must have contiguous last dimension");
    TORCH_CHECK(x.dim() == 3 && x.size(2) % 8 == 0 && x.size(2) <= 256, "FlashAttention: head dimension must be a multiple of 8, at most 256");
    TORCH_CHECK(x.device() == q.device() && x.scalar_type() == q.scalar_type(), "query, key and value must be of one type and device");
  }
  TORCH_CHECK(q.size(1) % k.size(1) == 0, "Number of heads in key/value must divide number of heads in query");
  for (const Tensor &x : {ends_q, ends_k, used}) {
    if (!x.defined()) continue;
    TORCH_CHECK(x.is_cuda() && x.scalar_type() == at::kInt && x.is_contiguous(), "cu_seqlens must be int32, contiguous and on the device");
  }
  TORCH_CHECK(ends_q.size(0) == ends_k.size(0), "cu_seqlens_k must have the shape of cu_seqlens_q");
  TORCH_CHECK(!used.defined() || used.size(0) + 1 == ends_q.size(0), "seqused_k must have shape (batch_size)");
}

// Scores of one sequence: [heads, queries, keys], scaled and masked, and keys and values for every head.
struct OneSequence {
  Tensor q, k, v, scores;
  OneSequence(const Tensor &all_q, const Tensor &all_k, const Tensor &all_v, const std::array<int64_t, 4> &at, bool causal,
              std::optional<int64_t> left, double scale) {
    const auto part = [](const Tensor &x, int64_t start, int64_t len) {
      return x.narrow(0, start, len).to(at::kFloat).transpose(0, 1).contiguous();
    };
    const int64_t group = all_q.size(1) / all_k.size(1);
    q = part(all_q, at[0], at[1]);
    k = part(all_k, at[2], at[3]).repeat_interleave(group, 0);
    v = part(all_v, at[2], at[3]).repeat_interleave(group, 0);
    scores = at::bmm(q, k.transpose(1, 2)) * scale;
    if (causal) {
      Tensor seen = at::ones({at[1], at[3]}, at::kBool).tril(at[3] - at[1]);
      if (left) seen = seen.triu(at[3] - at[1] - *left);
      scores = scores.masked_fill(seen.logical_not(), -std::numeric_limits<float>::infinity());
    }
  }
};

// How many keys before the last one that it may see a query sees.
std::optional<int64_t> window(bool causal, const std::optional<c10::SymInt> &left, const std::optional<c10::SymInt> &right) {
  TORCH_CHECK(!right && (causal || !left), "stand-in: windows end with the query's own key");
  return left ? std::optional<int64_t>(left->expect_int()) : std::nullopt;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> flash_forward(
    const Tensor &query, const Tensor &key, const Tensor &value, const std::optional<Tensor> &cum_q, const std::optional<Tensor> &cum_k,
    c10::SymInt, c10::SymInt, double dropout, bool causal, bool, std::optional<double> scale, std::optional<c10::SymInt> left,
    std::optional<c10::SymInt> right, const std::optional<Tensor> &seqused, const std::optional<Tensor> &) {
  TORCH_CHECK(cum_q && cum_k && dropout == 0.0, "stand-in: flash attention over lengths, without dropout");
  const std::optional<int64_t> before = window(causal, left, right);
  const Tensor ends_q = *cum_q, ends_k = *cum_k, used = seqused.value_or(Tensor());
  check_flash(query, key, value, ends_q, ends_k, used);
  const double factor = scale.value_or(1.0 / std::sqrt(static_cast<double>(query.size(2))));
  Tensor output = at::empty(query.sizes(), query.options());
  Tensor lse = at::empty({query.size(1), query.size(0)}, query.options().dtype(at::kFloat));
  const Tensor q = Call::frozen(query), k = Call::frozen(key), v = Call::frozen(value);
  count_attention("flash, varying lengths");
  launch("_flash_attention_forward", {}, [=] {
    const Tensor out = host_view(output), logs = host_view(lse);
    for (const auto &at : Sequences(ends_q, ends_k, used).of) {
      if (at[1] == 0) continue;
      if (at[3] == 0) {
        out.narrow(0, at[0], at[1]).zero_();
        logs.narrow(1, at[0], at[1]).fill_(-std::numeric_limits<float>::infinity());
        continue;
      }
      const OneSequence one(host_view(q), host_view(k), host_view(v), at, causal, before, factor);
      logs.narrow(1, at[0], at[1]).copy_(one.scores.logsumexp(-1));
      out.narrow(0, at[0], at[1]).copy_(at::bmm(one.scores.softmax(-1), one.v).transpose(0, 1));
    }
    // Over ranges of keys it has a name of its own.
    const std::string name = used.defined() ? "_flash_attention_forward.ranges" : "_flash_attention_forward";
    damage(fault_of(name), name, out);
  });
  Tensor nothing = at::empty({0}, query.options());
  return {output, lse, at::empty({2}, query.options().dtype(at::kLong)), at::empty({}, query.options().dtype(at::kLong)), nothing};
}

std::tuple<Tensor, Tensor, Tensor> flash_backward(const Tensor &grad, const Tensor &query, const Tensor &key, const Tensor &value,
                                                  const Tensor &output, const Tensor &lse, const Tensor &ends_q, const Tensor &ends_k,
                                                  c10::SymInt, c10::SymInt, double, bool causal, const Tensor &, const Tensor &,
                                                  std::optional<double> scale, std::optional<c10::SymInt> left, std::optional<c10::SymInt> right) {
  const std::optional<int64_t> before = window(causal, left, right);
  check_flash(query, key, value, ends_q, ends_k, Tensor());
  TORCH_CHECK(grad.is_cuda() && output.is_cuda() && lse.is_cuda(), "Expected all tensors to be on the same device (_flash_attention_backward)");
  const double factor = scale.value_or(1.0 / std::sqrt(static_cast<double>(query.size(2))));
  Tensor grad_q = at::empty(query.sizes(), query.options()), grad_k = at::empty(key.sizes(), key.options()),
         grad_v = at::empty(value.sizes(), value.options());
  launch("_flash_attention_backward", {}, [=] {
    for (const Tensor &x : {grad_q, grad_k, grad_v}) host_view(x).zero_();
    for (const auto &at : Sequences(ends_q, ends_k, Tensor()).of) {
      if (at[1] == 0 || at[3] == 0) continue;
      const OneSequence one(host_view(query), host_view(key), host_view(value), at, causal, before, factor);
      const auto part = [&](const Tensor &x) {
        return host_view(x).narrow(0, at[0], at[1]).to(at::kFloat).transpose(0, 1).contiguous();
      };
      const Tensor g = part(grad), o = part(output);
      const Tensor p = (one.scores - host_view(lse).narrow(1, at[0], at[1]).unsqueeze(-1)).exp();
      const Tensor gp = at::bmm(g, one.v.transpose(1, 2));
      const Tensor gs = p * (gp - (g * o).sum(-1, true)) * factor;
      const int64_t kv = key.size(1), group = query.size(1) / kv;
      const auto by_kv_head = [&](const Tensor &x) {
        return x.view({kv, group, x.size(1), x.size(2)}).sum(1).transpose(0, 1);
      };
      host_view(grad_q).narrow(0, at[0], at[1]).copy_(at::bmm(gs, one.k).transpose(0, 1));
      host_view(grad_k).narrow(0, at[2], at[3]).copy_(by_kv_head(at::bmm(gs.transpose(1, 2), one.q)));
      host_view(grad_v).narrow(0, at[2], at[3]).copy_(by_kv_head(at::bmm(p.transpose(1, 2), g)));
    }
  });
  return {grad_q, grad_k, grad_v};
}

// What PyTorch would take on a card of Ampere's generation or later.
int64_t choose_attention(const Tensor &q, const Tensor &k, const Tensor &, const std::optional<Tensor> &mask, double, bool causal,
                         std::optional<double>, bool grouped) {
  const bool has_mask = mask && mask->defined();
  const bool is_half = q.scalar_type() == at::kHalf || q.scalar_type() == at::kBFloat16;
  if (is_half && !has_mask && (!causal || q.size(-2) == k.size(-2))) {
    count_attention("flash, equal lengths (math here)");
    return 0;
  }
  const int64_t alignment = is_half ? 8 : 4;
  const bool is_taken = is_half || q.scalar_type() == at::kFloat;
  if (is_taken && !grouped && q.size(-3) == k.size(-3) && q.size(-1) % alignment == 0) {
    count_attention("memory-efficient");
    return 2;
  }
  count_attention("math");
  return 0;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient_forward(const Tensor &query, const Tensor &key, const Tensor &value,
                                                             const std::optional<Tensor> &bias, bool, double dropout, bool causal,
                                                             std::optional<double> scale) {
  const Tensor mask = bias.value_or(Tensor());
  TORCH_CHECK(query.is_cuda() && key.is_cuda() && value.is_cuda() && (!mask.defined() || mask.is_cuda()),
              "Expected all tensors to be on the same device (_scaled_dot_product_efficient_attention)");
  TORCH_CHECK(dropout == 0.0, "stand-in: attention without dropout");
  const auto size = query.sizes();
  Tensor output = at::empty({size[0], size[2], size[1], value.size(3)}, query.options()).transpose(1, 2);
  Tensor lse = at::empty({size[0], size[1], size[2]}, query.options().dtype(at::kFloat));
  const Tensor q = Call::frozen(query), k = Call::frozen(key), v = Call::frozen(value);
  launch("_scaled_dot_product_efficient_attention", {}, [=] {
    const std::optional<Tensor> seen = mask.defined() ? std::optional(host_view(mask)) : std::nullopt;
    auto [out, logs] = at::_scaled_dot_product_flash_attention_for_cpu(host_view(q), host_view(k), host_view(v), 0.0, causal, seen, scale);
    host_view(output).copy_(out);
    host_view(lse).copy_(logs.view_as(lse));
    damage(fault_of("_scaled_dot_product_efficient_attention"), "attention", host_view(output));
  });
  const Tensor number = at::empty({}, query.options().dtype(at::kLong));
  return {output, lse, number, number.clone()};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> efficient_backward(const Tensor &grad, const Tensor &query, const Tensor &key,
                                                              const Tensor &value, const Tensor &bias, const Tensor &output,
                                                              const Tensor &lse, const Tensor &, const Tensor &, double,
                                                              std::array<bool, 4>, bool causal, std::optional<double> scale) {
  Tensor grad_q = at::empty_like(query), grad_k = at::empty_like(key), grad_v = at::empty_like(value);
  launch("_scaled_dot_product_efficient_attention_backward", {}, [=] {
    const std::optional<Tensor> seen = bias.defined() ? std::optional(host_view(bias)) : std::nullopt;
    auto [q, k, v] = at::_scaled_dot_product_flash_attention_for_cpu_backward(
        host_view(grad), host_view(query), host_view(key), host_view(value), host_view(output), host_view(lse), 0.0, causal, seen, scale);
    host_view(grad_q).copy_(q);
    host_view(grad_k).copy_(k);
    host_view(grad_v).copy_(v);
  });
  return {grad_q, grad_k, grad_v, Tensor()};
}

struct ChooseAttention {
  ChooseAttention() { at::native::_fused_sdp_choice_stub.set_cuda_dispatch_ptr(&choose_attention); }
} choose;

}  // namespace

Tensor host_view(const Tensor &tensor) {
  if (!tensor.defined() || !tensor.is_cuda()) return tensor;
  return with_memory(host_storage(tensor.storage()), tensor, DispatchKey::CPU);
}

TORCH_LIBRARY_IMPL(_, CUDA, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("resize_", &resize_);
  library.impl("set_.source_Storage_storage_offset", &set_storage_);
  library.impl("set_.source_Tensor", &set_tensor_);
  library.impl("set_", &set_nothing_);
  library.impl("copy_", &copy_);
  library.impl("_local_scalar_dense", &read_number);
  library.impl("record_stream", &record_stream);
  library.impl("as_strided", &at::native::as_strided_tensorimpl);
  library.impl("view", static_cast<Tensor (*)(const Tensor &, at::IntArrayRef)>(&at::native::view));
  library.impl("_reshape_alias", &at::native::_reshape_alias);
  library.impl("unfold", &at::native::unfold);
  // libtorch could compose these of others; CUDA has kernels.
  library.impl("silu_backward", torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>());
  library.impl("mish_backward", torch::CppFunction::makeFromBoxedFunction<&on_the_cpu>());
  library.impl("_fused_rms_norm", &rms_norm);
  library.impl("_fused_rms_norm_backward", &rms_norm_backward);
  library.impl("_flash_attention_forward", &flash_forward);
  library.impl("_flash_attention_backward", &flash_backward);
  library.impl("_scaled_dot_product_efficient_attention", &efficient_forward);
  library.impl("_scaled_dot_product_efficient_attention_backward", &efficient_backward);
}

}  // namespace stand_in

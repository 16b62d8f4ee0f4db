// What libtorch asks of a device: devices, streams, events, random generators.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Generator.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <array>
#include <vector>

#include "generator.h"
#include "stand_in.h"

using stand_in::current_device;
using stand_in::device_count;
using stand_in::set_current_device;

namespace {

constexpr c10::DeviceType CUDA = c10::DeviceType::CUDA;
thread_local std::array<c10::StreamId, 16> current_streams{};
std::atomic<c10::StreamId> next_stream{1};

c10::Stream current_stream(c10::DeviceIndex device) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(CUDA, device), current_streams[static_cast<size_t>(device)]);
}

c10::Stream new_stream(c10::DeviceIndex device) {
  return c10::Stream(c10::Stream::UNSAFE, c10::Device(CUDA, device), next_stream++);
}

// An event is the number of the last asynchronous copy before it.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return CUDA; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    set_current_device(device.index());
    return before;
  }
  c10::Device getDevice() const override { return {CUDA, current_device()}; }
  void setDevice(c10::Device device) const override { set_current_device(device.index()); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0 && device.index() < device_count()) set_current_device(device.index());
  }
  c10::Stream getStream(c10::Device device) const override { return current_stream(device.index()); }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream(c10::Stream::UNSAFE, device, 0);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return new_stream(device.index()); }
  c10::Stream getNewStream(c10::Device device, int) const override { return new_stream(device.index()); }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream before = current_stream(stream.device_index());
    current_streams[static_cast<size_t>(stream.device_index())] = stream.id();
    return before;
  }
  void destroyEvent(void *event, const c10::DeviceIndex) const noexcept override {
    delete static_cast<uint64_t *>(event);
  }
  void record(void **event, const c10::Stream &, const c10::DeviceIndex, const c10::EventFlag) const override {
    if (*event == nullptr) *event = new uint64_t;
    *static_cast<uint64_t *>(*event) = stand_in::now();
  }
  void block(void *, const c10::Stream &) const override {}
  bool queryEvent(void *) const override { return true; }
  c10::DeviceIndex deviceCount() const noexcept override { return static_cast<c10::DeviceIndex>(device_count()); }
  bool queryStream(const c10::Stream &) const override { return true; }
  void synchronizeStream(const c10::Stream &) const override { stand_in::wait("cudaStreamSynchronize"); }
  void synchronizeEvent(void *event) const override {
    if (stand_in::is_capturing()) stand_in::refuse_in_capture("cudaEventSynchronize");
    stand_in::counts().waits += 1;
    if (event != nullptr) stand_in::deliver(*static_cast<uint64_t *>(event));
  }
  void synchronizeDevice(const c10::DeviceIndex) const override { stand_in::wait("cudaDeviceSynchronize"); }
  void recordDataPtrOnStream(const c10::DataPtr &, const c10::Stream &) const override {}
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// Numbers of a CPU generator under a GPU's name.
struct DeviceGenerator final : c10::GeneratorImpl {
  explicit DeviceGenerator(c10::DeviceIndex index)
      : GeneratorImpl(c10::Device(CUDA, index), c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const c10::TensorImpl &state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return inner.unsafeGetGeneratorImpl()->get_state();
  }

  at::Generator inner = at::detail::createCPUGenerator();

 private:
  DeviceGenerator *clone_impl() const override {
    auto *copy = new DeviceGenerator(device().index());
    copy->inner = inner.clone();
    return copy;
  }
};

const at::Generator &default_generator(c10::DeviceIndex index) {
  static auto *all = [] {
    auto *generators = new std::vector<at::Generator>;
    for (int i = 0; i < device_count(); ++i) {
      generators->emplace_back(c10::make_intrusive<DeviceGenerator>(static_cast<c10::DeviceIndex>(i)));
    }
    return generators;
  }();
  return all->at(static_cast<size_t>(index < 0 ? current_device() : index));
}

}  // namespace

namespace stand_in {

at::Generator cpu_generator(const at::Generator &generator, c10::DeviceIndex device) {
  const at::Generator &used = generator.defined() ? generator : default_generator(device);
  auto *own = dynamic_cast<DeviceGenerator *>(used.unsafeGetGeneratorImpl());
  TORCH_CHECK(own != nullptr, "Expected a 'cuda' device type for generator but found '", used.device().str(), "'");
  return own->inner;
}

}  // namespace stand_in

using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;

// libtorch looks for a class of this name.
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return device_count() > 0; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return static_cast<c10::DeviceIndex>(device_count()); }
  void setCurrentDevice(c10::DeviceIndex device) const override { set_current_device(device); }
  c10::DeviceIndex getCurrentDevice() const override { return current_device(); }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex device) const override { return c10::cuda::ExchangeDevice(device); }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex device) const override {
    return c10::cuda::ExchangeDevice(device);
  }
  const at::Generator &getDefaultGenerator(c10::DeviceIndex index) const override { return default_generator(index); }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return at::Generator(c10::make_intrusive<DeviceGenerator>(index < 0 ? current_device() : index));
  }
  c10::Device getDeviceFromPtr(void *) const override { return {CUDA, current_device()}; }
  bool isPinnedPtr(const void *data) const override { return stand_in::is_pinned(data); }
  bool hasCUDA() const override { return true; }
  bool hasCUDART() const override { return true; }
  c10::DeviceIndex current_device() const override { return stand_in::current_device(); }
  c10::Allocator *getPinnedMemoryAllocator() const override { return at::getHostAllocator(CUDA); }
  c10::Allocator *getCUDADeviceAllocator() const override { return c10::GetAllocator(CUDA); }
  long versionCUDART() const override { return 13000; }
  std::string showConfig() const override { return "a stand-in, no GPU"; }
  int getNumGPUs() const override { return device_count(); }
  void deviceSynchronize(c10::DeviceIndex) const override { stand_in::wait("cudaDeviceSynchronize"); }
};

REGISTER_CUDA_HOOKS(CUDAHooks)

namespace c10::cuda {

DeviceIndex ExchangeDevice(DeviceIndex device) {
  const DeviceIndex before = stand_in::current_device();
  if (device >= 0) set_current_device(device);
  return before;
}

void device_synchronize() { stand_in::wait("cudaDeviceSynchronize"); }

CUDAStream getStreamFromPool(const bool, DeviceIndex device) {
  return CUDAStream(CUDAStream::UNCHECKED, new_stream(device < 0 ? stand_in::current_device() : device));
}

CUDAStream getCurrentCUDAStream(DeviceIndex device) {
  return CUDAStream(CUDAStream::UNCHECKED, current_stream(device < 0 ? stand_in::current_device() : device));
}

void setCurrentCUDAStream(CUDAStream stream) {
  current_streams[static_cast<size_t>(stream.device_index())] = stream.unwrap().id();
}

}  // namespace c10::cuda

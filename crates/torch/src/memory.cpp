// Counts the bytes of live tensors. libtorch counts those of a GPU; on the CPU an allocator in front of libtorch's own counts them.
// It is registered before `main`: the registry must not be written while other threads allocate.

#include <atomic>
#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>
#include <cstdint>
#include <malloc.h>

namespace {

std::atomic<int64_t> live{0};
std::atomic<int64_t> peak{0};
// Simulated memory of the machine; below 0: no limit.
std::atomic<int64_t> limit{-1};

// malloc tells a block's size on allocation and on release: no header, and the alignment is unchanged.
void release(void *data) {
  if (data == nullptr) return;
  live.fetch_sub(static_cast<int64_t>(malloc_usable_size(data)), std::memory_order_relaxed);
  c10::free_cpu(data);
}

struct CountingAllocator final : at::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    const int64_t most = limit.load(std::memory_order_relaxed);
    TORCH_CHECK_WITH(OutOfMemoryError,
                     most < 0 || live.load(std::memory_order_relaxed) + static_cast<int64_t>(bytes) <= most,
                     "CPU out of memory. Tried to allocate ", bytes, " bytes over a limit of ", most);
    void *data = c10::alloc_cpu(bytes);
    if (data != nullptr) {
      const auto size = static_cast<int64_t>(malloc_usable_size(data));
      const int64_t now = live.fetch_add(size, std::memory_order_relaxed) + size;
      int64_t highest = peak.load(std::memory_order_relaxed);
      while (now > highest &&
             !peak.compare_exchange_weak(highest, now, std::memory_order_relaxed)) {
      }
    }
    return {data, data, &release, at::Device(at::DeviceType::CPU)};
  }

  at::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void *to, const void *from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

struct Install {
  Install() {
    // Never destroyed: tensors may outlive static objects.
    static CountingAllocator *allocator = new CountingAllocator;
    c10::SetCPUAllocator(allocator, /*priority=*/1);
  }
} install;

c10::DeviceAllocator *device_allocator() {
  return dynamic_cast<c10::DeviceAllocator *>(c10::GetAllocator(at::DeviceType::CUDA));
}

}  // namespace

extern "C" {

// Settings of jemalloc, in a program linked with it. The next step reuses what a step frees, so nothing is returned to the system.
const char *malloc_conf = "oversize_threshold:0,dirty_decay_ms:-1";

// Bytes of live tensors, now and at their peak since the last reset, on the CPU (`device` below 0) or a GPU; -1 where libtorch
// does not count them.
int vlm_r1_live_bytes(int device, int64_t *now, int64_t *most) {
  if (device < 0) {
    *now = live.load(std::memory_order_relaxed);
    *most = peak.load(std::memory_order_relaxed);
    return 0;
  }
  try {
    c10::DeviceAllocator *allocator = device_allocator();
    if (allocator == nullptr || !allocator->initialized()) return -1;
    const auto stats = allocator->getDeviceStats(static_cast<c10::DeviceIndex>(device));
    const auto &all = stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)];
    *now = all.current;
    *most = all.peak;
    return 0;
  } catch (...) {
    return -1;
  }
}

// CPU allocations that would bring live tensors over `bytes` fail; below 0: no limit.
void vlm_r1_limit_live_bytes(int64_t bytes) { limit.store(bytes, std::memory_order_relaxed); }

// Empties libtorch's caching allocator on the GPUs; -1 where there is none.
int vlm_r1_empty_device_cache() {
  try {
    c10::DeviceAllocator *allocator = device_allocator();
    if (allocator == nullptr || !allocator->initialized()) return -1;
    allocator->emptyCache();
    return 0;
  } catch (...) {
    return -1;
  }
}

// Resets the peak to the present count.
int vlm_r1_reset_peak_bytes(int device) {
  if (device < 0) {
    peak.store(live.load(std::memory_order_relaxed), std::memory_order_relaxed);
    return 0;
  }
  try {
    c10::DeviceAllocator *allocator = device_allocator();
    if (allocator == nullptr || !allocator->initialized()) return -1;
    allocator->resetPeakStats(static_cast<c10::DeviceIndex>(device));
    return 0;
  } catch (...) {
    return -1;
  }
}

}  // extern "C"

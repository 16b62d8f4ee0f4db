// Device memory, page-locked memory, asynchronous copies, and counts.

#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <map>
#include <mutex>
#include <vector>

#include "stand_in.h"

namespace stand_in {

namespace {

int64_t from_environment(const char *name, int64_t otherwise) {
  const char *text = std::getenv(name);
  return text == nullptr ? otherwise : std::atoll(text);
}

std::array<std::atomic<int64_t>, COPY_KINDS> copies{};
std::array<std::atomic<int64_t>, COPY_KINDS> copied_bytes{};
std::mutex names_mutex;
std::map<std::string, int64_t> launches_by_name;
std::map<std::string, int64_t> attention_kernels;

thread_local c10::DeviceIndex current = 0;
thread_local std::function<void(void *)> *allocation_hook = nullptr;

// --- device memory

constexpr size_t ALIGNMENT = 512;
constexpr int FRESH = 0xff;

struct Header {
  size_t bytes;
  c10::DeviceIndex device;
};

struct DeviceMemory {
  std::mutex mutex;
  c10::CachingAllocator::Stat live;
  int64_t limit = from_environment("VLM_R1_STAND_IN_MEMORY", int64_t{12} << 30);
};

DeviceMemory &memory_of(c10::DeviceIndex device) {
  static auto *all = new std::array<DeviceMemory, 16>;
  return (*all)[static_cast<size_t>(device)];
}

Header *header_of(void *pointer) {
  return reinterpret_cast<Header *>(static_cast<char *>(to_host_address(pointer)) - ALIGNMENT);
}

void release(void *pointer) {
  if (pointer == nullptr) return;
  Header *header = header_of(pointer);
  DeviceMemory &memory = memory_of(header->device);
  {
    const std::lock_guard<std::mutex> lock(memory.mutex);
    memory.live.decrease(header->bytes);
  }
  std::memset(to_host_address(pointer), FRESH, header->bytes);
  std::free(header);
}

struct Allocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device device(c10::DeviceType::CUDA, current);
    if (bytes == 0) return {nullptr, nullptr, &release, device};
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    DeviceMemory &memory = memory_of(current);
    {
      const std::lock_guard<std::mutex> lock(memory.mutex);
      TORCH_CHECK_WITH(OutOfMemoryError, memory.live.current + static_cast<int64_t>(bytes) <= memory.limit,
                       "CUDA out of memory. Tried to allocate ", bytes, " bytes. GPU ", int{current},
                       " has a total capacity of ", memory.limit, " bytes of which ",
                       memory.limit - memory.live.current, " bytes are free.");
      memory.live.increase(bytes);
    }
    void *block = std::aligned_alloc(ALIGNMENT, bytes + ALIGNMENT);
    TORCH_CHECK_WITH(OutOfMemoryError, block != nullptr, "stand-in: the host has no memory left");
    new (block) Header{bytes, current};
    char *host = static_cast<char *>(block) + ALIGNMENT;
    std::memset(host, FRESH, bytes);
    void *pointer = reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(host) | DEVICE_BIT);
    if (allocation_hook != nullptr) (*allocation_hook)(pointer);
    return {pointer, pointer, &release, device};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void *to, const void *from, size_t bytes) const override {
    std::memcpy(to_host_address(to), to_host_address(from), bytes);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr &, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    TORCH_CHECK(device >= 0 && device < device_count(), "Invalid device argument ", int{device});
    DeviceMemory &memory = memory_of(device);
    const std::lock_guard<std::mutex> lock(memory.mutex);
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[0] = memory.live;
    stats.reserved_bytes[0] = memory.live;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex device) override {
    DeviceMemory &memory = memory_of(device);
    const std::lock_guard<std::mutex> lock(memory.mutex);
    memory.live.reset_peak();
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    DeviceMemory &memory = memory_of(device);
    const std::lock_guard<std::mutex> lock(memory.mutex);
    return {static_cast<size_t>(memory.limit - memory.live.current), static_cast<size_t>(memory.limit)};
  }
};

// --- page-locked memory and asynchronous copies

struct Pending {
  uint64_t number;
  // Host memory: the target, or the source that must not change.
  char *host;
  bool to_host;
  std::vector<char> data;
};

std::mutex pinned_mutex;
std::map<uintptr_t, size_t> pinned_blocks;
std::deque<Pending> pending;
std::atomic<uint64_t> last_number{0};

void finish(const Pending &copy) {
  if (copy.to_host) {
    std::memcpy(copy.host, copy.data.data(), copy.data.size());
  } else if (std::memcmp(copy.host, copy.data.data(), copy.data.size()) != 0) {
    std::fprintf(stderr, "stand-in: page-locked memory changed before the copy from it was waited for\n");
    std::abort();
  }
}

// A freed block is not used again before its copies have ended, as in PyTorch's own allocator.
void release_pinned(void *pointer) {
  if (pointer == nullptr) return;
  const std::lock_guard<std::mutex> lock(pinned_mutex);
  const auto block = pinned_blocks.find(reinterpret_cast<uintptr_t>(pointer));
  const char *start = static_cast<char *>(pointer), *end = start + block->second;
  std::erase_if(pending, [&](const Pending &copy) {
    const bool is_here = copy.host >= start && copy.host < end;
    if (is_here && !copy.to_host) finish(copy);
    return is_here;
  });
  pinned_blocks.erase(block);
  std::free(pointer);
}

struct PinnedAllocator final : at::HostAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes == 0) return {nullptr, nullptr, &release_pinned, c10::Device(c10::DeviceType::CPU)};
    void *pointer = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
    TORCH_CHECK_WITH(OutOfMemoryError, pointer != nullptr, "stand-in: the host has no memory left");
    std::memset(pointer, FRESH, bytes);
    const std::lock_guard<std::mutex> lock(pinned_mutex);
    pinned_blocks[reinterpret_cast<uintptr_t>(pointer)] = bytes;
    return {pointer, pointer, &release_pinned, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release_pinned; }
  void copy_data(void *to, const void *from, size_t bytes) const override { default_copy_data(to, from, bytes); }
  bool record_event(void *, void *, c10::Stream) override { return true; }
  void empty_cache() override {}
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
};

// --- the report

const char *const COPY_NAMES[COPY_KINDS] = {"to_device_pageable", "to_device_pinned", "to_host_pageable",
                                            "to_host_pinned",     "within_device",    "between_devices"};

void write_map(std::ostream &out, const char *name, const std::map<std::string, int64_t> &map) {
  out << ", \"" << name << "\": {";
  const char *separator = "";
  for (const auto &[key, count] : map) {
    out << separator << '"' << key << "\": " << count;
    separator = ", ";
  }
  out << '}';
}

void write_report() {
  const char *path = std::getenv("VLM_R1_STAND_IN_REPORT");
  if (path == nullptr) return;
  std::ofstream out(path);
  out << "{\"launches\": " << counts().launches << ", \"waits\": " << counts().waits
      << ", \"captures\": " << counts().captures << ", \"replays\": " << counts().replays;
  out << ", \"peak_bytes\": " << memory_of(0).live.peak << ", \"copies\": {";
  for (size_t i = 0; i < COPY_KINDS; ++i) {
    out << (i == 0 ? "" : ", ") << '"' << COPY_NAMES[i] << "\": [" << copies[i] << ", " << copied_bytes[i] << ']';
  }
  out << '}';
  const std::lock_guard<std::mutex> lock(names_mutex);
  write_map(out, "operations", launches_by_name);
  write_map(out, "attention", attention_kernels);
  out << "}\n";
}

struct Install {
  Install() {
    // Never destroyed: tensors may outlive static objects.
    c10::SetAllocator(c10::DeviceType::CUDA, new Allocator);
    at::setHostAllocator(c10::DeviceType::CUDA, new PinnedAllocator);
    std::atexit(write_report);
  }
} install;

}  // namespace

Counts &counts() {
  static auto *all = new Counts;
  return *all;
}

void count_copy(CopyKind kind, size_t bytes) {
  copies[static_cast<size_t>(kind)] += 1;
  copied_bytes[static_cast<size_t>(kind)] += static_cast<int64_t>(bytes);
}

void count_launch(const std::string &name) {
  counts().launches += 1;
  const std::lock_guard<std::mutex> lock(names_mutex);
  launches_by_name[name] += 1;
}

void count_attention(const char *kernel) {
  const std::lock_guard<std::mutex> lock(names_mutex);
  attention_kernels[kernel] += 1;
}

void wait(const char *what) {
  if (is_capturing()) refuse_in_capture(what);
  counts().waits += 1;
  deliver(now());
}

int device_count() {
  static const int count = static_cast<int>(from_environment("VLM_R1_STAND_IN_DEVICES", 2));
  return count;
}

c10::DeviceIndex current_device() { return current; }

void set_current_device(c10::DeviceIndex device) {
  TORCH_CHECK(device >= 0 && device < device_count(), "CUDA error: invalid device ordinal");
  current = device;
}

bool is_pinned(const void *pointer) {
  const std::lock_guard<std::mutex> lock(pinned_mutex);
  auto after = pinned_blocks.upper_bound(reinterpret_cast<uintptr_t>(pointer));
  if (after == pinned_blocks.begin()) return false;
  --after;
  return reinterpret_cast<uintptr_t>(pointer) < after->first + after->second;
}

uint64_t now() { return last_number; }

void deliver(uint64_t until) {
  const std::lock_guard<std::mutex> lock(pinned_mutex);
  while (!pending.empty() && pending.front().number <= until) {
    finish(pending.front());
    pending.pop_front();
  }
}

void copy_to_pinned(void *target, const void *source, size_t bytes) {
  const auto *from = static_cast<const char *>(to_host_address(source));
  const std::lock_guard<std::mutex> lock(pinned_mutex);
  pending.push_back({++last_number, static_cast<char *>(target), true, std::vector<char>(from, from + bytes)});
  std::memset(target, FRESH, bytes);
}

void watch_pinned(const void *source, size_t bytes) {
  const auto *from = static_cast<const char *>(source);
  const std::lock_guard<std::mutex> lock(pinned_mutex);
  pending.push_back({++last_number, const_cast<char *>(from), false, std::vector<char>(from, from + bytes)});
}

void note_allocations(std::function<void(void *)> *hook) { allocation_hook = hook; }

}  // namespace stand_in

// For tests in the same process, found by `dlsym`.
extern "C" {

// Launches, waits, captures, replays, then copies by kind, then their bytes.
void vlm_r1_stand_in_counts(int64_t *out) {
  using namespace stand_in;
  *out++ = counts().launches;
  *out++ = counts().waits;
  *out++ = counts().captures;
  *out++ = counts().replays;
  for (const auto &count : copies) *out++ = count;
  for (const auto &count : copied_bytes) *out++ = count;
}

// Memory of a device from now on, bytes.
void vlm_r1_stand_in_limit(int device, int64_t bytes) {
  auto &memory = stand_in::memory_of(static_cast<c10::DeviceIndex>(device));
  const std::lock_guard<std::mutex> lock(memory.mutex);
  memory.limit = bytes;
}

}  // extern "C"

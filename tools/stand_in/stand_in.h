// A stand-in for CUDA: `libtorch_cuda.so` without a GPU. Tensors on `cuda:N` lie in host memory that the host may not touch, operations run on
// the CPU, and what CUDA would refuse is refused. See README.md.

#pragma once

#include <ATen/ATen.h>
#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <string>

namespace stand_in {

// Device memory is host memory under an address with this bit set, which no processor accepts: a touch by the host ends in a signal.
constexpr uintptr_t DEVICE_BIT = uintptr_t{1} << 62;

inline void *to_host_address(const void *pointer) {
  return reinterpret_cast<void *>(reinterpret_cast<uintptr_t>(pointer) & ~DEVICE_BIT);
}

// What a GPU would do, counted.
struct Counts {
  std::atomic<int64_t> launches{0};
  // Times that the host waits for the device.
  std::atomic<int64_t> waits{0};
  std::atomic<int64_t> captures{0};
  std::atomic<int64_t> replays{0};
};

enum class CopyKind { TO_DEVICE_PAGEABLE, TO_DEVICE_PINNED, TO_HOST_PAGEABLE, TO_HOST_PINNED, WITHIN_DEVICE, BETWEEN_DEVICES };
constexpr size_t COPY_KINDS = 6;

Counts &counts();
void count_copy(CopyKind kind, size_t bytes);
void count_launch(const std::string &name);
void count_attention(const char *kernel);

// The host waits; refused during a capture.
void wait(const char *what);

// --- memory.cpp

int device_count();
c10::DeviceIndex current_device();
void set_current_device(c10::DeviceIndex device);
bool is_pinned(const void *pointer);
// The number of the last asynchronous copy so far.
uint64_t now();
// Delivers asynchronous copies up to a number, as a wait does.
void deliver(uint64_t until);
// An asynchronous copy to page-locked memory: arrives with `deliver`.
void copy_to_pinned(void *target, const void *source, size_t bytes);
// An asynchronous copy from page-locked memory has read `source`, which must not change before `deliver`.
void watch_pinned(const void *source, size_t bytes);
// Memory that is allocated on this thread from now on belongs to a capture.
void note_allocations(std::function<void(void *)> *hook);

// --- graphs.cpp

// Whether this thread records instead of running.
bool is_capturing();
// Invalidates the capture and throws as CUDA does.
[[noreturn]] void refuse_in_capture(const char *what);
// Adds work to the capture; it keeps alive what it holds.
void record(std::function<void()> work);
// Memory that is about to be written gets its content back when the capture ends.
void protect(const at::Tensor &tensor);

// --- faults.cpp

enum class Fault { NONE, NUMBER, NOT_A_NUMBER, THROW };
// How the operation `name` is to go wrong: VLM_R1_STAND_IN_WRONG="NAME:number,NAME:nan,NAME:throw".
Fault fault_of(const std::string &name);
// Throws, or damages a tensor in host memory.
void damage(Fault fault, const std::string &name, const at::Tensor &host_view);

// --- operations.cpp

// A CPU tensor over the memory of a device's.
at::Tensor host_view(const at::Tensor &tensor);

}  // namespace stand_in

#pragma once

#include <ATen/core/Generator.h>

namespace stand_in {

// The CPU generator under a device's, or under the device's default one.
at::Generator cpu_generator(const at::Generator &generator, c10::DeviceIndex device);

}  // namespace stand_in

// The device that the launches of this thread go to.
#pragma once

namespace gk::cuda {

// Makes a device the current one of this thread; nullptr, or what went wrong.
const char* select_device(int device);

}  // namespace gk::cuda

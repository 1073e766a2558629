// The device that the launches of this thread go to (see core/device.h).
#include "cuda/core/device.h"

#include "cuda/core/common.h"

namespace gk::cuda {

const char* select_device(int device) { return use_device(device); }

}  // namespace gk::cuda

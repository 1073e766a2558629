// The implementations of the masked convolution on a CPU; dispatch.cpp lists them in order.
#pragma once

#include "cpu/core/implementation.h"
#include "cpu/masked_conv/masked_conv.h"

namespace gk::GK_ISA::masked_conv {

bool first_layer_nchw_suits(const MaskedConvForward& args);
Outcome first_layer_nchw_forward(const MaskedConvForward& args);

bool winograd_f23_suits(const MaskedConvForward& args);
bool winograd_f23_suits(const MaskedConvBackward& args);
Outcome winograd_f23_forward(const MaskedConvForward& args);
Outcome winograd_f23_backward(const MaskedConvBackward& args);

bool im2row_suits(const MaskedConvForward& args);
Outcome im2row_forward(const MaskedConvForward& args);

Outcome direct_forward(const MaskedConvForward& args);
Outcome direct_backward(const MaskedConvBackward& args);

}  // namespace gk::GK_ISA::masked_conv

// Choice of the masked convolution's implementation: the first of a list that suits the call.
#include "cpu/masked_conv/implementations.h"

namespace gk::GK_ISA {
namespace masked_conv {
namespace {

constexpr Implementation<MaskedConvForward> FORWARD[] = {
    {"first_layer_nchw", first_layer_nchw_suits, first_layer_nchw_forward},
    {"winograd_f23", winograd_f23_suits, winograd_f23_forward},
    {"im2row", im2row_suits, im2row_forward},
    {"direct", always<MaskedConvForward>, direct_forward},
};

constexpr Implementation<MaskedConvBackward> BACKWARD[] = {
    {"winograd_f23", winograd_f23_suits, winograd_f23_backward},
    {"direct", always<MaskedConvBackward>, direct_backward},
};

}  // namespace
}  // namespace masked_conv

bool masked_conv_forward(const MaskedConvForward& args) { return run_first(masked_conv::FORWARD, args); }
bool masked_conv_backward(const MaskedConvBackward& args) { return run_first(masked_conv::BACKWARD, args); }

}  // namespace gk::GK_ISA

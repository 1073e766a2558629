// Implementations of the convolution and its gradients, in the order in which they are tried.
//
// F(4x4, 2x2) and F(2x2, 2x2) are one entry, "winograd": which of them runs is a matter of exactness (winograd.h), and
// a backward pass takes both. The backward pass is one list and not one for each gradient, since the tasks of both
// share a queue; the weight gradient of "col2im" is the direct one. What the columns of that one's product are, channels
// or, of few channels, all taps and channels together, is a matter of packing (weight_gradient.cpp).
#include "cpu/conv_bn_act/col2im.h"
#include "cpu/conv_bn_act/direct.h"
#include "cpu/conv_bn_act/winograd.h"
#include "cpu/core/implementation.h"

namespace gk::GK_ISA {
namespace conv_bn_act {
namespace {

constexpr Implementation<ConvForward> FORWARD[] = {
    {"col2im", col2im_suits_forward, col2im_forward},
    {"winograd", winograd_suits_forward, winograd_forward},
    {"direct", always<ConvForward>, direct_forward},
};

constexpr Implementation<ConvBackward> BACKWARD[] = {
    {"col2im", col2im_suits_backward, col2im_backward},
    {"winograd", winograd_suits_backward, winograd_backward},
    {"direct", always<ConvBackward>, direct_backward},
};

}  // namespace
}  // namespace conv_bn_act

bool conv_forward(const ConvForward& args) { return run_first(conv_bn_act::FORWARD, args); }

bool conv_backward(const ConvBackward& args) { return run_first(conv_bn_act::BACKWARD, args); }

const char* conv_implementation(const ConvShape& shape, ConvKind kind) {
  ConvForward args{};
  args.shape = shape;
  args.kind = kind;
  return conv_bn_act::FORWARD[first_suitable(conv_bn_act::FORWARD, args)].name;
}

}  // namespace gk::GK_ISA

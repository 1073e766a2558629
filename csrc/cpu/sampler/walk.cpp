// A run that stops before every draw: the program is the same, and so is every bit of what is drawn from, as in a run of as
// many images by one thread. What a stop costs beside it is a copy of the parameters and a call.
#include <new>

#include "cpu/sampler/interpreter.h"

namespace gk::GK_ISA {

namespace sampler {
namespace {

class Walk {
 public:
  explicit Walk(const SamplerWalkCall& given) : given_(given), interpreter_(given_.call, given_.call.run.images) {}
  bool begin() {
    if (!interpreter_.has_memory()) return false;
    interpreter_.start(0, given_.call.run.images, true);
    interpreter_.start_row(0);
    return true;
  }

  bool next(int64_t* place) {
    const SamplerSizes& sizes = given_.call.program.sizes;
    if (waiting_) {
      interpreter_.draw_alone(step_++, x_);
      while (given_.together && step_ < sizes.colours) interpreter_.step(step_++, x_);
      waiting_ = false;
    }
    for (;;) {
      if (step_ > sizes.colours) {
        step_ = 0;
        if (++x_ == sizes.grid_width) {
          x_ = 0;
          if (++y_ == sizes.height) return false;
          interpreter_.start_row(y_);
        }
      }
      if (step_ < sizes.colours && x_ < sizes.width && is_open()) break;
      interpreter_.step(step_++, x_);
    }
    interpreter_.before_draw(step_, x_);
    interpreter_.copy_predictions(step_, x_, given_.together, given_.parameters);
    waiting_ = true;
    place[0] = y_, place[1] = x_, place[2] = step_;
    return true;
  }

 private:
  bool is_open() const {
    const SamplerSizes& sizes = given_.call.program.sizes;
    const int64_t area = sizes.height * sizes.width, pixel = y_ * sizes.width + x_;
    const int64_t last = given_.together ? sizes.colours : step_ + 1;
    for (int64_t colour = step_; colour < last; ++colour)
      if (!given_.known[colour * area + pixel]) return true;
    return false;
  }

  const SamplerWalkCall given_;
  Interpreter interpreter_;
  int64_t y_ = 0, x_ = 0, step_ = 0;
  bool waiting_ = false;
};

}  // namespace
}  // namespace sampler

void* sampler_walk_begin(const SamplerWalkCall& call) {
  auto* const walk = new (std::nothrow) sampler::Walk(call);
  if (walk && walk->begin()) return walk;
  delete walk;
  return nullptr;
}

bool sampler_walk_next(void* walk, int64_t* place) { return static_cast<sampler::Walk*>(walk)->next(place); }

void sampler_walk_end(void* walk) { delete static_cast<sampler::Walk*>(walk); }

}  // namespace gk::GK_ISA

// A run that stops before every draw: the program is the same, and so is every bit of what is drawn from, as in a run
// of as many images by one thread. What a stop costs beside it is a copy of the parameters and a call.
#include <new>

#include "cpu/sampler/interpreter.h"

namespace gk::GK_ISA {

namespace sampler {
namespace {

class Walk {
 public:
  explicit Walk(const SamplerWalkCall& given) : given_(given), chunks_(chunks_of(given.call.run.images, 1)) {}
  ~Walk() {
    for (int64_t k = 0; interpreters_ && k < chunks_; ++k) delete interpreters_[k];
    delete[] interpreters_;
  }
  Walk(const Walk&) = delete;
  Walk& operator=(const Walk&) = delete;

  bool begin() {
    interpreters_ = new (std::nothrow) Interpreter*[chunks_]();
    for (int64_t k = 0; interpreters_ && k < chunks_; ++k) {
      const int64_t count = first(k + 1) - first(k);
      interpreters_[k] = new (std::nothrow) Interpreter(given_.call, count);
      if (!interpreters_[k] || !interpreters_[k]->has_memory()) return false;
      interpreters_[k]->start(first(k), count, true);
      interpreters_[k]->start_row(0);
    }
    return interpreters_ != nullptr;
  }

  bool next(int64_t* place) {
    const SamplerSizes& sizes = given_.call.program.sizes;
    if (waiting_) {
      for (int64_t k = 0; k < chunks_; ++k) interpreters_[k]->draw_alone(step_, x_);
      ++step_;
      while (given_.together && step_ < sizes.colours) run_step();
      waiting_ = false;
    }
    for (;;) {
      if (step_ > sizes.colours) {
        step_ = 0;
        if (++x_ == sizes.grid_width) {
          x_ = 0;
          if (++y_ == sizes.height) return false;
          for (int64_t k = 0; k < chunks_; ++k) interpreters_[k]->start_row(y_);
        }
      }
      if (step_ < sizes.colours && x_ < sizes.width && is_open()) break;
      run_step();
    }
    const int64_t count = given_.together ? sizes.predictions * sizes.channels : sizes.channels;
    for (int64_t k = 0; k < chunks_; ++k) {
      interpreters_[k]->before_draw(step_, x_);
      interpreters_[k]->copy_predictions(step_, x_, given_.together, given_.parameters + first(k) * count);
    }
    waiting_ = true;
    place[0] = y_, place[1] = x_, place[2] = step_;
    return true;
  }

 private:
  int64_t first(int64_t chunk) const { return chunk * given_.call.run.images / chunks_; }
  void run_step() {
    for (int64_t k = 0; k < chunks_; ++k) interpreters_[k]->step(step_, x_);
    ++step_;
  }
  bool is_open() const {
    const SamplerSizes& sizes = given_.call.program.sizes;
    const int64_t area = sizes.height * sizes.width, pixel = y_ * sizes.width + x_;
    const int64_t last = given_.together ? sizes.colours : step_ + 1;
    for (int64_t colour = step_; colour < last; ++colour)
      if (!given_.known[colour * area + pixel]) return true;
    return false;
  }

  const SamplerWalkCall given_;
  const int64_t chunks_;  // that one thread would take in a run
  // Without the standard library's containers, whose code for one instruction set another might be linked to.
  Interpreter** interpreters_ = nullptr;
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

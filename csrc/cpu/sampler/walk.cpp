// A run that stops before every draw: the program is the same, and so is every bit of what is drawn from, as in a run of as
// many images by one thread. What a stop costs beside it is a copy of the parameters and a call.
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "cpu/sampler/interpreter.h"

namespace gk::GK_ISA {

namespace sampler {
namespace {

class Walk {
 public:
  explicit Walk(const SamplerWalkCall& given) : given_(given) {}
  bool begin() {
    const int64_t images = given_.call.run.images, chunks = chunks_of(images, 1);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t first = chunk * images / chunks, count = (chunk + 1) * images / chunks - first;
      std::unique_ptr<Interpreter> one(new (std::nothrow) Interpreter(given_.call, count));
      if (!one || !one->has_memory()) return false;
      one->start(first, count, true);
      one->start_row(0);
      interpreters_.push_back(std::move(one));
      firsts_.push_back(first);
    }
    return true;
  }

  bool next(int64_t* place) {
    const SamplerSizes& sizes = given_.call.program.sizes;
    if (waiting_) {
      for (auto& one : interpreters_) one->draw_alone(step_, x_);
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
          for (auto& one : interpreters_) one->start_row(y_);
        }
      }
      if (step_ < sizes.colours && x_ < sizes.width && is_open()) break;
      run_step();
    }
    const int64_t count = given_.together ? sizes.predictions * sizes.channels : sizes.channels;
    for (size_t k = 0; k < interpreters_.size(); ++k) {
      interpreters_[k]->before_draw(step_, x_);
      interpreters_[k]->copy_predictions(step_, x_, given_.together, given_.parameters + firsts_[k] * count);
    }
    waiting_ = true;
    place[0] = y_, place[1] = x_, place[2] = step_;
    return true;
  }

 private:
  void run_step() {
    for (auto& one : interpreters_) one->step(step_, x_);
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
  std::vector<std::unique_ptr<Interpreter>> interpreters_;  // of the chunks that one thread would take in a run
  std::vector<int64_t> firsts_;                             // their first images
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

// Division of the directions among clusters, blocks and warps: the quickest by a model of the clocks of a step.
//
// Small clusters keep the barrier short, large ones keep the weights in shared memory; many images in a cluster use
// the weights that a warp has read, few keep all multiprocessors busy. The model counts clocks of one multiprocessor
// for a full step: tensor cores or shared memory, whichever is slower, then what comes from L2, then the barriers,
// times the waves in which the clusters run. Its constants are data-sheet values: it orders divisions, no more.
#include "cuda/wavefront_lstm/block.h"

namespace gk::cuda {

WavefrontPlan forward_needs(const WavefrontShape& l, WavefrontPlan plan);
WavefrontPlan backward_needs(const WavefrontShape& l, WavefrontPlan plan);

namespace {

using Needs = WavefrontPlan (*)(const WavefrontShape&, WavefrontPlan);

double clocks_of_step(const WavefrontShape& l, const WavefrontLimits& limits, const WavefrontPlan& plan) {
  const double tiles = plan.rows / TILE, products = tiles * plan.columns * plan.steps;
  const double readings = products / 4 < plan.columns * plan.steps ? plan.columns * plan.steps : products / 4;
  const double tensor_cores = products * 4 * (l.storage == Storage::float32 && l.exact ? 3 : 1);
  const double shared_memory = (products * 512 + readings * 1024) / 128;
  const double from_l2 = readings * (plan.steps - plan.resident) / plan.steps * 1024 / 48;
  const double barriers = plan.cluster == 1 ? 60 : 500 + 50 * plan.cluster;
  const int waves = ceil_div(plan.cluster * plan.slices * l.directions, limits.multiprocessors);
  return waves * ((tensor_cores > shared_memory ? tensor_cores : shared_memory) + from_l2 + barriers);
}

// The best plan; cluster 0 where none fits. *needed: bytes that the most modest one takes.
WavefrontPlan best_plan(const WavefrontShape& l, const WavefrontLimits& limits, Needs needs, int64_t* needed) {
  WavefrontPlan best = {};
  double best_clocks = 0;
  *needed = INT64_MAX;
  for (int cluster = 1; cluster <= limits.max_cluster && cluster <= ceil_div(l.hidden, 8); cluster *= 2) {
    if (cluster > limits.multiprocessors) break;
    for (int slices = l.batch, images = 1; slices >= 1;) {
      WavefrontPlan plan = {};
      plan.cluster = cluster;
      plan.images = images;
      plan.slices = slices;
      const int64_t rows = static_cast<int64_t>(images) * position_count(l);
      if (rows > MAX_TILES * TILE) break;
      plan.rows = round_up(static_cast<int>(rows), TILE);
      plan = needs(l, plan);
      *needed = plan.shared_bytes < *needed ? plan.shared_bytes : *needed;
      const int64_t left = (limits.shared_bytes - plan.shared_bytes) / (plan.columns * 1024);
      if (plan.shared_bytes <= limits.shared_bytes) {
        plan.resident = left < plan.steps ? static_cast<int>(left) : plan.steps;
        plan = needs(l, plan);
        const double clocks = clocks_of_step(l, limits, plan);
        if (best.cluster == 0 || clocks < best_clocks) best = plan, best_clocks = clocks;
      }
      if (slices == 1) break;
      images = ceil_div(l.batch, slices - 1);  // the next larger number of images that saves a slice
      slices = ceil_div(l.batch, images);
    }
  }
  return best;
}

}  // namespace

WavefrontPlans plan_wavefront(const WavefrontShape& shape, const WavefrontLimits& limits) {
  WavefrontPlans plans = {};
  if (position_count(shape) > MAX_TILES * TILE) return plans;
  int64_t forward_bytes, backward_bytes;
  plans.forward = best_plan(shape, limits, forward_needs, &forward_bytes);
  plans.backward = best_plan(shape, limits, backward_needs, &backward_bytes);
  plans.fits = plans.forward.cluster && plans.backward.cluster;
  if (!plans.fits) plans.needed_bytes = forward_bytes > backward_bytes ? forward_bytes : backward_bytes;
  return plans;
}

}  // namespace gk::cuda

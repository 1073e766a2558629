// Sampling programs on the CPU: images are drawn from the first pixel to the last without returning to Python.
//
// Tiling: threads take chunks of images, 12 at most, and draw them independently of each other, so that two tiles of the
// products share a panel of weights and the caches of the values (rings of the few rows that are still read, row by row
// [column][channel]) stay near. In the row phase rows of the products are all columns of all images of the chunk, at a
// pixel the images.
// Memory: the weights stream from L2 (L3 where they are more) once for every pixel and chunk.
// Floor: the operations of one forward pass at the multiply-add units' peak; for one image, the bytes of the steps'
// weights over the bandwidth of the cache that holds them, for every pixel.
// Measured (2 threads of Zen 3, 205 GFLOP/s; PixelCNN of 7 layers, h = 64, 28 x 28): 16 images in 33 ms, 60 % of peak,
// where a forward pass takes 27 ms; one image (one thread) in 6.8 ms, 36 % of that thread's peak. Draws are 6 % of the
// former (0.3 us each). An audio model of 20 layers, 64 channels, whose 2.5 MB of weights stream from L3, takes 48 us a
// sample, 52 GB/s. One image is one thread's work: threads that share it would meet after every instruction.
#include "cpu/sampler/sampler.h"

#include <omp.h>
#include <time.h>

#include "cpu/sampler/interpreter.h"

namespace gk::GK_ISA {

namespace sampler {
namespace {

constexpr double POLL_SECONDS = 0.05;

double seconds_now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// State that the threads of a run share.
struct Team {
  const SamplerCall& call;
  int64_t chunks, next = 0, rows = 0;  // the next chunk to take; rows finished, those of all chunks together
  int busy, stop = 0, no_memory = 0;

  bool stopped() {
    return __atomic_load_n(&stop, __ATOMIC_RELAXED) || __atomic_load_n(call.undrawable, __ATOMIC_RELAXED) >= 0;
  }
  // By the calling thread alone.
  void poll() {
    if (!call.poll(call.context, __atomic_load_n(&rows, __ATOMIC_RELAXED) / chunks))
      __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
  }
};

// Draws the images of a chunk, from the first pixel to the last that is open.
void draw_chunk(Team& team, Interpreter& interpreter, bool calling, double& next_poll) {
  const SamplerCall& call = team.call;
  const SamplerRun& run = call.run;
  int64_t pixels = 0;
  for (int64_t y = 0; y <= run.last_row; ++y) {
    interpreter.start_row(y);
    const bool last_row = y == run.last_row;
    const int64_t width = last_row ? run.last_column + 1 : call.program.sizes.grid_width;
    for (int64_t x = 0; x < width; ++x) {
      if (team.stopped()) return;
      const int64_t last_step = last_row && x == run.last_column ? run.last_colour : call.program.sizes.colours;
      for (int64_t step = 0; step <= last_step; ++step) interpreter.step(step, x);
      if (calling && ++pixels % 16 == 0 && seconds_now() > next_poll) {
        team.poll();
        next_poll = seconds_now() + POLL_SECONDS;
      }
    }
    __atomic_fetch_add(&team.rows, 1, __ATOMIC_RELAXED);
    if (calling) team.poll();
  }
}

}  // namespace
}  // namespace sampler

bool sampler_run(const SamplerCall& call) {
  using namespace sampler;
  const int64_t images = call.run.images, chunks = chunks_of(images, call.threads);
  const int64_t most = ceil_div(images, chunks);  // images of a chunk
  const int threads = static_cast<int>(min64(call.threads, chunks));
  Team team{call, chunks, 0, 0, threads};
#pragma omp parallel num_threads(threads)
  {
    const bool calling = omp_get_thread_num() == 0;
    double next_poll = seconds_now() + POLL_SECONDS;
    if (omp_get_num_threads() < threads && calling)  // fewer came: they share what there is
      __atomic_fetch_sub(&team.busy, threads - omp_get_num_threads(), __ATOMIC_RELAXED);
    Interpreter interpreter(call, most);
    if (interpreter.has_memory()) {
      bool fresh = true;
      while (!team.stopped()) {
        const int64_t chunk = __atomic_fetch_add(&team.next, 1, __ATOMIC_RELAXED);
        if (chunk >= chunks) break;
        const int64_t first = chunk * images / chunks;
        interpreter.start(first, (chunk + 1) * images / chunks - first, fresh);
        fresh = false;
        draw_chunk(team, interpreter, calling, next_poll);
      }
    } else {
      __atomic_store_n(&team.no_memory, 1, __ATOMIC_RELAXED);
      __atomic_store_n(&team.stop, 1, __ATOMIC_RELAXED);
    }
    __atomic_fetch_sub(&team.busy, 1, __ATOMIC_RELEASE);
    while (calling && __atomic_load_n(&team.busy, __ATOMIC_ACQUIRE) > 0) {
      const timespec pause{0, 500000};
      nanosleep(&pause, nullptr);
      if (seconds_now() > next_poll) {
        team.poll();
        next_poll = seconds_now() + POLL_SECONDS;
      }
    }
  }
  return !team.no_memory;
}

void sampler_panel(int64_t* columns, int64_t* lanes) {
  *columns = PANEL_MAX;
  *lanes = VL;
}

}  // namespace gk::GK_ISA

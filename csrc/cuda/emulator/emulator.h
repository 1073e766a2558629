// The CUDA execution model on one host thread: clusters of blocks of threads, each a fiber with a stack of its own.
//
// A fiber runs until it has to wait (for its warp, block or cluster) or returns. What hardware would not forgive ends
// the launch with a Fault that names the threads: shared memory outside its region or misaligned, read before anything
// was written to it, or touched by two threads without a barrier between (one of them writing); a barrier that some
// threads do not reach; a warp-wide instruction that its lanes reach at different places.
//
// Order is kept by a clock that ticks at every barrier. An access at time t comes before thread x when t is earlier
// than the last barrier that x passed together with the other thread: of the warp, the block or the cluster. Each two
// bytes remember their last write and the last reads of two threads: enough to see most races, and no false ones.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace gk::emulator {

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void fault(const std::string& what);  // adds which thread it was

struct Index { int x; };

struct Access {
  uint32_t time = 0;  // 0: never
  uint32_t thread = 0;
};
struct Granule {  // two bytes of shared memory
  Access write, read, other_read;
};

struct Warp {
  unsigned arrived = 0;  // a bit for each lane
  const char* operation = nullptr;
  int line = 0;
  uint32_t synced = 1;
  alignas(16) char in[32][64], out[32][64];  // operands and results of one warp-wide instruction
};

struct Block {
  Index index;
  int rank;  // in the cluster
  uint32_t synced = 1;
  int waiting = 0, line = 0;
  std::vector<char> shared;
  std::vector<Granule> granules;
  std::vector<Warp> warps;
};

enum class State { ready, in_warp, in_block, in_cluster, done };

struct Thread {
  void* stack_pointer = nullptr;
  Index index;
  int number, lane;  // in the cluster; in the warp
  Block* block;
  Warp* warp;
  State state = State::ready;
};

struct Cluster {
  std::vector<Block> blocks;
  std::vector<Thread> threads;
  uint32_t synced = 1;
  int waiting = 0, line = 0;
};

// The thread that runs, its cluster, and the sizes of its block and its grid.
extern Thread* current;
extern Cluster* cluster;
extern Index block_size, grid_size;

// Runs `body` for every thread of `blocks` blocks, cluster after cluster.
void run(int blocks, int threads, int cluster_size, int64_t shared_bytes, const std::function<void()>& body);

void sync_block(int line);
void sync_cluster(int line);

// A warp-wide instruction: every lane brings `size` bytes, `combine` sees all of them (Warp::in) and writes Warp::out.
void collective(const char* operation, int line, const void* in, int in_size, void* out, int out_size,
                void (*combine)(Warp&));

// Address of bytes of a block's shared memory, checked: inside the region, aligned, written before, no race.
char* access(Block& block, int region, int region_bytes, int64_t offset, int size, bool write);

}  // namespace gk::emulator

// Fibers, barriers and the checks of shared memory; see emulator.h.
#include "cuda/emulator/emulator.h"

#include <sys/mman.h>

#include <cstring>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace gk::emulator {

Thread* current = nullptr;
Cluster* cluster = nullptr;
Index block_size, grid_size;

namespace {

constexpr int STACK_BYTES = 64 * 1024;

uint32_t clock_now = 1;
Thread scheduler;  // only its stack pointer is used
const std::function<void()>* body = nullptr;
std::string first_fault;

// Stacks of all threads of a cluster; pages are there when touched.
class Stacks {
 public:
  explicit Stacks(size_t count) : bytes_(count * STACK_BYTES) {
    data_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data_ == MAP_FAILED) throw std::bad_alloc();
  }
  ~Stacks() { munmap(data_, bytes_); }
  Stacks(const Stacks&) = delete;
  char* bottom(size_t i) const { return static_cast<char*>(data_) + i * STACK_BYTES; }

 private:
  size_t bytes_;
  void* data_;
};

void switch_to(Thread& from, Thread& to);

void main_of_fiber() {
  try {
    (*body)();
  } catch (const Fault& error) {
    first_fault = error.what();
  } catch (const std::exception& error) {
    first_fault = std::string("exception in a kernel: ") + error.what();
  }
  current->state = State::done;
  switch_to(*current, scheduler);
}

#if defined(__x86_64__)

extern "C" void gk_emulator_switch(void** save, void* load);
asm(R"(
.text
.p2align 4
.type gk_emulator_switch,@function
gk_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size gk_emulator_switch,.-gk_emulator_switch
)");

void switch_to(Thread& from, Thread& to) { gk_emulator_switch(&from.stack_pointer, to.stack_pointer); }

void prepare(Thread& thread, char* bottom) {
  void** top = reinterpret_cast<void**>(bottom + STACK_BYTES);
  *--top = nullptr;  // where main_of_fiber would return to: keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(&main_of_fiber);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  thread.stack_pointer = top;
}

#else

std::vector<ucontext_t> contexts;  // of the threads, and the scheduler's behind them

ucontext_t& context_of(Thread& thread) { return contexts[&thread == &scheduler ? contexts.size() - 1 : thread.number]; }
void switch_to(Thread& from, Thread& to) { swapcontext(&context_of(from), &context_of(to)); }

void prepare(Thread& thread, char* bottom) {
  contexts.resize(cluster->threads.size() + 1);
  ucontext_t& context = context_of(thread);
  getcontext(&context);
  context.uc_stack.ss_sp = bottom;
  context.uc_stack.ss_size = STACK_BYTES;
  context.uc_link = nullptr;
  makecontext(&context, main_of_fiber, 0);
}

#endif

void wait(State state) {
  current->state = state;
  switch_to(*current, scheduler);
}

std::string name_of(const Thread& thread) {
  return "thread " + std::to_string(thread.index.x) + " of block " + std::to_string(thread.block->index.x);
}

std::string where(const Thread& thread) {
  if (thread.state == State::done) return " has returned";
  if (thread.state == State::in_warp)
    return std::string(" waits at ") + thread.warp->operation + " in line " + std::to_string(thread.warp->line);
  if (thread.state == State::in_block) return " waits at __syncthreads in line " + std::to_string(thread.block->line);
  return " waits at cluster_sync in line " + std::to_string(cluster->line);
}

// Nobody can go on, and somebody has not returned.
[[noreturn]] void fail_stuck() {
  const Thread *waiting = nullptr, *missing = nullptr;
  for (const Thread& thread : cluster->threads) {
    if (thread.state != State::done && !waiting) waiting = &thread;
  }
  for (const Thread& thread : cluster->threads) {
    const bool same_place = thread.state == waiting->state && thread.block == waiting->block;
    if (!same_place && (waiting->state != State::in_warp || thread.warp == waiting->warp)) missing = &thread;
  }
  throw Fault("a barrier is not reached by all threads: " + name_of(*waiting) + where(*waiting) +
              (missing ? ", " + name_of(*missing) + where(*missing) : ""));
}

void run_cluster(int first_block, int threads, int cluster_size, int64_t shared_bytes) {
  Cluster own;
  cluster = &own;
  own.blocks.resize(cluster_size);
  for (int rank = 0; rank < cluster_size; ++rank) {
    Block& block = own.blocks[rank];
    block.index = {first_block + rank};
    block.rank = rank;
    block.shared.resize(shared_bytes + 16);
    block.granules.resize((shared_bytes + 1) / 2);
    block.warps.resize(threads / 32);
  }
  const Stacks stacks(static_cast<size_t>(cluster_size) * threads);
  own.threads.resize(static_cast<size_t>(cluster_size) * threads);
  for (int number = 0; number < cluster_size * threads; ++number) {
    Thread& thread = own.threads[number];
    thread.number = number;
    thread.index = {number % threads};
    thread.lane = number % 32;
    thread.block = &own.blocks[number / threads];
    thread.warp = &thread.block->warps[number % threads / 32];
    prepare(thread, stacks.bottom(number));
  }
  bool alive = true, moved = true;
  while (alive) {
    if (!moved) fail_stuck();
    alive = moved = false;
    for (size_t first = 0; first < own.threads.size(); first += 32) {
      for (bool again = true; again;) {  // a warp for as long as it gets on by itself
        again = false;
        for (size_t i = first; i < first + 32; ++i) {
          Thread& thread = own.threads[i];
          if (thread.state != State::ready) continue;
          again = moved = true;
          current = &thread;
          switch_to(scheduler, thread);
          if (!first_fault.empty()) throw Fault(first_fault);
        }
      }
      for (size_t i = first; i < first + 32; ++i) alive |= own.threads[i].state != State::done;
    }
  }
}

void release(State state, const Block* block) {
  for (Thread& thread : cluster->threads)
    if (thread.state == state && (!block || thread.block == block)) thread.state = State::ready;
}

// Whether what `other` did at `time` comes before what the current thread does now.
bool ordered(const Access& access) {
  if (access.time == 0 || access.thread == static_cast<uint32_t>(current->number)) return true;
  const Thread& other = cluster->threads[access.thread];
  if (other.warp == current->warp) return access.time < current->warp->synced;
  if (other.block == current->block) return access.time < current->block->synced;
  return access.time < cluster->synced;
}

[[noreturn]] void fail_race(const char* first, const Access& access, const char* second, int64_t byte) {
  fault("race at byte " + std::to_string(byte) + " of shared memory: " + second + " while " +
        name_of(cluster->threads[access.thread]) + " " + first + " it, with no barrier between");
}

}  // namespace

void fault(const std::string& what) { throw Fault(name_of(*current) + ": " + what); }

void run(int blocks, int threads, int cluster_size, int64_t shared_bytes, const std::function<void()>& kernel) {
  if (threads % 32 != 0 || threads < 32 || threads > 1024) throw Fault("threads of a block: expected 32, 64, ... 1024");
  if (cluster_size < 1 || blocks % cluster_size != 0) throw Fault("blocks: expected a multiple of the cluster's size");
  body = &kernel;
  block_size = {threads};
  grid_size = {blocks};
  first_fault.clear();
  clock_now = 1;
  for (int first = 0; first < blocks; first += cluster_size) run_cluster(first, threads, cluster_size, shared_bytes);
}

void sync_block(int line) {
  Block& block = *current->block;
  if (block.waiting && block.line != line)
    fault("__syncthreads in line " + std::to_string(line) + " while others wait in line " + std::to_string(block.line));
  block.line = line;
  if (++block.waiting < block_size.x) return wait(State::in_block);
  block.waiting = 0;
  block.synced = ++clock_now;
  for (Warp& warp : block.warps) warp.synced = clock_now;
  release(State::in_block, &block);
}

void sync_cluster(int line) {
  if (cluster->waiting && cluster->line != line)
    fault("cluster_sync in line " + std::to_string(line) + " while others wait in line " +
          std::to_string(cluster->line));
  cluster->line = line;
  if (++cluster->waiting < static_cast<int>(cluster->threads.size())) return wait(State::in_cluster);
  cluster->waiting = 0;
  cluster->synced = ++clock_now;
  for (Block& block : cluster->blocks) {
    block.synced = clock_now;
    for (Warp& warp : block.warps) warp.synced = clock_now;
  }
  release(State::in_cluster, nullptr);
}

void collective(const char* operation, int line, const void* in, int in_size, void* out, int out_size,
                void (*combine)(Warp&)) {
  Warp& warp = *current->warp;
  if (warp.arrived && (warp.operation != operation || warp.line != line))
    fault(std::string("divergent warp: ") + operation + " in line " + std::to_string(line) + " while other lanes are at " +
          warp.operation + " in line " + std::to_string(warp.line));
  warp.operation = operation;
  warp.line = line;
  if (in_size) memcpy(warp.in[current->lane], in, in_size);
  warp.arrived |= 1u << current->lane;
  if (warp.arrived != 0xffffffffu) {
    wait(State::in_warp);
  } else {
    if (combine) combine(warp);
    warp.arrived = 0;
    warp.synced = ++clock_now;
    Thread* const lanes = current - current->lane;
    for (int lane = 0; lane < 32; ++lane) lanes[lane].state = State::ready;
  }
  if (out_size) memcpy(out, warp.out[current->lane], out_size);
}

char* access(Block& block, int region, int region_bytes, int64_t offset, int size, bool write) {
  if (offset < 0 || offset + size > region_bytes)
    fault("shared memory out of bounds: bytes " + std::to_string(offset) + " to " + std::to_string(offset + size) +
          " of a region of " + std::to_string(region_bytes));
  const int64_t byte = region + offset;
  if (byte + size > static_cast<int64_t>(block.granules.size()) * 2)
    fault("shared memory out of bounds: the launch has " + std::to_string(block.granules.size() * 2) + " bytes, not " +
          std::to_string(byte + size));
  if (byte % size != 0) fault("misaligned access of " + std::to_string(size) + " bytes at byte " + std::to_string(byte));
  const Access now{clock_now, static_cast<uint32_t>(current->number)};
  for (int64_t g = byte / 2; g < (byte + size) / 2; ++g) {
    Granule& granule = block.granules[g];
    if (!ordered(granule.write)) fail_race("wrote", granule.write, write ? "written" : "read", 2 * g);
    if (write) {
      if (!ordered(granule.read)) fail_race("read", granule.read, "written", 2 * g);
      if (!ordered(granule.other_read)) fail_race("read", granule.other_read, "written", 2 * g);
      granule.write = now;
    } else {
      if (granule.write.time == 0)
        fault("uninitialised: byte " + std::to_string(2 * g) + " of shared memory is read, but nothing wrote it");
      if (granule.read.thread != now.thread) granule.other_read = granule.read;
      granule.read = now;
    }
  }
  return block.shared.data() + byte;
}

}  // namespace gk::emulator

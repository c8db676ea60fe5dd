// Runs one kernel launch on one core. SP_SOURCE is the .cu file, SP_ENTRY its kernel.
//
// Every thread of a cluster is a fiber that runs until it waits: at a barrier, a shuffle or its end. When all runnable
// ones have run and nobody is released, the launch is deadlocked. Forward and backward order of threads are both
// offered, so that a result that depends on the order (a missing barrier) shows.
#include "cuda_shim.h"

#include <csetjmp>
#include <csignal>
#include <string>
#include <sys/mman.h>

#include SP_SOURCE

extern "C" void sp_switch(void** save, void* to);
asm(R"(
.text
.globl sp_switch
.hidden sp_switch
sp_switch:
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
)");

namespace sp_emu {
uint3 thread, block;
dim3 block_size, grid_size;
int cluster_size;

namespace {
enum class State { ready, block_barrier, cluster_barrier, warp, done, mbarrier };
struct Copy {
  void* to;
  const void* from;
  int bytes, zeros;
};
struct BulkCopy {
  void* to;
  const void* from;
  int bytes;
  Mbarrier* bar;
  std::vector<Copy> others;  // of a thread, which arrives when they are done; then there is no `to`
  float values[4];           // of a store, which has no `from`
};
struct Fiber {
  void* stack = nullptr;
  void* top = nullptr;
  State state = State::ready;
  uint3 thread, block;
  int rank = 0, warp = 0;
  unsigned mask = 0;      // of the shuffle it waits at
  int exchanges = 0;      // its shuffles so far: the parity picks the buffer
  int bar_index = 0, bar_threads = 0;
  const Mbarrier* polled = nullptr;
  int parity = 0;  // of the phase that it waits for
  std::vector<Copy> open;
  std::vector<std::vector<Copy>> groups;
};
struct Warp {
  uint64_t values[2][32];
};

constexpr size_t kStack = 64 << 10;
std::vector<Fiber> fibers;
std::vector<Warp> warps;
std::vector<BulkCopy> bulk;
std::vector<char*> shared;
size_t shared_bytes;
Fiber* current;
void* scheduler;
void (*body)();
sigjmp_buf escape;
std::string message;

std::string where() {
  char text[160];
  snprintf(text, sizeof text, "block (%u, %u, %u), thread %u: ", block.x, block.y, block.z, thread.x);
  return text;
}

void leave(State state) {
  current->state = state;
  sp_switch(&current->top, scheduler);
}

void start() {
  body();
  if (!current->open.empty()) fail("cp.async without a commit");
  leave(State::done);
}

void run(Fiber& fiber) {
  current = &fiber;
  thread = fiber.thread;
  block = fiber.block;
  sp_switch(&scheduler, fiber.top);
}

void prepare(Fiber& fiber) {
  void** top = reinterpret_cast<void**>(static_cast<char*>(fiber.stack) + kStack);
  *--top = nullptr;                            // keeps the stack aligned as after a call
  *--top = reinterpret_cast<void*>(&start);
  for (int i = 0; i < 6; i++) *--top = nullptr;
  fiber.top = top;
  fiber.state = State::ready;
  fiber.exchanges = 0;
  fiber.open.clear();
  fiber.groups.clear();
}

void settle(Mbarrier* bar) {
  if (bar->pending || bar->state >> 1) return;
  bar->pending = bar->count;
  bar->state ^= 1;
}

void finish(const Copy& c) {
  memcpy(c.to, c.from, c.bytes - c.zeros);
  memset(static_cast<char*>(c.to) + c.bytes - c.zeros, 0, c.zeros);
}

// Bulk copies arrive when no thread can run any more: as late as may be.
bool copy_bulk() {
  const bool any = !bulk.empty();
  for (const BulkCopy& c : bulk) {
    if (c.to) {
      memcpy(c.to, c.from ? c.from : c.values, c.bytes);
      c.bar->state -= 2 * c.bytes;
      settle(c.bar);
    } else {
      for (const Copy& other : c.others) finish(other);
      mbarrier_arrive(c.bar, 0);
    }
  }
  bulk.clear();
  return any;
}

// Releases whoever has nobody left to wait for; true when anyone was released.
bool release() {
  bool any = copy_bulk();
  for (Fiber& f : fibers)
    if (f.state == State::mbarrier && (f.polled->state & 1) != f.parity) f.state = State::ready, any = true;
  const int per_block = block_size.x;
  for (size_t first = 0; first < fibers.size(); first += per_block) {
    int counts[17] = {}, live = 0;
    for (int i = 0; i < per_block; i++) {
      const Fiber& f = fibers[first + i];
      live += f.state != State::done;
      if (f.state == State::block_barrier) counts[f.bar_index]++;
    }
    for (int i = 0; i < per_block; i++) {
      Fiber& f = fibers[first + i];
      if (f.state == State::block_barrier && counts[f.bar_index] == (f.bar_threads ? f.bar_threads : live))
        f.state = State::ready, any = true;
    }
    for (int w = 0; w < per_block; w += 32)
      for (int i = w; i < std::min(w + 32, per_block); i++) {
        Fiber& f = fibers[first + i];
        if (f.state != State::warp) continue;
        bool all = true;
        for (int j = 0; j < 32 && all; j++)
          if (f.mask >> j & 1) {
            if (w + j >= per_block) { message = "a shuffle's mask names lanes that the block lacks"; siglongjmp(escape, 1); }
            const Fiber& g = fibers[first + w + j];
            all = g.exchanges > f.exchanges || (g.exchanges == f.exchanges && g.state == State::warp && g.mask == f.mask);
          }
        if (all) f.state = State::ready, any = true;
      }
  }
  size_t waiting = 0, live = 0;
  for (const Fiber& f : fibers) waiting += f.state == State::cluster_barrier, live += f.state != State::done;
  if (waiting && waiting == fibers.size()) {
    for (Fiber& f : fibers) f.state = State::ready;
    any = true;
  }
  return any;
}

void run_cluster(bool backward) {
  for (Fiber& f : fibers) prepare(f);
  for (char* s : shared) memset(s, 0xff, shared_bytes);
  bulk.clear();
  for (;;) {
    for (size_t i = 0; i < fibers.size(); i++) {
      Fiber& f = fibers[backward ? fibers.size() - 1 - i : i];
      if (f.state == State::ready) run(f);
    }
    if (release()) continue;
    int at[6] = {};
    for (const Fiber& f : fibers) at[int(f.state)]++;
    if (at[int(State::done)] == int(fibers.size())) return;
    char text[200];
    snprintf(text, sizeof text, "deadlock: %d threads at __syncthreads, %d at a cluster barrier, %d at a shuffle, %d at an mbarrier, %d done",
             at[1], at[2], at[3], at[5], at[4]);
    message = where() + text;
    siglongjmp(escape, 1);
  }
}

struct Range {
  const char* begin;
  size_t bytes;
};
std::vector<Range> named;

void on_signal(int number, siginfo_t* info, void*) {
  const char* at = static_cast<const char*>(info->si_addr);
  message = where();
  char text[160];
  if (number == SIGILL) {
    message += "misaligned vector access or index out of bounds";
  } else {
    message += "access out of bounds";
    const char* best = nullptr;
    long distance = 0;
    size_t which = 0;
    for (size_t i = 0; i < named.size(); i++) {
      long d = at < named[i].begin ? named[i].begin - at : at - named[i].begin - long(named[i].bytes);
      if (!best || d < distance) best = named[i].begin, distance = d, which = i;
    }
    if (best) {
      snprintf(text, sizeof text, ": byte %ld of %s %zu (%zu bytes)", long(at - best),
               which < shared.size() ? "shared memory of block" : "argument",
               which < shared.size() ? which : which - shared.size(), named[which].bytes);
      message += text;
    }
  }
  siglongjmp(escape, 1);
}

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_const_t<A>*>(arguments[I])...);
}
template <class... A>
void call(void (*kernel)(A...), void** arguments) {
  call(kernel, arguments, std::index_sequence_for<A...>());
}
template <class... A>
constexpr int arity(void (*)(A...)) { return sizeof...(A); }

void** arguments;
}  // namespace

void fail(const char* text) {
  message = where() + text;
  siglongjmp(escape, 1);
}

void barrier() {
  current->bar_index = 0;
  current->bar_threads = 0;
  leave(State::block_barrier);
}

void barrier(int index, int threads) {
  current->bar_index = index;
  current->bar_threads = threads;
  leave(State::block_barrier);
}

void cluster_barrier() { leave(State::cluster_barrier); }

const uint64_t* exchange(unsigned mask, uint64_t value) {
  if (!(mask >> lane() & 1)) fail("a lane calls a shuffle whose mask lacks it");
  uint64_t* values = warps[current->warp].values[current->exchanges % 2];
  values[lane()] = value;
  current->mask = mask;
  leave(State::warp);
  current->exchanges++;
  return values;
}

char* dynamic_shared() { return shared[current->rank]; }

const void* remote(const void* mine, int rank) {
  long offset = static_cast<const char*>(mine) - shared[current->rank];
  if (rank < 0 || rank >= cluster_size || offset < 0 || offset >= long(shared_bytes))
    fail("distributed shared memory: no such block, or not in dynamic shared memory");
  return shared[rank] + offset;
}

void copy_later(void* to, const void* from, int bytes, int zeros) {
  if (uintptr_t(to) % bytes || uintptr_t(from) % bytes) fail("cp.async: misaligned address");
  memset(to, 0xff, bytes);  // a reader that does not wait finds NaN
  current->open.push_back({to, from, bytes, zeros});
}

void commit() {
  current->groups.push_back(std::move(current->open));
  current->open.clear();
}

void wait(int groups_left) {
  auto& groups = current->groups;
  while (int(groups.size()) > groups_left) {
    for (const Copy& c : groups.front()) finish(c);
    groups.erase(groups.begin());
  }
}

void mbarrier_init(Mbarrier* bar, int count) { *bar = {uint16_t(count), uint16_t(count), 0}; }

void mbarrier_arrive(Mbarrier* bar, int bytes) {
  if (!bar->pending) fail("more threads arrive at an mbarrier than it counts");
  bar->state += 2 * bytes;
  bar->pending--;
  settle(bar);
}

void mbarrier_arrive_copied(Mbarrier* bar) {
  bulk.push_back({nullptr, nullptr, 0, bar, std::move(current->open), {}});
  current->open.clear();
}

void mbarrier_wait(Mbarrier* bar, int parity) {
  if ((bar->state & 1) != parity) return;
  current->polled = bar;
  current->parity = parity;
  leave(State::mbarrier);
}

void bulk_copy(void* to, const void* from, int bytes, Mbarrier* bar) {
  if (uintptr_t(to) % 16 || uintptr_t(from) % 16 || bytes % 16 || bytes <= 0) fail("bulk copy: not in units of 16 bytes");
  memset(to, 0xff, bytes);
  bulk.push_back({to, from, bytes, bar, {}, {}});
}

void store_later(void* to, const float* values, int count, Mbarrier* bar) {
  const int bytes = 4 * count;
  if (uintptr_t(to) % bytes) fail("st.async: misaligned address");
  memset(to, 0xff, bytes);
  bulk.push_back({to, nullptr, bytes, bar, {}, {}});
  memcpy(bulk.back().values, values, bytes);
}
}  // namespace sp_emu

// Empty string: all went well. `shared_at`: one buffer of shared_bytes for each block of a cluster.
extern "C" const char* sp_run(const unsigned* grid, int threads, int cluster, char** shared_at, size_t shared_bytes,
                              void** arguments, int count, const char** begins, const size_t* sizes, int arrays,
                              int backward) {
  using namespace sp_emu;
  message.clear();
  if (count != arity(SP_ENTRY)) {
    message = "the kernel takes " + std::to_string(arity(SP_ENTRY)) + " arguments, the launch gives " + std::to_string(count);
    return message.c_str();
  }
  sp_emu::arguments = arguments;
  sp_emu::shared_bytes = shared_bytes;
  body = [] { call(SP_ENTRY, sp_emu::arguments); };
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {unsigned(threads), 1, 1};
  cluster_size = cluster;
  shared.assign(shared_at, shared_at + cluster);
  named.clear();
  for (char* s : shared) named.push_back({s, shared_bytes});
  for (int i = 0; i < arrays; i++) named.push_back({begins[i], sizes[i]});
  const int warps_per_block = (threads + 31) / 32;
  fibers.assign(size_t(threads) * cluster, Fiber());
  warps.assign(size_t(warps_per_block) * cluster, Warp());
  const size_t stacks = kStack * fibers.size();
  char* memory = static_cast<char*>(mmap(nullptr, stacks, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  static char signal_stack[64 << 10];
  stack_t alternate = {}, old_stack;
  alternate.ss_sp = signal_stack;
  alternate.ss_size = sizeof signal_stack;
  sigaltstack(&alternate, &old_stack);
  const int numbers[3] = {SIGSEGV, SIGBUS, SIGILL};
  struct sigaction action = {}, old_actions[3];
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < 3; i++) sigaction(numbers[i], &action, &old_actions[i]);
  if (!sigsetjmp(escape, 1)) {
    const size_t blocks = size_t(grid[0]) * grid[1] * grid[2];
    for (size_t done = 0; done < blocks; done += cluster) {
      const size_t first = backward ? blocks - cluster - done : done;
      for (size_t i = 0; i < fibers.size(); i++) {
        Fiber& f = fibers[i];
        const size_t b = first + i / threads;
        f.stack = memory + i * kStack;
        f.thread = {unsigned(i % threads), 0, 0};
        f.block = {unsigned(b % grid[0]), unsigned(b / grid[0] % grid[1]), unsigned(b / grid[0] / grid[1])};
        f.rank = int(i / threads);
        f.warp = f.rank * warps_per_block + int(i % threads / 32);
      }
      run_cluster(backward);
    }
  }
  for (int i = 0; i < 3; i++) sigaction(numbers[i], &old_actions[i], nullptr);
  sigaltstack(&old_stack, nullptr);
  munmap(memory, stacks);
  return message.c_str();
}

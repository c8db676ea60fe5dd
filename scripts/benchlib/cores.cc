// How far apart two cores are: prints "ROUND_TRIP_NS FOREIGN_GB_S OWN_GB_S".
//
// A round trip of one cache line between two spinning threads, and how fast a core reads 256 KiB that the other one has
// just written, in order, beside what it has written itself. Arguments: the numbers of the two cores (Linux).
#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

constexpr int kRounds = 20000, kReads = 100, kBytes = 256 << 10, kLine = 64;

double now() {
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void pin(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  if (pthread_setaffinity_np(pthread_self(), sizeof set, &set) != 0) std::exit(2);
}

void wait_for(const std::atomic<int>& turn, int value) {
  while (turn.load(std::memory_order_acquire) != value) {
  }
}

void write(volatile char* data, int value) {
  for (int at = 0; at < kBytes; at += kLine) data[at] = static_cast<char>(value);
}

double read(const volatile char* data) {
  const double begin = now();
  for (int at = 0; at < kBytes; at += kLine) (void)data[at];
  return now() - begin;
}

}  // namespace

int main(int, char** cores) {
  alignas(128) static std::atomic<int> turn{-1};
  std::vector<char> data(kBytes);
  double foreign = 0, own = 0;
  // Odd values of `turn` are the other thread's turns.
  std::thread other([&] {
    pin(std::atoi(cores[2]));
    turn.store(0);
    for (int i = 0; i < kRounds; ++i) {
      wait_for(turn, 2 * i + 1);
      turn.store(2 * i + 2, std::memory_order_release);
    }
    for (int i = kRounds; i < kRounds + kReads; ++i) {
      wait_for(turn, 2 * i + 1);
      foreign += read(data.data());
      turn.store(2 * i + 2, std::memory_order_release);
    }
  });
  while (turn.load() != 0) std::this_thread::yield();  // a thread starts where its parent is pinned
  pin(std::atoi(cores[1]));
  const double begin = now();
  for (int i = 0; i < kRounds; ++i) {
    turn.store(2 * i + 1, std::memory_order_release);
    wait_for(turn, 2 * i + 2);
  }
  const double round_trip = (now() - begin) / kRounds;
  for (int i = kRounds; i < kRounds + kReads; ++i) {
    write(data.data(), i);
    turn.store(2 * i + 1, std::memory_order_release);
    wait_for(turn, 2 * i + 2);
  }
  other.join();
  for (int i = 0; i < kReads; ++i) {
    write(data.data(), i);
    own += read(data.data());
  }
  const double bytes = static_cast<double>(kBytes) * kReads;
  std::printf("%.0f %.1f %.1f\n", round_trip, bytes / foreign, bytes / own);
}

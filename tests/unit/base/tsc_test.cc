#include "base/tsc.h"

#include <gtest/gtest.h>
#include <x86intrin.h>

#include <chrono>
#include <thread>

namespace lamina {
namespace {

TEST(Tsc, TicksAsOftenAsItSays) {
  if (TscKhz() == 0) GTEST_SKIP() << "this host's TSC is not steady";
  EXPECT_EQ(TscKhz(), TscKhz());
  const auto begin = std::chrono::steady_clock::now();
  const uint64_t first = __rdtsc();
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  const uint64_t ticks = __rdtsc() - first;
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
  EXPECT_NEAR(static_cast<double>(ticks) / took.count(), TscKhz(), 0.01 * TscKhz());
}

}  // namespace
}  // namespace lamina

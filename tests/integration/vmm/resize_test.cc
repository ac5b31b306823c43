// Growing and shrinking a real VM; the guest's own numbers are what counts.
#include "vmm/resize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>

#include "base/units.h"
#include "tests/integration/vmm/machine.h"
#include "tests/testing/status_matchers.h"

namespace lamina::vmm {
namespace {

using lamina::testing::HasStatus;
using std::chrono::seconds;
using std::chrono::steady_clock;

class ResizeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Machine::Options options;
    options.max_vcpus = 4;
    options.max_hot_memory_bytes = kGiB;
    options.shared_dir = true;
    auto machine = Machine::Boot(options);
    ASSERT_OK(machine);
    machine_ = std::move(*machine);
    resizer_ = &machine_->vm().resizer();
  }
  agent::v1::GuestInfoResponse Guest() {
    const auto info = machine_->Call(guest::kGuestInfo, agent::v1::Empty());
    EXPECT_OK(info);
    return info.value_or(agent::v1::GuestInfoResponse());
  }
  uint32_t SetVcpus(uint32_t vcpus) {
    agent::v1::SetVcpusRequest request;
    request.set_vcpus(vcpus);
    const auto answer = machine_->Call(guest::kSetVcpus, request);
    EXPECT_OK(answer);
    return answer.ok() ? answer->online() : 0;
  }
  // Until the guest holds at most `bytes`; false after half a minute.
  bool WaitPlugged(uint64_t bytes) {
    const auto deadline = steady_clock::now() + seconds(30);
    do {
      const auto memory = resizer_->Memory();
      if (!memory.ok()) return false;
      if (memory->plugged <= bytes) return true;
      usleep(20'000);
    } while (steady_clock::now() < deadline);
    return false;
  }
  // The device has the memory a moment before the guest's kernel has put it online, or taken it out of its
  // count. What the guest said last, after half a minute at most.
  uint64_t MemTotal(uint64_t wanted) {
    const auto deadline = steady_clock::now() + seconds(30);
    uint64_t total = Guest().mem_total_bytes();
    while (total != wanted && steady_clock::now() < deadline) {
      usleep(20'000);
      total = Guest().mem_total_bytes();
    }
    return total;
  }

  std::unique_ptr<Machine> machine_;
  Resizer* resizer_ = nullptr;
};

TEST_F(ResizeTest, VcpusComeGoOfflineAndComeBackWithoutPlugging) {
  EXPECT_EQ(Guest().online_vcpus(), 1u);
  const auto begin = steady_clock::now();
  EXPECT_EQ(resizer_->PlugVcpus(3).value_or(0), 3u);
  EXPECT_EQ(SetVcpus(3), 3u);
  printf("two vCPUs: online after %.3f s\n",
         std::chrono::duration<double>(steady_clock::now() - begin).count());
  EXPECT_EQ(Guest().online_vcpus(), 3u);
  EXPECT_EQ(SetVcpus(1), 1u);
  EXPECT_EQ(Guest().online_vcpus(), 1u);
  EXPECT_EQ(resizer_->PlugVcpus(2).value_or(0), 3u) << "they are still plugged";
  EXPECT_EQ(SetVcpus(2), 2u);
  EXPECT_THAT(resizer_->PlugVcpus(5), HasStatus(absl::StatusCode::kOutOfRange, "places for 4"));
  // The operation on which QEMU 7.2 crashes once a vCPU has been removed.
  ASSERT_OK(resizer_->GrowMemory(128 * kMiB, seconds(30)));
  ASSERT_OK(resizer_->RequestMemory(0));
  EXPECT_TRUE(WaitPlugged(0));
  EXPECT_EQ(resizer_->PlugVcpus(4).value_or(0), 4u);
  EXPECT_EQ(SetVcpus(4), 4u);
  EXPECT_OK(machine_->vm().Alive());
}

TEST_F(ResizeTest, MemoryGrowsAndShrinksAndTheGuestSaysSo) {
  const uint64_t before = Guest().mem_total_bytes();
  auto begin = steady_clock::now();
  ASSERT_OK(resizer_->GrowMemory(256 * kMiB, seconds(30)));
  printf("256 MiB: plugged after %.3f s\n",
         std::chrono::duration<double>(steady_clock::now() - begin).count());
  EXPECT_EQ(resizer_->Memory()->plugged, 256 * kMiB);
  EXPECT_EQ(MemTotal(before + 256 * kMiB), before + 256 * kMiB);
  // A step inside a memory block, then more than the VM had at boot.
  ASSERT_OK(resizer_->GrowMemory(300 * kMiB, seconds(30)));
  EXPECT_EQ(MemTotal(before + 300 * kMiB), before + 300 * kMiB);
  ASSERT_OK(resizer_->GrowMemory(kGiB, seconds(60)));
  EXPECT_EQ(MemTotal(before + kGiB), before + kGiB);
  begin = steady_clock::now();
  ASSERT_OK(resizer_->RequestMemory(128 * kMiB));
  const double asked = std::chrono::duration<double>(steady_clock::now() - begin).count();
  EXPECT_TRUE(WaitPlugged(128 * kMiB)) << resizer_->Memory()->plugged;
  printf("back to 128 MiB: asked in %.4f s, given back after %.3f s\n", asked,
         std::chrono::duration<double>(steady_clock::now() - begin).count());
  EXPECT_EQ(MemTotal(before + 128 * kMiB), before + 128 * kMiB);
  ASSERT_OK(resizer_->GrowMemory(512 * kMiB, seconds(60)));
  EXPECT_EQ(MemTotal(before + 512 * kMiB), before + 512 * kMiB);
}

// What a pod pays for room that it may never use.
TEST(Resize, RoomToGrowCostsLittle) {
  const auto memory = [](uint32_t max_vcpus, uint64_t max_hot_memory) {
    Machine::Options options;
    options.max_vcpus = max_vcpus;
    options.max_hot_memory_bytes = max_hot_memory;
    const auto machine = Machine::Boot(options);
    EXPECT_OK(machine);
    if (!machine.ok()) return uint64_t{0};
    const auto info = (*machine)->Call(guest::kGuestInfo, agent::v1::Empty());
    EXPECT_OK(info);
    printf("%u vCPUs, %llu MiB to come: boot %.2f s, MemTotal %.1f MiB, MemAvailable %.1f MiB\n",
           max_vcpus == 0 ? 0 : max_vcpus - 1, static_cast<unsigned long long>(max_hot_memory >> 20),
           (*machine)->boot_seconds(), static_cast<double>(info->mem_total_bytes()) / kMiB,
           static_cast<double>(info->mem_available_bytes()) / kMiB);
    return info->mem_available_bytes();
  };
  const uint64_t lean = memory(0, 0), roomy = memory(8, 16 * kGiB);
  EXPECT_LT(lean - std::min(lean, roomy), 6 * kMiB);
}

}  // namespace
}  // namespace lamina::vmm

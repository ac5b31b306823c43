// Pods whose guest is hostile, a neighbour that must not notice, and what the host paid.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "absl/status/statusor.h"
#include "persist/sandbox_state.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {

// Of one process of the host.
struct HostCost {
  uint64_t peak_bytes = 0;  // of its resident memory, ever
  double cpu_seconds = 0;   // ever
};
absl::StatusOr<HostCost> CostOf(int64_t pid);

class HostileTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite();
  static void TearDownTestSuite();
  void SetUp() override;
  // No pod of the test is left, and the neighbour is well.
  void TearDown() override;

  // A pod with a container "main", whose guest is init `program` ("attacker", "liar") and Lamina's agent.
  absl::StatusOr<ScopedPod> RunHostile(const std::string& program, const PodSpec& spec = {});
  static persist::SandboxState State(const std::string& pod);

  // The container has the attacker begin.
  static absl::Status Begin(const std::string& container, const std::string& attack);
  // What the attacker found out. Waits for it.
  static absl::StatusOr<std::string> Result(const std::string& container, std::chrono::seconds limit);

  // For as long as it lasts the neighbour answers, within ten seconds each time.
  void WatchNeighbour(std::chrono::seconds time);
  // What the pod's shim and laminad took since `Remember`: bounded, whatever the guest did.
  void Remember(const std::string& pod);
  void ExpectBounded();

  static std::string neighbour_, neighbour_container_;

 private:
  persist::SandboxState state_;
  HostCost shim_, laminad_;
  std::chrono::steady_clock::time_point since_;
};

}  // namespace lamina::e2e

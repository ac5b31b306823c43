// What the tests share: one node for each test program, its images, and pods that end with their scope.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/status.h"
#include "tests/e2e/kit/images.h"
#include "tests/e2e/kit/node.h"
#include "tests/testing/status_matchers.h"

namespace lamina::e2e {

extern const char* const kTestHandler;  // "runc" or "lamina": one file for each test program
inline bool IsLamina() { return std::string(kTestHandler) == "lamina"; }
// The kit's own abilities are proven with runc; what only a VM can show is skipped there.
#define LAMINA_ONLY() \
  if (!::lamina::e2e::IsLamina()) GTEST_SKIP() << "runc has no VM"

// Started before the first test, stopped (and checked to leave nothing) after the last.
Node& TestNode();
inline CriClient& Cri() { return TestNode().cri(); }
const ImageKit& Images();
// Imports one of Images()' on first use.
absl::Status NeedImage(const std::string& name);

// Removes the pod at the end of the scope.
class ScopedPod {
 public:
  static absl::StatusOr<ScopedPod> Run(const PodSpec& spec);
  ScopedPod() = default;
  ScopedPod(ScopedPod&& other) noexcept : id_(std::exchange(other.id_, "")) {}
  ScopedPod& operator=(ScopedPod&& other) noexcept {
    std::swap(id_, other.id_);
    return *this;
  }
  ~ScopedPod();
  const std::string& id() const { return id_; }
  absl::Status Remove();

 private:
  std::string id_;
};

// A suite whose tests share one pod with one container "main" (busybox) that sleeps.
class SharedPodTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite();
  static void TearDownTestSuite();
  void SetUp() override;
  static const std::string& pod() { return pod_; }
  static const std::string& container() { return container_; }
  // Runs a shell command in the shared container; a non-zero exit code fails the test.
  std::string Shell(const std::string& command);
  // One container in the shared pod, run to its end; removed before the return.
  struct Finished {
    ContainerInfo info;
    std::string out, err;
  };
  absl::StatusOr<Finished> RunToEnd(ContainerSpec spec);

 private:
  static std::string pod_, container_;
};

ContainerSpec Sleeper(const std::string& name = "main");
ContainerSpec ShellContainer(const std::string& name, const std::string& script);
// stdout of `sh -c command` in the container; an error when it exits non-zero.
absl::StatusOr<std::string> ShellIn(const std::string& container, const std::string& command);
std::string Trim(std::string text);
std::vector<std::string> SplitLines(const std::string& text);
// Of a /metrics page: the value of the sample with exactly this name and labels; -1: none.
double Metric(const std::string& page, const std::string& sample);

}  // namespace lamina::e2e

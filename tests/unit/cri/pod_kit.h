// A pod whose laminad, hypervisor and guest are played: everything of the shim runs, but no VM.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/ttrpc/fake_caller.h"
#include "cri/sandbox.h"
#include "tests/testing/temp_dir.h"
#include "vmm/fake_hypervisor.h"

namespace lamina::cri {

// The agent of a guest: containers and execs that run until they are signalled. Thread-safe. Its handlers can
// be replaced one by one through `calls`.
class FakeGuest {
 public:
  FakeGuest();
  // A connection to it; CancelCalls of one reaches the calls of all.
  std::unique_ptr<ttrpc::Caller> Connect();

  // A process ends by itself.
  void End(const std::string& container, uint32_t status);
  // Signals are answered and nothing ends any more.
  void IgnoreSignals();
  // The connections that there are break; new ones can be made.
  void BreakConnections();
  int connections() const { return connections_; }
  std::set<std::string> containers() const;
  std::set<std::string> layers() const;
  std::set<std::string> volumes() const;

  const std::shared_ptr<ttrpc::FakeCaller> calls = std::make_shared<ttrpc::FakeCaller>();

 private:
  class Connection;
  struct ProcessEnd {
    std::optional<uint32_t> status;
  };
  absl::StatusOr<agent::v1::WaitProcessResponse> Wait(const std::string& process);
  std::shared_ptr<ProcessEnd> EndOf(const std::string& process) REQUIRES(mutex_);
  void EndLocked(const std::string& process, uint32_t status) REQUIRES(mutex_);

  mutable Mutex mutex_;
  CondVar changed_;
  std::set<std::string> containers_ GUARDED_BY(mutex_), layers_ GUARDED_BY(mutex_),
      volumes_ GUARDED_BY(mutex_);
  // By process; one that is made again under its name is another, whose end is still to come.
  std::map<std::string, std::shared_ptr<ProcessEnd>> ends_ GUARDED_BY(mutex_);
  bool ignore_signals_ GUARDED_BY(mutex_) = false;
  int cancels_ GUARDED_BY(mutex_) = 0;
  std::atomic<int> generation_{0}, connections_{0};
};

class PodTest : public ::testing::Test {
 protected:
  // Mounts are made in a namespace of the tests' own.
  static void SetUpTestSuite();
  void SetUp() override;
  void TearDown() override;

  // To the fakes.
  VmDoors Doors();
  // A new shim, its pod not started.
  void MakeSandbox();
  absl::Status Start(Deadline deadline = std::nullopt);
  containerd::CreateTaskRequest ContainerRequest(const std::string& id);
  absl::Status Create(const std::string& id, Deadline deadline = std::nullopt);
  // Created and started.
  void Run(const std::string& id);
  // The containers whose writable layers lie on the host.
  std::set<std::string> RootImages() const;
  // Nothing of the pod is left on the host, nor at laminad.
  void ExpectNothingLeft();
  // What the pod holds with these containers in it: in the guest, on the host, in the state.
  void ExpectContainers(const std::set<std::string>& ids);
  persist::SandboxState State();

  static bool own_namespace_;
  testing::TempDir dir_;
  Config config_;
  std::chrono::milliseconds kill_bound_{std::chrono::seconds(20)};
  vmm::FakeHypervisor hypervisor_;
  FakeGuest guest_;
  const std::shared_ptr<ttrpc::FakeCaller> laminad_ = std::make_shared<ttrpc::FakeCaller>();
  std::atomic<int> claims_{0}, releases_{0};
  std::vector<UniqueFd> stdio_ends_;
  EventPublisher events_{"", "k8s.io"};
  std::unique_ptr<Sandbox> sandbox_;
};

// The deadline so far from now.
inline Deadline In(std::chrono::milliseconds time) { return std::chrono::steady_clock::now() + time; }

}  // namespace lamina::cri

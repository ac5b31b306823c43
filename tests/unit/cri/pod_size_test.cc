// How large the VM is, while containers come, change and go: laminad, hypervisor and guest are played.
#include "cri/pod_size.h"

#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/ttrpc/fake_caller.h"
#include "cri/host_limits.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"
#include "vmm/fake_hypervisor.h"

namespace lamina::cri {
namespace {

using absl::StatusCode;
using testing::HasStatus;

constexpr ttrpc::Method<laminad::v1::RetargetRequest, laminad::v1::Empty> kRetarget{
    "lamina.laminad.v1.Laminad", "Retarget"};
constexpr uint64_t kMiB = 1 << 20;

class PodSizeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    config_.sizing.mode = "dynamic";
    config_.sizing.cgroup_fit = "off";
    config_.sizing.overhead_nano_cpus = 0;
    config_.sizing.overhead_memory_bytes = 96 * kMiB;
    config_.sizing.max_vcpus = 4;
    config_.sizing.max_memory_bytes = 4096 * kMiB;
    config_.sizing.hotplug_vcpus = 3;
    config_.sizing.hotplug_memory_bytes = 2048 * kMiB;
    agent_.Handle(guest::kSetVcpus,
                  [](const agent::v1::SetVcpusRequest& r) -> absl::StatusOr<agent::v1::SetVcpusResponse> {
                    agent::v1::SetVcpusResponse answer;
                    answer.set_online(r.vcpus());
                    return answer;
                  });
    laminad_caller_->Handle(
        kRetarget, [this](const laminad::v1::RetargetRequest& r) -> absl::StatusOr<laminad::v1::Empty> {
          if (r.bytes() > room_) return absl::ResourceExhaustedError("no room");
          return laminad::v1::Empty();
        });
    pod_.annotations["io.kubernetes.cri.sandbox-cpu-quota"] = "100000";
    pod_.annotations["io.kubernetes.cri.sandbox-cpu-period"] = "100000";
    pod_.annotations["io.kubernetes.cri.sandbox-memory"] = std::to_string(128 * kMiB);
  }

  // Plans the pod and starts a VM of that size.
  void Begin(PodSize& size) {
    const auto first = size.PlanFirst(pod_);
    ASSERT_OK(first);
    EXPECT_EQ(first->plan.vcpus, 1U);
    EXPECT_EQ(first->plan.memory_bytes(), 224 * kMiB);
    persist::SandboxState state;
    state.sandbox_id = "pod";
    book_.Restore(state);
    ASSERT_OK(book_.Change([&](persist::SandboxState& now) { FillIn(*first, now); }));
    vmm::VmSpec spec;
    spec.name = "pod";
    spec.vcpus = first->plan.vcpus;
    spec.max_vcpus = first->max_vcpus;
    spec.memory_bytes = first->plan.memory_bytes();
    spec.max_hot_memory_bytes = first->max_hot_memory_bytes;
    auto vm = hypervisor_.Start(spec, {});
    ASSERT_OK(vm);
    vm_ = std::move(*vm);
    size.Attach(*vm_, agent_, vmm::Accel::kKvm);
  }
  static BundleSpec Container(const std::string& name, int64_t quota, uint64_t memory_bytes) {
    BundleSpec spec;
    spec.annotations["io.kubernetes.cri.container-name"] = name;
    spec.limits.name = "container " + name;
    spec.limits.cpu.quota = quota;
    spec.limits.cpu.period = 100'000;
    spec.limits.memory_bytes = static_cast<int64_t>(memory_bytes);
    return spec;
  }
  static std::string Resources(int64_t quota, uint64_t memory_bytes) {
    return fmt::format(R"({{"cpu": {{"quota": {}, "period": 100000}}, "memory": {{"limit": {}}}}})", quota,
                       memory_bytes);
  }
  uint32_t Vcpus() {
    return book_.Look([](const persist::SandboxState& state) { return state.vcpus; });
  }
  uint64_t Memory() {
    return book_.Look([](const persist::SandboxState& state) { return state.memory_bytes; });
  }

  testing::TempDir dir_;
  Config config_;
  BundleSpec pod_;
  std::atomic<uint64_t> room_{UINT64_MAX};
  vmm::FakeHypervisor hypervisor_;
  ttrpc::FakeCaller agent_;
  const std::shared_ptr<ttrpc::FakeCaller> laminad_caller_ = std::make_shared<ttrpc::FakeCaller>();
  LaminadClient laminad_{laminad_caller_};
  StateBook book_{FileSystem::Real(), dir_ / "state"};
  std::unique_ptr<vmm::Vm> vm_;
};

TEST_F(PodSizeTest, WithoutACgroupItIsSaidThatNothingEnforcesTheClaim) {
  const auto reasons = [&]() -> std::string {
    PodSize size(config_, book_, laminad_);
    const auto first = size.PlanFirst(pod_);
    EXPECT_OK(first);
    return first.ok() ? fmt::format("{}", fmt::join(first->plan.reasons, "\n")) : "";
  };
  EXPECT_NE(
      reasons().find("no cgroup was given for the sandbox: on the host nothing keeps its VM from taking "
                     "the 2GiB"),
      std::string::npos)
      << reasons();
  pod_.cgroups_path = "/kubepods/pod1/sandbox";
  EXPECT_EQ(reasons().find("no cgroup"), std::string::npos);
  pod_.cgroups_path.clear();
  config_.sizing.mode = "static";
  EXPECT_EQ(reasons().find("no cgroup"), std::string::npos);
}

TEST_F(PodSizeTest, GrowsForAContainerThatTheSumDoesNotKnowAndGivesBack) {
  PodSize size(config_, book_, laminad_);
  Begin(size);
  ASSERT_OK(size.Admit("c1", Container("web", 100'000, 128 * kMiB), {}));
  EXPECT_EQ(Vcpus(), 1U);
  EXPECT_EQ(Memory(), 224 * kMiB);
  ASSERT_OK(size.Admit("c2", Container("debug", 200'000, 256 * kMiB), {}));
  EXPECT_EQ(Vcpus(), 3U);
  EXPECT_EQ(Memory(), (96 + 128 + 256) * kMiB);
  size.Dismiss("c2");
  EXPECT_EQ(Vcpus(), 1U);
  EXPECT_EQ(Memory(), 224 * kMiB);
}

TEST_F(PodSizeTest, ARefusalOfLaminadChangesNothing) {
  PodSize size(config_, book_, laminad_);
  Begin(size);
  ASSERT_OK(size.Admit("c1", Container("web", 100'000, 128 * kMiB), {}));
  const persist::SandboxState before = book_.Get();
  room_ = 300 * kMiB;
  EXPECT_THAT(size.Admit("c2", Container("debug", 200'000, 512 * kMiB), {}),
              HasStatus(StatusCode::kResourceExhausted, "no room"));
  EXPECT_THAT(size.Update("c1", Resources(100'000, 1024 * kMiB)),
              HasStatus(StatusCode::kResourceExhausted, "no room"));
  EXPECT_EQ(agent_.Count("UpdateContainer"), 0);
  EXPECT_EQ(Vcpus(), before.vcpus);
  EXPECT_EQ(Memory(), before.memory_bytes);
  EXPECT_EQ(hypervisor_.Count("PlugVcpus"), 0);
}

TEST_F(PodSizeTest, MoreThanTheVmWasStartedForIsOutOfRange) {
  PodSize size(config_, book_, laminad_);
  Begin(size);
  EXPECT_THAT(size.Admit("c1", Container("web", 800'000, 128 * kMiB), {}),
              HasStatus(StatusCode::kOutOfRange, "vCPUs"));
}

TEST_F(PodSizeTest, WhatTheCgroupLetsThePodHaveFollowsItsClaim) {
  const std::string leaf = dir_ / "leaf", file = leaf + "/memory.max";
  std::filesystem::create_directory(leaf);
  std::ofstream(file).flush();
  const auto limit = [&] { return FileSystem::Real().Read(file, 64).value_or("?"); };
  const auto claim = [&] {
    return book_.Look([](const persist::SandboxState& state) { return state.claim_bytes; });
  };
  const auto wanted = [&] { return std::to_string(MemoryLimit(vmm::Accel::kKvm, claim())); };
  PodSize size(config_, book_, laminad_);
  Begin(size);
  ASSERT_OK(book_.Change([&](persist::SandboxState& state) { state.cgroup_dirs = {leaf}; }));
  ASSERT_OK(size.Admit("c1", Container("web", 100'000, 128 * kMiB), {}));
  const uint64_t first = claim();

  // It is raised before the guest gets the memory.
  hypervisor_.BeforeEach([&](const std::string& call) {
    if (call.rfind("GrowMemory", 0) == 0) {
      EXPECT_GT(claim(), first);
      EXPECT_EQ(limit(), wanted());
    }
    return absl::OkStatus();
  });
  ASSERT_OK(size.Admit("c2", Container("debug", 100'000, 256 * kMiB), {}));
  hypervisor_.BeforeEach(nullptr);
  EXPECT_GT(hypervisor_.Count("GrowMemory"), 0);
  size.Dismiss("c2");
  while (claim() != first) std::this_thread::yield();
  EXPECT_EQ(limit(), wanted());

  // What cannot be enforced is not granted, and laminad has its memory back.
  std::filesystem::remove(file);
  std::filesystem::create_directory(file);
  uint64_t last = 0;
  laminad_caller_->Handle(kRetarget,
                          [&](const laminad::v1::RetargetRequest& r) -> absl::StatusOr<laminad::v1::Empty> {
                            last = r.bytes();
                            return laminad::v1::Empty();
                          });
  EXPECT_THAT(size.Admit("c3", Container("more", 100'000, 256 * kMiB), {}),
              HasStatus(StatusCode::kInternal, "memory.max"));
  EXPECT_EQ(claim(), first);
  EXPECT_EQ(last, first);
  EXPECT_EQ(Memory(), 224 * kMiB);
}

TEST_F(PodSizeTest, AnotherGoesOnWhereItStopped) {
  {
    PodSize first(config_, book_, laminad_);
    Begin(first);
    ASSERT_OK(first.Admit("c1", Container("web", 100'000, 128 * kMiB), {}));
    ASSERT_OK(first.Admit("c2", Container("debug", 100'000, 64 * kMiB), {}));
  }
  EXPECT_EQ(Vcpus(), 2U);
  PodSize next(config_, book_, laminad_);
  ASSERT_OK(next.Restore(pod_));
  next.Attach(*vm_, agent_, vmm::Accel::kKvm);
  // It knows what both have: one grows, the other goes.
  ASSERT_OK(next.Update("c1", Resources(200'000, 256 * kMiB)));
  EXPECT_EQ(agent_.Count("UpdateContainer"), 1);
  EXPECT_EQ(Vcpus(), 3U);
  EXPECT_EQ(Memory(), (96 + 256 + 64) * kMiB);
  next.Dismiss("c2");
  EXPECT_EQ(Vcpus(), 2U);
  EXPECT_EQ(Memory(), (96 + 256) * kMiB);
}

TEST_F(PodSizeTest, OnceDetachedNothingIsAskedOfTheVm) {
  PodSize size(config_, book_, laminad_);
  Begin(size);
  ASSERT_OK(size.Admit("c1", Container("web", 200'000, 256 * kMiB), {}));
  size.Detach();
  const size_t calls = hypervisor_.calls().size();
  size.Dismiss("c1");
  EXPECT_THAT(size.Admit("c2", Container("db", 0, 0), {}),
              HasStatus(StatusCode::kFailedPrecondition, "does not run"));
  EXPECT_EQ(hypervisor_.calls().size(), calls);
}

}  // namespace
}  // namespace lamina::cri

#include "vmm/fake_hypervisor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/eventfd.h>

#include <thread>

#include "base/process.h"
#include "base/units.h"
#include "tests/testing/status_matchers.h"
#include "vmm/qemu_command.h"

namespace lamina::vmm {
namespace {

using lamina::testing::HasStatus;
using std::chrono::seconds;
using ::testing::ElementsAre;

class FakeHypervisorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    spec_.name = "pod-1";
    spec_.max_vcpus = 4;
    spec_.boot_arenas = {{"boot", "/arena", kMiB}};
  }
  std::unique_ptr<Vm> Start() {
    auto vm = hypervisor_.Start(spec_, {});
    EXPECT_OK(vm);
    return *std::move(vm);
  }

  FakeHypervisor hypervisor_;
  VmSpec spec_;
};

TEST_F(FakeHypervisorTest, CallsAreWrittenDownInTheirOrder) {
  Config config;
  config.hypervisor.accel = "kvm";
  EXPECT_EQ(*hypervisor_.ChooseAccel(config), Accel::kKvm);
  VirtiofsdOptions volumes;
  volumes.shared_dir = "/shared";
  ASSERT_OK(hypervisor_.StartVirtiofsd(volumes));
  const auto vm = Start();
  EXPECT_EQ(*vm->AttachArena({"boot", "/arena", kMiB}, kMiB), "06.0");
  EXPECT_EQ(*vm->AttachArena({"a", "/a", kMiB}, kMiB), HotplugPciPath(0));
  EXPECT_EQ(*vm->AttachArena({"a", "/a", kMiB}, kMiB), HotplugPciPath(0));
  const uint64_t disk = *vm->scsi().Reserve("/image");
  EXPECT_EQ(vm->scsi().Map(disk)->pci_path, HotplugPciPath(1));
  EXPECT_OK(vm->scsi().Unmap(disk));
  EXPECT_EQ(vm->free_ports(), spec_.hotplug_ports - 2);
  EXPECT_EQ(*vm->resizer().PlugVcpus(2), 2u);
  EXPECT_THAT(vm->resizer().PlugVcpus(5), HasStatus(absl::StatusCode::kOutOfRange, "5 vCPUs"));
  EXPECT_OK(vm->Kill(seconds(5)));
  EXPECT_THAT(hypervisor_.calls(), ElementsAre("ChooseAccel", "StartVirtiofsd /shared", "Start pod-1",
                                               "AttachArena a", "AddController 0", "AddDisk 0.0 /image",
                                               "RemoveDisk 0.0", "PlugVcpus 2", "PlugVcpus 5", "Kill"));
  EXPECT_EQ(hypervisor_.Count("AttachArena"), 1);
}

TEST_F(FakeHypervisorTest, AFaultTakesTheCallWithItsNumberAndNoOther) {
  hypervisor_.FailAt(0, absl::InternalError("no QEMU"));
  EXPECT_THAT(hypervisor_.Start(spec_, {}), HasStatus(absl::StatusCode::kInternal, "no QEMU"));
  EXPECT_EQ(hypervisor_.processes(), 0u);
  const auto vm = Start();
  hypervisor_.FailAt(3);
  const uint64_t disk = *vm->scsi().Reserve("/image");
  EXPECT_THAT(vm->scsi().Map(disk), HasStatus(absl::StatusCode::kUnavailable, "injected"));
  EXPECT_OK(vm->scsi().Map(disk)) << "ScsiDisks cleans up what may be left, and attaches";
  hypervisor_.FailAt(static_cast<int>(hypervisor_.calls().size()));
  EXPECT_THAT(vm->Kill(seconds(5)), HasStatus(absl::StatusCode::kUnavailable, "injected"));
  EXPECT_OK(vm->Alive());
  hypervisor_.BeforeEach([](const std::string& call) { return absl::AbortedError(call); });
  EXPECT_THAT(vm->resizer().Memory(), HasStatus(absl::StatusCode::kAborted, "Memory"));
}

TEST_F(FakeHypervisorTest, ItsVmIsAProcessThatCanBeWatchedAndKilled) {
  StartOptions options;
  pid_t told = 0;
  options.on_started = [&](pid_t pid, uint64_t start_time) {
    told = pid;
    return ProcessAlive(pid, start_time) ? absl::OkStatus() : absl::InternalError("not alive");
  };
  const auto started = hypervisor_.Start(spec_, options);
  ASSERT_OK(started);
  EXPECT_EQ((*started)->pid(), told);
  std::thread watcher([&] { EXPECT_TRUE((*started)->WaitExit(-1)); });
  hypervisor_.EndVm();
  watcher.join();
  EXPECT_THAT((*started)->Alive(), HasStatus(absl::StatusCode::kUnavailable, "has ended"));
  options.on_started = [](pid_t, uint64_t) { return absl::InternalError("disk full"); };
  EXPECT_THAT(hypervisor_.Start(spec_, options), HasStatus(absl::StatusCode::kInternal, "disk full"));
  EXPECT_EQ(hypervisor_.processes(), 0u);
  const auto vm = Start();
  hypervisor_.KillTimesOut(1);
  EXPECT_THAT(vm->Kill(seconds(5)), HasStatus(absl::StatusCode::kDeadlineExceeded, "does not die"));
  EXPECT_EQ(hypervisor_.processes(), 1u);
  EXPECT_OK(vm->Kill(seconds(5)));
  EXPECT_OK(vm->Kill(seconds(5)));
  EXPECT_EQ(hypervisor_.processes(), 0u);
}

TEST_F(FakeHypervisorTest, AStartThatHangsEndsWhenItIsGivenUp) {
  StartOptions options;
  const UniqueFd cancel(eventfd(0, EFD_CLOEXEC));
  options.cancel_fd = cancel.get();
  options.on_started = [&](pid_t, uint64_t) {
    eventfd_write(cancel.get(), 1);
    return absl::OkStatus();
  };
  hypervisor_.StartHangs();
  EXPECT_THAT(hypervisor_.Start(spec_, options), HasStatus(absl::StatusCode::kCancelled, "given up"));
  options.cancel_fd = -1;
  options.timeout = std::chrono::milliseconds(1);
  hypervisor_.StartHangs();
  EXPECT_THAT(hypervisor_.Start(spec_, options), HasStatus(absl::StatusCode::kDeadlineExceeded, "in time"));
  EXPECT_EQ(hypervisor_.processes(), 0u);
}

TEST_F(FakeHypervisorTest, AVirtiofsdThatEndsIsSeenByTheVmsWatcher) {
  const auto volumes = hypervisor_.StartVirtiofsd({});
  ASSERT_OK(volumes);
  const auto vm = Start();
  hypervisor_.EndVirtiofsd();
  EXPECT_FALSE(vm->WaitExit(volumes->pidfd.get()));
  EXPECT_OK(vm->Alive());
}

TEST_F(FakeHypervisorTest, TheGuestTakesMemoryAsFarAsTheTestLetsIt) {
  const auto vm = Start();
  EXPECT_OK(vm->resizer().GrowMemory(8 * kMiB, seconds(1)));
  EXPECT_EQ(vm->resizer().Memory()->plugged, 8 * kMiB);
  hypervisor_.GuestHoldsAtMost(12 * kMiB);
  EXPECT_THAT(vm->resizer().GrowMemory(16 * kMiB, seconds(1)),
              HasStatus(absl::StatusCode::kDeadlineExceeded, "has taken"));
  EXPECT_EQ(vm->resizer().Memory()->counted(), 16 * kMiB);
  EXPECT_OK(vm->resizer().RequestMemory(4 * kMiB));
  EXPECT_EQ(vm->resizer().Memory()->counted(), 4 * kMiB);
}

}  // namespace
}  // namespace lamina::vmm

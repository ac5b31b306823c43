// In-place resizes, containers that come late: VM, guest and claim follow, and the guest's own numbers agree.
#include <sys/mount.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/e2e/kit/leftovers.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

using nlohmann::json;
using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::HasSubstr;

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kHostSide = 96 * kMiB;  // hypervisor.vmm_overhead_memory's default
constexpr uint64_t kBoot = (128 + 96) * kMiB;

Resources Of(int64_t milli, int64_t mib) {
  Resources resources;
  resources.cpu_quota = milli * 100;
  resources.cpu_period = 100'000;
  resources.cpu_shares = milli * 1024 / 1000;
  resources.memory = mib * static_cast<int64_t>(kMiB);
  return resources;
}

uint64_t Claimed(const std::string& pod) {
  const auto body = TestNode().Rest("/v1/claims");
  const json claims = json::parse(body.value_or("null"), nullptr, false);
  for (const json& claim : claims.value("claims", json::array())) {
    if (claim.value("id", "") == pod) return claim.value("target_bytes", uint64_t{0});
  }
  return 0;
}

// What /v1/sandboxes, which `lamina explain` reads too, and the metrics say: "vcpus, memory, limits" of both.
std::string Shown(const std::string& pod) {
  const auto body = TestNode().Rest("/v1/sandboxes");
  const json list = json::parse(body.value_or("null"), nullptr, false);
  std::string shown;
  for (const json& sandbox : list.value("sandboxes", json::array())) {
    if (sandbox.value("id", "") != pod) continue;
    shown = fmt::format("{} {} {} {}", sandbox.value("vcpus", 0), sandbox.value("memory_bytes", uint64_t{0}),
                        sandbox.value("limit_cpus", 0.0), sandbox.value("limit_memory_bytes", uint64_t{0}));
  }
  std::istringstream metrics(TestNode().Rest("/metrics").value_or(""));
  for (std::string line; std::getline(metrics, line);) {
    if (line.rfind("lamina_sandbox_vcpus{", 0) == 0 && line.find(pod) != std::string::npos &&
        line.find("kind=\"configured\"") != std::string::npos)
      shown += ", metrics " + line.substr(line.rfind(' ') + 1);
  }
  return shown;
}
std::string Sized(int vcpus, uint64_t memory, double cpus, uint64_t mib) {
  return fmt::format("{} {} {} {}, metrics {}", vcpus, memory, cpus, mib * kMiB, vcpus);
}

// Until `read` answers `wanted`; what it answered last after a minute.
template <typename F, typename T>
T Eventually(F&& read, const T& wanted) {
  const auto deadline = steady_clock::now() + seconds(60);
  T last = read();
  while (!(last == wanted) && steady_clock::now() < deadline) {
    usleep(50'000);
    last = read();
  }
  return last;
}

class ResizeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    LAMINA_ONLY();
    // The machine of the test may have fewer.
    ASSERT_OK(TestNode().Reconfigure({{"sizing.max_cpu", "6"}}));
    PodSpec spec;
    spec.name = "resized";
    spec.resources = Of(500, 128);
    ASSERT_OK_AND_ASSIGN(pod_, ScopedPod::Run(spec));
    volume_ = TestNode().volumes_dir() + "/resized";
    std::filesystem::create_directories(volume_);
    ContainerSpec main = Sleeper();
    main.resources = Of(500, 128);
    main.mounts = {{"/volume", volume_, false}};
    ASSERT_OK_AND_ASSIGN(main_, Cri().RunContainer(pod_.id(), main));
    total_ = MemTotal();
    ASSERT_GT(total_, kBoot / 2);
    ASSERT_EQ(Nproc(), "1");
    ASSERT_EQ(Claimed(pod_.id()), kBoot + kHostSide);
  }
  void TearDown() override {
    if (!IsLamina()) return;
    EXPECT_OK(TestNode().Reconfigure({{"sizing.max_cpu", "0"}}));
  }

  std::string Nproc() { return Trim(ShellIn(main_, "nproc").value_or("?")); }
  uint64_t MemTotal() {
    return 1024 *
           std::stoull("0" + Trim(ShellIn(main_, "awk '/MemTotal/{print $2}' /proc/meminfo").value_or("")));
  }
  std::string Cgroup(const std::string& file) {
    return Trim(ShellIn(main_, "cat /sys/fs/cgroup/" + file).value_or("?"));
  }

  ScopedPod pod_;
  std::string main_, volume_;
  uint64_t total_ = 0;
};

TEST_F(ResizeTest, UpAndDownInPlace) {
  for (int repeated = 0; repeated < 2; ++repeated) {
    ASSERT_OK(Cri().UpdateResources(main_, Of(2000, 384)));
    EXPECT_EQ(Eventually([&] { return Nproc(); }, std::string("3")), "3");  // 0.5 + 2, rounded up
    EXPECT_EQ(Eventually([&] { return MemTotal(); }, total_ + 256 * kMiB), total_ + 256 * kMiB);
    EXPECT_EQ(Cgroup("memory.max"), std::to_string(384 * kMiB));
    EXPECT_EQ(Cgroup("cpu.max"), "200000 100000");
    EXPECT_EQ(Claimed(pod_.id()), kBoot + 256 * kMiB + kHostSide);
    const std::string sized = Sized(3, kBoot + 256 * kMiB, 2, 384);
    EXPECT_EQ(Eventually([&] { return Shown(pod_.id()); }, sized), sized);
  }
  // A process may hold more than the whole VM had, and the shared directory takes it from there.
  ASSERT_OK(ShellIn(main_, "dd if=/dev/zero of=/volume/big bs=280M count=1 2>/dev/null"));
  EXPECT_EQ(std::filesystem::file_size(volume_ + "/big"), 280 * kMiB);

  const auto begin = steady_clock::now();
  ASSERT_OK(Cri().UpdateResources(main_, Of(250, 128)));
  printf("shrinking answered after %.3f s\n",
         std::chrono::duration<double>(steady_clock::now() - begin).count());
  EXPECT_EQ(Eventually([&] { return Nproc(); }, std::string("1")), "1");
  EXPECT_EQ(Eventually([&] { return MemTotal(); }, total_), total_);
  EXPECT_EQ(Eventually([&] { return Claimed(pod_.id()); }, kBoot + kHostSide), kBoot + kHostSide);
  printf("given back after %.3f s\n", std::chrono::duration<double>(steady_clock::now() - begin).count());
  EXPECT_EQ(Cgroup("memory.max"), std::to_string(128 * kMiB));
  const std::string small = Sized(1, kBoot, 0.25, 128);
  EXPECT_EQ(Eventually([&] { return Shown(pod_.id()); }, small), small);

  // Once more: the vCPUs that are offline come back.
  ASSERT_OK(Cri().UpdateResources(main_, Of(1500, 192)));
  EXPECT_EQ(Eventually([&] { return Nproc(); }, std::string("2")), "2");
  EXPECT_EQ(Eventually([&] { return MemTotal(); }, total_ + 64 * kMiB), total_ + 64 * kMiB);
}

TEST_F(ResizeTest, AContainerThatTheSumDoesNotKnow) {
  ContainerSpec late = Sleeper("late");
  late.resources = Of(1500, 128);
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod_.id(), late));
  EXPECT_EQ(Eventually([&] { return Nproc(); }, std::string("3")), "3");  // 0.5 + 0.5 + 1.5
  EXPECT_EQ(Eventually([&] { return MemTotal(); }, total_ + 128 * kMiB), total_ + 128 * kMiB);
  EXPECT_EQ(Claimed(pod_.id()), kBoot + 128 * kMiB + kHostSide);
  ASSERT_OK(Cri().StopContainer(id, 0));
  ASSERT_OK(Cri().RemoveContainer(id));
  EXPECT_EQ(Eventually([&] { return Nproc(); }, std::string("1")), "1");
  EXPECT_EQ(Eventually([&] { return MemTotal(); }, total_), total_);
  EXPECT_EQ(Eventually([&] { return Claimed(pod_.id()); }, kBoot + kHostSide), kBoot + kHostSide);
}

// It is the guest's memory, charged to the containers within their limits, as on one kernel.
TEST_F(ResizeTest, AMemoryBackedVolumeAddsNothingToTheClaim) {
  const std::string host = TestNode().volumes_dir() + "/pods/uid/volumes/kubernetes.io~empty-dir/cache";
  std::filesystem::create_directories(host);
  ASSERT_EQ(mount("none", host.c_str(), "tmpfs", 0, "size=48m"), 0);
  std::vector<std::string> ids;
  for (const char* name : {"writer", "reader"}) {
    ContainerSpec late = Sleeper(name);
    late.resources = Of(100, 64);
    late.mounts = {{"/cache", host, false}};
    ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod_.id(), late));
    ids.push_back(id);
    const uint64_t claimed = kBoot + ids.size() * 64 * kMiB + kHostSide;
    EXPECT_EQ(Eventually([&] { return Claimed(pod_.id()); }, claimed), claimed);
  }
  ASSERT_OK(ShellIn(ids[0], "dd if=/dev/zero of=/cache/file bs=1M count=16 2>/dev/null"));
  EXPECT_EQ(Trim(ShellIn(ids[1], "stat -c %s /cache/file").value_or("?")), std::to_string(16 * kMiB));
  const std::string charged = "awk '$1 == \"shmem\" {print int($2 / 1048576)}' /sys/fs/cgroup/memory.stat";
  EXPECT_EQ(Trim(ShellIn(ids[0], charged).value_or("?")), "16");
  EXPECT_EQ(Trim(ShellIn(ids[1], charged).value_or("?")), "0");
  EXPECT_TRUE(std::filesystem::is_empty(host)) << "nothing of it lies on the host";
  for (const std::string& id : ids) {
    ASSERT_OK(Cri().StopContainer(id, 0));
    ASSERT_OK(Cri().RemoveContainer(id));
  }
  ASSERT_OK(pod_.Remove());
  EXPECT_EQ(umount(host.c_str()), 0);
}

TEST_F(ResizeTest, WhatTheNodeCannotGiveIsRefusedAndNothingChanges) {
  const auto refused = Cri().UpdateResources(main_, Of(2000, 8192));  // memory.capacity is 4 GiB
  EXPECT_THAT(refused.ToString(), ::testing::AllOf(HasSubstr("8384MiB"), HasSubstr("available")));
  EXPECT_EQ(Nproc(), "1");
  EXPECT_EQ(MemTotal(), total_);
  EXPECT_EQ(Cgroup("memory.max"), std::to_string(128 * kMiB));
  EXPECT_EQ(Cgroup("cpu.max"), "50000 100000");
  EXPECT_EQ(Claimed(pod_.id()), kBoot + kHostSide);
  const auto beyond = Cri().UpdateResources(main_, Of(7000, 128));
  EXPECT_THAT(beyond.ToString(),
              HasSubstr("needs 8 vCPUs (limit 7 + overhead 0.5 = 7.5), more than the maximum of 6"));
  ContainerSpec late = Sleeper("late");
  late.resources = Of(500, 8192);
  const auto container = Cri().RunContainer(pod_.id(), late);
  EXPECT_THAT(container.status().ToString(), HasSubstr("available"));
  EXPECT_EQ(Claimed(pod_.id()), kBoot + kHostSide);
  // While laminad is away a pod can't grow, but shrink.
  ASSERT_OK(TestNode().StopLaminad());
  EXPECT_NOT_OK(Cri().UpdateResources(main_, Of(500, 256)));
  EXPECT_OK(Cri().UpdateResources(main_, Of(250, 64)));
  ASSERT_OK(TestNode().StartLaminad());
}

TEST_F(ResizeTest, AStaticVmKeepsItsSize) {
  ASSERT_OK(pod_.Remove());
  ASSERT_OK(TestNode().Reconfigure({{"sizing.mode", "\"static\""}}));
  PodSpec spec;
  spec.name = "static";
  spec.resources = Of(500, 128);
  ASSERT_OK_AND_ASSIGN(pod_, ScopedPod::Run(spec));
  ASSERT_OK(TestNode().Reconfigure({{"sizing.mode", "\"dynamic\""}}));
  ContainerSpec main = Sleeper();
  main.resources = Of(500, 128);
  ASSERT_OK_AND_ASSIGN(main_, Cri().RunContainer(pod_.id(), main));
  total_ = MemTotal();
  ASSERT_OK(Cri().UpdateResources(main_, Of(2000, 384)));
  EXPECT_EQ(Cgroup("memory.max"), std::to_string(384 * kMiB));
  EXPECT_EQ(Nproc(), "1");
  EXPECT_EQ(MemTotal(), total_);
  EXPECT_EQ(Claimed(pod_.id()), kBoot + kHostSide);
}

}  // namespace
}  // namespace lamina::e2e

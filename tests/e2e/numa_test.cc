// Pods whose memory is bound to the host's NUMA nodes, as the kernel sees their QEMUs.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/e2e/kit/leftovers.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::SizeIs;

constexpr char kAnnotation[] = "lamina.io/numa-nodes";

json Listed(const std::string& path, const std::string& list, const std::string& id) {
  const auto body = TestNode().Rest(path);
  const json answer = json::parse(body.value_or("null"), nullptr, false);
  for (const json& one : answer.value(list, json::array())) {
    if (one.value("id", "") == id) return one;
  }
  return json::object();
}

// The lines of QEMU's numa_maps that name `file`: "ADDRESS POLICY file=… N0=PAGES …".
std::vector<std::string> NumaMaps(const std::string& pod, const std::string& file) {
  const int64_t pid = Listed("/v1/sandboxes", "sandboxes", pod).value("vmm_pid", int64_t{0});
  std::ifstream maps(fmt::format("/proc/{}/numa_maps", pid));
  std::vector<std::string> lines;
  for (std::string line; std::getline(maps, line);) {
    if (line.find(file) != std::string::npos) lines.push_back(line);
  }
  return lines;
}

class NumaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    LAMINA_ONLY();
    if (!std::filesystem::exists("/sys/devices/system/node/node0/meminfo"))
      GTEST_SKIP() << "this kernel shows no NUMA nodes";
    Reconfigure({});
    spec_.name = "bound";
    spec_.annotations = {{kAnnotation, "0"}};
  }
  void TearDown() override {
    if (!IsLamina()) return;
    EXPECT_OK(TestNode().Reconfigure({{"sizing.allowed_annotations", "[]"},
                                      {"sizing.mode", "\"dynamic\""},
                                      {"hypervisor.qemu", "\"qemu-system-x86_64\""}}));
  }
  void Reconfigure(std::map<std::string, std::string> changes) {
    changes["sizing.allowed_annotations"] = fmt::format("[\"{}\"]", kAnnotation);
    ASSERT_OK(TestNode().Reconfigure(changes));
  }
  PodSpec spec_;
};

TEST_F(NumaTest, AllOfTheGuestsMemoryIsBound) {
  constexpr int64_t kMiB = 1 << 20;
  spec_.resources.memory = 128 * kMiB;
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec_));
  const std::vector<std::string> maps = NumaMaps(pod.id(), "memfd:memory-backend-memfd");
  EXPECT_THAT(maps, AllOf(SizeIs(2), Each(HasSubstr(" bind:0 "))));  // the boot's, and room to grow
  EXPECT_EQ(Listed("/v1/claims", "claims", pod.id())["numa_nodes"], json({0}));
  EXPECT_THAT(Listed("/v1/sandboxes", "sandboxes", pod.id())["reasons"].dump(),
              HasSubstr("all of it from NUMA node 0"));

  // Memory that comes later lies there as well, and counts there.
  ContainerSpec main = Sleeper();
  main.resources = spec_.resources;
  ASSERT_OK_AND_ASSIGN(const std::string id, Cri().RunContainer(pod.id(), main));
  const auto claimed = [&] {
    return Listed("/v1/claims", "claims", pod.id()).value("target_bytes", int64_t{0});
  };
  const int64_t before = claimed();
  main.resources.memory = 256 * kMiB;
  ASSERT_OK(Cri().UpdateResources(id, main.resources));
  EXPECT_EQ(claimed(), before + 128 * kMiB);
  ASSERT_OK(ShellIn(id, "dd if=/dev/zero of=/dev/shm/file bs=1M count=48 2>/dev/null"));
  size_t with_pages = 0;
  for (const std::string& line : NumaMaps(pod.id(), "memfd:memory-backend-memfd"))
    with_pages += line.find(" bind:0 ") != std::string::npos && line.find(" N0=") != std::string::npos;
  EXPECT_EQ(with_pages, 2u);
  // What many VMs share is not one VM's to place.
  EXPECT_THAT(NumaMaps(pod.id(), "/layers/"), AllOf(Not(IsEmpty()), Each(HasSubstr(" default "))));
}

TEST_F(NumaTest, AStaticVmIsBound) {
  Reconfigure({{"sizing.mode", "\"static\""}});
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec_));
  EXPECT_THAT(NumaMaps(pod.id(), "memfd:memory-backend-memfd"),
              AllOf(SizeIs(1), Each(HasSubstr(" bind:0 "))));
}

TEST_F(NumaTest, WithoutTheAnnotationNothingIs) {
  spec_.annotations.clear();
  ASSERT_OK_AND_ASSIGN(const ScopedPod pod, ScopedPod::Run(spec_));
  EXPECT_THAT(NumaMaps(pod.id(), "memfd:memory-backend-memfd"),
              AllOf(SizeIs(2), Each(HasSubstr(" default "))));
}

// Before its QEMU would start: with one that does not exist the answer is the same.
TEST_F(NumaTest, WhatTheNodeHasNotIsRefused) {
  Reconfigure({{"hypervisor.qemu", "\"/nonexistent/qemu\""}});
  for (const auto& [value, why] : std::map<std::string, std::string>{{"63", "there is no NUMA node 63"},
                                                                     {"0,63", "there is no NUMA node 63"},
                                                                     {"0-200", "node 200 is above 127"},
                                                                     {"0,0", "node 0 is named twice"},
                                                                     {"first", "number is missing"},
                                                                     {"", "it is empty"}}) {
    spec_.annotations = {{kAnnotation, value}};
    const auto pod = Cri().RunPod(spec_);
    ASSERT_NOT_OK(pod) << value;
    EXPECT_THAT(Message(pod.status()),
                AllOf(HasSubstr(kAnnotation), HasSubstr("\"" + value + "\""), HasSubstr(why)));
  }
  spec_.annotations = {{kAnnotation, "0"}};
  const auto pod = Cri().RunPod(spec_);
  EXPECT_THAT(Message(pod.status()), HasSubstr("/nonexistent/qemu"));  // granted, and gone no further
  ASSERT_OK(TestNode().Reconfigure({{"sizing.allowed_annotations", "[]"}}));
  EXPECT_THAT(Message(Cri().RunPod(spec_).status()),
              AllOf(HasSubstr(kAnnotation), HasSubstr("allowed_annotations")));
  EXPECT_OK(TestNode().RemoveAllPods());
  EXPECT_THAT(TestNode().Leftovers(In(std::chrono::seconds(30))), IsEmpty());
}

}  // namespace
}  // namespace lamina::e2e

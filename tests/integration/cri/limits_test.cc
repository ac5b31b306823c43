// Limits as they come to the shim: updates of a container, the pod's cgroup on v1 and v2.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "cri/cgroup.h"
#include "cri/oci_spec.h"
#include "persist/sandbox_state.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

using lamina::testing::HasStatus;

TEST(UpdatedLimits, ReplacesWhatIsNamed) {
  sizing::Limits web;
  web.name = "container web";
  web.cpu = {50'000, 100'000, 512};
  web.memory_bytes = 64 << 20;
  EXPECT_EQ(*UpdatedLimits(web, "{}"), web);
  const auto memory = UpdatedLimits(web, R"({"memory": {"limit": 134217728}})");
  ASSERT_OK(memory);
  EXPECT_EQ(memory->memory_bytes, 134217728);
  EXPECT_EQ(memory->cpu, web.cpu);
  const auto cpu = UpdatedLimits(web, R"({"cpu": {"quota": 25000, "shares": 256}})");
  ASSERT_OK(cpu);
  EXPECT_EQ(cpu->cpu, (sizing::CpuLimit{25'000, 100'000, 256}));
  EXPECT_EQ(UpdatedLimits(web, R"({"hugepageLimits": [{"limit": 9223372036854775807}, {"limit": 5}]})")
                ->extra_memory_bytes,
            uint64_t{INT64_MAX});
  for (const char* bad : {"", "[]", "{", "7"}) {
    EXPECT_THAT(UpdatedLimits(web, bad), HasStatus(absl::StatusCode::kInvalidArgument, "container web"))
        << bad;
  }
}

void Put(const std::string& path, const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path) << text;
}

TEST(PodCgroupLimits, AreReadOnBothVersionsOfCgroups) {
  const lamina::testing::TempDir v2, v1;
  Put(v2 / "kubepods/pod1/memory.max", "268435456\n");
  Put(v2 / "kubepods/pod1/cpu.max", "75000 100000\n");
  Put(v2 / "kubepods/pod2/memory.max", "max\n");
  Put(v2 / "kubepods/pod2/cpu.max", "max 100000\n");
  sizing::CgroupLimits limits = PodCgroupLimits(v2.path(), "/kubepods/pod1/sandbox");
  EXPECT_EQ(limits.memory_bytes, 268435456u);
  EXPECT_EQ(limits.nano_cpus, 750'000'000);
  Put(v1 / "memory/kubepods/pod1/memory.limit_in_bytes", "134217728\n");
  Put(v1 / "cpu/kubepods/pod1/cpu.cfs_quota_us", "50000\n");
  Put(v1 / "cpu/kubepods/pod1/cpu.cfs_period_us", "200000\n");
  Put(v1 / "memory/kubepods/pod2/memory.limit_in_bytes", "9223372036854771712\n");
  Put(v1 / "cpu/kubepods/pod2/cpu.cfs_quota_us", "-1\n");
  Put(v1 / "cpu/kubepods/pod2/cpu.cfs_period_us", "100000\n");
  limits = PodCgroupLimits(v1.path(), "/kubepods/pod1/sandbox");
  EXPECT_EQ(limits.memory_bytes, 134217728u);
  EXPECT_EQ(limits.nano_cpus, 250'000'000);
  for (const auto& root : {v1.path(), v2.path()}) {
    for (const char* path : {"/kubepods/pod2/sandbox", "/kubepods/pod3/sandbox", "/sandbox"}) {
      limits = PodCgroupLimits(root, path);
      EXPECT_EQ(limits.memory_bytes, std::nullopt) << path;
      EXPECT_EQ(limits.nano_cpus, std::nullopt) << path;
    }
  }
}

TEST(SandboxState, KeepsLimitsAndCeilings) {
  persist::SandboxState state;
  state.sandbox_id = "one";
  state.vcpus = 3;
  state.max_vcpus = 8;
  state.boot_memory_bytes = 1 << 28;
  state.max_hot_memory_bytes = 1 << 30;
  state.has_pod_limits = true;
  state.pod_limits = {"sandbox", -1, 100'000, 2048, 1 << 26, 7};
  state.limited_parts = {{"web", "id1", {"container web", 1, 2, 3, 4, 5}, {"container web", 6, 7, 8, 9, 10}}};
  const auto read = persist::DecodeState(persist::EncodeState(state), "state");
  ASSERT_OK(read);
  EXPECT_EQ(read->max_vcpus, 8u);
  EXPECT_EQ(read->boot_memory_bytes, 1u << 28);
  EXPECT_EQ(read->max_hot_memory_bytes, 1u << 30);
  EXPECT_TRUE(read->has_pod_limits);
  EXPECT_EQ(read->pod_limits.quota, -1);
  EXPECT_EQ(read->pod_limits.extra_memory_bytes, 7u);
  ASSERT_EQ(read->limited_parts.size(), 1u);
  EXPECT_EQ(read->limited_parts[0].id, "id1");
  EXPECT_EQ(read->limited_parts[0].first.memory_bytes, 4);
  EXPECT_EQ(read->limited_parts[0].now.shares, 8u);
}

}  // namespace
}  // namespace lamina::cri

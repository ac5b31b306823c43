// The metrics as Prometheus sees them: its own linter, its own server.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "base/file_system.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/units.h"
#include "tests/integration/node/node_kit.h"
#include "tests/integration/node/prometheus_kit.h"
#include "tests/testing/status_matchers.h"

namespace lamina::node {
namespace {

using nlohmann::json;

constexpr int kPods = 10;
constexpr size_t kMaxBytesPerSandbox = 8 * kKiB;
constexpr uint64_t kMaxPssBytes = 25 * kMiB;

void StartPods(const Laminad& laminad, std::vector<std::unique_ptr<Sleeper>>& vmms) {
  for (int i = 0; i < kPods; ++i) {
    const std::string id = "sandbox-" + std::to_string(i);
    const auto claim = laminad.Claim(id, 256 * kMiB);
    ASSERT_OK(claim);
    vmms.push_back(std::make_unique<Sleeper>());
    ASSERT_OK(laminad.Started(id, claim->generation(), *vmms.back()));
    laminad::v1::ReadyRequest ready;
    ready.set_sandbox_id(id);
    ready.set_generation(claim->generation());
    (*ready.mutable_phase_seconds())["qemu"] = 0.125;
    (*ready.mutable_phase_seconds())["total"] = 0.75;
    (*ready.mutable_phase_seconds())["a phase that a liar made up"] = 1;
    laminad::v1::Empty empty;
    ASSERT_OK(laminad.Call("Ready", ready, &empty));
  }
}

std::string PromtoolCheck(const std::string& metrics, const std::string& directory) {
  WriteFile(directory + "/metrics.txt", metrics);
  const auto result =
      RunCommand({"sh", "-c", "exec promtool check metrics < \"$1\"", "sh", directory + "/metrics.txt"},
                 std::chrono::seconds(30));
  return result.ok() ? result->output + (result->exit_code == 0 ? "" : "(failed)") : Message(result.status());
}

TEST(LaminadMetrics, PromtoolHasNothingToSay) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  const std::string empty = laminad.Http("/metrics").body;
  EXPECT_EQ(PromtoolCheck(empty, laminad.directory()), "");
  std::vector<std::unique_ptr<Sleeper>> vmms;
  StartPods(laminad, vmms);
  const std::string full = laminad.Http("/metrics").body;
  EXPECT_EQ(PromtoolCheck(full, laminad.directory()), "");
  // The linter itself works.
  EXPECT_NE(PromtoolCheck("# TYPE badMetric_ms gauge\nbadMetric_ms 1\n", laminad.directory()), "");

  const size_t per_sandbox = (full.size() - empty.size()) / kPods;
  RecordProperty("bytes_per_sandbox", static_cast<int>(per_sandbox));
  EXPECT_LT(per_sandbox, kMaxBytesPerSandbox);
  EXPECT_THAT(full, ::testing::HasSubstr("lamina_sandbox_boot_seconds_sum{phase=\"total\"} 7.5\n"));
  EXPECT_THAT(full, ::testing::Not(::testing::HasSubstr("liar")));
}

TEST(LaminadMetrics, HaveTheFamiliesThatDashboardsUse) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  ASSERT_OK(laminad.Claim("one", 256 * kMiB));
  const std::string text = laminad.Http("/metrics").body;
  for (const char* family : {"lamina_sandboxes gauge",
                             "lamina_memory_claimed_bytes gauge",
                             "lamina_memory_capacity_bytes gauge",
                             "lamina_memory_available_bytes gauge",
                             "lamina_memory_resident_bytes gauge",
                             "lamina_sandbox_memory_bytes gauge",
                             "lamina_sandbox_vcpus gauge",
                             "lamina_arena_bytes gauge",
                             "lamina_layers_placed_total counter",
                             "lamina_layer_conversions_total counter",
                             "lamina_layer_reuses_total counter",
                             "lamina_sandbox_boot_seconds histogram",
                             "lamina_claims_refused_total counter",
                             "lamina_balloon_rounds_total counter",
                             "lamina_numa_node_capacity_bytes gauge",
                             "lamina_numa_node_claimed_bytes gauge",
                             "lamina_numa_node_available_bytes gauge",
                             "lamina_memory_lowered_bytes gauge",
                             "lamina_memory_pressure gauge",
                             "lamina_claim_seconds histogram",
                             "lamina_build_info gauge"}) {
    EXPECT_THAT(text, ::testing::HasSubstr(std::string("# TYPE ") + family + "\n"));
  }
  EXPECT_THAT(text, ::testing::HasSubstr("lamina_sandbox_memory_bytes{pod=\"pod-one\",namespace=\"shop\","
                                         "sandbox=\"one\",kind=\"configured\"} 268435456\n"));
}

TEST(LaminadMetrics, APrometheusScrapesThem) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  std::vector<std::unique_ptr<Sleeper>> vmms;
  StartPods(laminad, vmms);
  Prometheus prometheus(laminad);
  ASSERT_OK(prometheus.Start());
  const auto query = [&](const std::string& expression) { return prometheus.Query(expression); };
  EXPECT_TRUE(Eventually([&] {
    const json result = query("lamina_sandboxes");
    return !result.empty() && result[0]["value"][1] == std::to_string(kPods);
  })) << prometheus.Log();
  EXPECT_EQ(query("up{job=\"lamina\"}")[0]["value"][1], "1");
  EXPECT_EQ(query("count(lamina_sandbox_memory_bytes{kind=\"configured\"})")[0]["value"][1],
            std::to_string(kPods));
  EXPECT_EQ(query("sum(lamina_sandbox_memory_bytes{kind=\"configured\"}) == bool lamina_memory_claimed_bytes")
                .size(),
            0u);  // labels differ
  EXPECT_EQ(query("sum(lamina_sandbox_memory_bytes{kind=\"configured\"})")[0]["value"][1],
            std::to_string(kPods * 256 * kMiB));
  EXPECT_EQ(query("lamina_sandbox_boot_seconds_count{phase=\"total\"}")[0]["value"][1],
            std::to_string(kPods));
}

TEST(LaminadMetrics, LaminadStaysSmall) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  std::vector<std::unique_ptr<Sleeper>> vmms;
  StartPods(laminad, vmms);
  for (int i = 0; i < 20; ++i) {
    ASSERT_EQ(laminad.Http("/metrics").status, 200);
    ASSERT_EQ(RunLamina({"sandboxes"}, &laminad).exit_code, 0);
  }
  const std::string proc = "/proc/" + std::to_string(laminad.pid());
  const std::string rollup = FileSystem::Real().Read(proc + "/smaps_rollup", 65536).value_or("");
  const size_t at = rollup.find("\nPss:");
  ASSERT_NE(at, std::string::npos);
  const uint64_t pss = strtoull(rollup.c_str() + at + 5, nullptr, 10) * kKiB;
  const auto threads = FileSystem::Real().List(proc + "/task");
  ASSERT_OK(threads);
  RecordProperty("pss_kib", static_cast<int>(pss / kKiB));
  RecordProperty("threads", static_cast<int>(threads->size()));
  printf("laminad with %d pods: Pss %d KiB, %zu threads\n", kPods, static_cast<int>(pss / kKiB),
         threads->size());
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LE(pss, kMaxPssBytes);
#endif
}

}  // namespace
}  // namespace lamina::node

#include "metrics/node_metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <sstream>
#include <thread>

namespace lamina::metrics {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

size_t Lines(const std::string& text, const std::string& prefix) {
  std::istringstream lines(text);
  std::string line;
  size_t count = 0;
  while (std::getline(lines, line)) count += line.rfind(prefix, 0) == 0 ? 1 : 0;
  return count;
}

TEST(NodeMetrics, ShowsTheNodesMemory) {
  NodeSample sample;
  sample.version = "1.2.3";
  sample.capacity_bytes = 64ULL << 30;
  sample.claimed_bytes = 3ULL << 30;
  sample.available_bytes = 61ULL << 30;
  sample.resident_bytes = 1ULL << 30;
  const std::string text = NodeMetrics().Text(sample);
  EXPECT_THAT(text, HasSubstr("\nlamina_memory_capacity_bytes 68719476736\n"));
  EXPECT_THAT(text, HasSubstr("\nlamina_memory_claimed_bytes 3221225472\n"));
  EXPECT_THAT(text, HasSubstr("\nlamina_memory_available_bytes 65498251264\n"));
  EXPECT_THAT(text, HasSubstr("\nlamina_memory_resident_bytes 1073741824\n"));
  EXPECT_THAT(text, HasSubstr("lamina_build_info{version=\"1.2.3\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("\nlamina_sandboxes 0\n"));
}

TEST(NodeMetrics, ShowsEachNumaNode) {
  NodeSample sample;
  sample.numa_nodes = {{"0", 3ULL << 30, 1ULL << 30, 2ULL << 30}, {"12", 1ULL << 30, 0, 1ULL << 30}};
  const std::string text = NodeMetrics().Text(sample);
  EXPECT_THAT(text, HasSubstr("\nlamina_numa_node_capacity_bytes{node=\"0\"} 3221225472\n"));
  EXPECT_THAT(text, HasSubstr("\nlamina_numa_node_claimed_bytes{node=\"0\"} 1073741824\n"));
  EXPECT_THAT(text, HasSubstr("\nlamina_numa_node_available_bytes{node=\"0\"} 2147483648\n"));
  EXPECT_THAT(text, HasSubstr("\nlamina_numa_node_claimed_bytes{node=\"12\"} 0\n"));
}

TEST(NodeMetrics, ASandboxIsThereWhileItIsSampled) {
  NodeSample sample;
  sample.sandboxes.push_back({"web-1", "shop", "abc", 320 << 20, 128 << 20, 64 << 20, 1, 0.25, 0.5});
  const NodeMetrics metrics;
  const std::string with = metrics.Text(sample);
  EXPECT_THAT(with, HasSubstr("lamina_sandbox_memory_bytes{pod=\"web-1\",namespace=\"shop\",sandbox=\"abc\","
                              "kind=\"configured\"} 335544320\n"));
  EXPECT_THAT(with, HasSubstr("lamina_sandbox_memory_bytes{pod=\"web-1\",namespace=\"shop\",sandbox=\"abc\","
                              "kind=\"overhead\"} 67108864\n"));
  EXPECT_THAT(
      with,
      HasSubstr(
          "lamina_sandbox_vcpus{pod=\"web-1\",namespace=\"shop\",sandbox=\"abc\",kind=\"limit\"} 0.25\n"));
  EXPECT_EQ(Lines(with, "lamina_sandboxes 1"), 1u);
  EXPECT_THAT(metrics.Text(NodeSample()), Not(HasSubstr("web-1")));
}

TEST(NodeMetrics, EscapesWhatPodsAreCalled) {
  NodeSample sample;
  sample.sandboxes.push_back({"a\"b\nlamina_sandboxes 99\\", "n", "s", 1, 0, 0, 1, 0, 0});
  const std::string text = NodeMetrics().Text(sample);
  EXPECT_EQ(Lines(text, "lamina_sandboxes 99"), 0u);
  EXPECT_THAT(text, HasSubstr("pod=\"a\\\"b\\nlamina_sandboxes 99\\\\\""));
}

TEST(NodeMetrics, CountsRefusalsByKnownReasons) {
  NodeMetrics metrics;
  metrics.CountRefusal("no_memory");
  metrics.CountRefusal("no_memory");
  metrics.CountRefusal("pressure");
  metrics.CountRefusal("made up");
  const std::string text = metrics.Text(NodeSample());
  EXPECT_THAT(text, HasSubstr("lamina_claims_refused_total{reason=\"no_memory\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("lamina_claims_refused_total{reason=\"pressure\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("lamina_claims_refused_total{reason=\"not_ready\"} 0\n"));
  EXPECT_THAT(text, Not(HasSubstr("made up")));
}

TEST(NodeMetrics, HistogramsOfClaimsAndBoots) {
  NodeMetrics metrics;
  metrics.ObserveClaim(0.0005);
  metrics.ObserveClaim(0.02);
  metrics.ObserveBoot({{"total", 0.75}, {"qemu", 0.125}, {"made up", 1}});
  const std::string text = metrics.Text(NodeSample());
  EXPECT_THAT(text, HasSubstr("lamina_claim_seconds_count 2\n"));
  EXPECT_THAT(text, HasSubstr("lamina_claim_seconds_bucket{le=\"0.001\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("lamina_sandbox_boot_seconds_sum{phase=\"total\"} 0.75\n"));
  EXPECT_THAT(text, HasSubstr("lamina_sandbox_boot_seconds_count{phase=\"qemu\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("lamina_sandbox_boot_seconds_count{phase=\"kernel\"} 0\n"));
  EXPECT_THAT(text, Not(HasSubstr("made up")));
}

// A phase is a number that a shim sends: what is no duration must not poison the sum for ever.
TEST(NodeMetrics, DropsBootTimesThatAreNone) {
  NodeMetrics metrics;
  metrics.ObserveBoot({{"total", std::numeric_limits<double>::quiet_NaN()},
                       {"qemu", -1},
                       {"kernel", std::numeric_limits<double>::infinity()}});
  metrics.ObserveBoot({{"total", 0.5}});
  EXPECT_THAT(metrics.Text(NodeSample()),
              HasSubstr("lamina_sandbox_boot_seconds_sum{phase=\"total\"} 0.5\n"));
  EXPECT_THAT(metrics.Text(NodeSample()), HasSubstr("lamina_sandbox_boot_seconds_count{phase=\"qemu\"} 0\n"));
  EXPECT_THAT(metrics.Text(NodeSample()),
              HasSubstr("lamina_sandbox_boot_seconds_count{phase=\"kernel\"} 0\n"));
}

TEST(NodeMetrics, ASandboxCostsLessThanEightKiB) {
  NodeSample sample;
  const std::string longest(253, 'p');  // Kubernetes' longest name
  constexpr size_t kSandboxes = 100;
  const NodeMetrics metrics;
  const size_t before = metrics.Text(sample).size();
  for (size_t i = 0; i < kSandboxes; ++i) {
    sample.sandboxes.push_back({longest, std::string(63, 'n'), std::string(64, 'f'), UINT64_MAX, UINT64_MAX,
                                UINT64_MAX, 256, 255.5, 0.25});
  }
  EXPECT_LT((metrics.Text(sample).size() - before) / kSandboxes, 8192u);
}

TEST(NodeMetrics, IsCountedFromManyThreads) {
  NodeMetrics metrics;
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        for (int k = 0; k < 250; ++k) {
          metrics.ObserveClaim(0.001);
          metrics.CountRefusal("invalid");
          if (k % 50 == 0) metrics.Text(NodeSample());
        }
      });
    }
  }
  EXPECT_THAT(metrics.Text(NodeSample()), HasSubstr("lamina_claim_seconds_count 1000\n"));
  EXPECT_THAT(metrics.Text(NodeSample()),
              HasSubstr("lamina_claims_refused_total{reason=\"invalid\"} 1000\n"));
}

}  // namespace
}  // namespace lamina::metrics

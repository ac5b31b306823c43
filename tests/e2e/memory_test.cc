// A node that cannot hold all the pods that are started: refusals, balloons, and a laminad that is killed
// meanwhile.
#include <poll.h>
#include <signal.h>

#include <atomic>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "tests/e2e/kit/leftovers.h"
#include "tests/e2e/support.h"

namespace lamina::e2e {
namespace {

using nlohmann::json;
using std::chrono::seconds;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kMiB = 1 << 20;
constexpr uint64_t kPodClaim = (288 + 96) * kMiB;  // default and overhead of the guest, and the VMM's own
constexpr size_t kFits = 3;

json Claims() {
  const auto body = TestNode().Rest("/v1/claims");
  EXPECT_OK(body.status());
  return json::parse(body.value_or("null"), nullptr, false);
}

std::set<std::string> ClaimIds() {
  std::set<std::string> ids;
  for (const json& claim : Claims().value("claims", json::array())) ids.insert(claim["id"]);
  return ids;
}

size_t Qemus() {
  size_t count = 0;
  for (const Process& process : FindProcesses(TestNode().dir(), {}))
    count += process.command.find("qemu-system") != std::string::npos;
  return count;
}

struct Started {
  std::set<std::string> pods;         // ids
  std::vector<absl::Status> refused;  // why the others did not
};

// `count` pods at the same time; `meanwhile` runs beside them.
Started StartTogether(size_t count, const std::function<void()>& meanwhile) {
  std::vector<absl::StatusOr<std::string>> results(count, absl::UnknownError("not run"));
  std::vector<std::thread> threads;
  for (size_t i = 0; i < count; ++i) {
    threads.emplace_back([&results, i] {
      PodSpec spec;
      spec.name = fmt::format("dense-{}", i);
      results[i] = Cri().RunPod(spec, seconds(180));
    });
  }
  meanwhile();
  for (std::thread& thread : threads) thread.join();
  Started started;
  for (const auto& result : results) {
    if (result.ok()) {
      started.pods.insert(*result);
    } else {
      started.refused.push_back(result.status());
    }
  }
  return started;
}

class MemoryTest : public ::testing::Test {
 protected:
  // A node with room for three pods.
  void SetNode(bool balloon) {
    ASSERT_OK(TestNode().StopLaminad());
    ASSERT_OK(TestNode().Reconfigure({{"memory.capacity", fmt::format("{}", kFits * kPodClaim + 44 * kMiB)},
                                      {"memory.reserve", "0"},
                                      {"memory.min_available", "0"},
                                      {"memory.balloon", balloon ? "true" : "false"},
                                      {"memory.balloon_floor", "\"96MiB\""},
                                      {"memory.balloon_margin", "\"32MiB\""},
                                      {"hypervisor.boot_timeout_seconds", "150"}}));
    ASSERT_OK(TestNode().StartLaminad());
  }
  void TearDown() override {
    EXPECT_OK(TestNode().RemoveAllPods());
    EXPECT_THAT(TestNode().Leftovers(In(seconds(30))), IsEmpty());
  }
};

TEST_F(MemoryTest, AsManyAsFitAndTheOthersAreRefusedBeforeTheirQemuStarts) {
  SetNode(false);
  std::atomic<size_t> most{0};
  constexpr size_t kCalls = 64;
  const Started started = StartTogether(kCalls, [&] {
    // All claims come at the beginning; QEMUs are counted until as many run as may.
    for (int i = 0; i < 100 && most < kFits; ++i) {
      most = std::max<size_t>(most, Qemus());
      poll(nullptr, 0, 100);
    }
  });
  EXPECT_EQ(started.pods.size(), kFits);
  EXPECT_EQ(started.refused.size(), kCalls - kFits);
  for (const absl::Status& why : started.refused) EXPECT_THAT(Message(why), HasSubstr("do not fit"));
  EXPECT_EQ(ClaimIds(), started.pods);
  EXPECT_EQ(Qemus(), kFits);
  EXPECT_EQ(most, kFits);
  EXPECT_EQ(Claims()["claimed_bytes"], kFits * kPodClaim);
  for (const std::string& pod : started.pods) {
    const auto info = Cri().PodStatus(pod);
    ASSERT_OK(info) << pod;
    EXPECT_TRUE(info->ready) << pod << " was killed later";
  }
  ASSERT_OK_AND_ASSIGN(const std::string page, TestNode().Rest("/metrics"));
  EXPECT_EQ(Metric(page, "lamina_claims_refused_total{reason=\"no_memory\"}"), kCalls - kFits);
  EXPECT_EQ(Metric(page, "lamina_claim_seconds_count"), kFits);
  printf("claims granted to %zu RunPodSandbox calls at once:", kCalls);
  for (const char* most : {"0.001", "0.005", "0.01", "0.05"})
    printf(" %.0f within %s s,", Metric(page, fmt::format("lamina_claim_seconds_bucket{{le=\"{}\"}}", most)),
           most);
  printf(" mean %.1f ms\n", 1000 * Metric(page, "lamina_claim_seconds_sum") / kFits);
}

TEST_F(MemoryTest, ARoundOfTheBalloonsMakesRoomOnAFullNode) {
  SetNode(true);
  const Started first = StartTogether(kFits, [] {});
  ASSERT_EQ(first.pods.size(), kFits);
  // Each guest has said how it is, and that it could do with less.
  ASSERT_OK(Eventually(In(seconds(90)), []() -> absl::Status {
    const json claims = Claims();
    for (const json& claim : claims["claims"]) {
      if (claim.value("floor_bytes", uint64_t{0}) == 0 || claim["floor_bytes"] >= claim["target_bytes"])
        return absl::UnavailableError("no statistics yet: " + claims.dump());
    }
    return absl::OkStatus();
  }));
  PodSpec spec;
  spec.name = "one-more";
  std::string more;
  ASSERT_OK(Eventually(In(seconds(120)), [&]() -> absl::Status {  // as the kubelet tries again
    ASSIGN_OR_RETURN(more, Cri().RunPod(spec, seconds(180)));
    return absl::OkStatus();
  }));
  json claims = Claims();
  printf("after the round: %s\n", claims.dump().c_str());
  EXPECT_EQ(claims["claims"].size(), kFits + 1);
  EXPECT_LE(claims["claimed_bytes"], claims["capacity_bytes"]);
  uint64_t lowered = 0;
  for (const json& claim : claims["claims"]) {
    lowered += claim["lowered_bytes"].get<uint64_t>();
    EXPECT_GE(claim["target_bytes"], claim["floor_bytes"]);
  }
  EXPECT_GE(lowered, kPodClaim - 44 * kMiB);
  std::string grower, container;
  for (const std::string& pod : first.pods) {  // those who gave go on working
    const auto id = Cri().RunContainer(pod, Sleeper());
    EXPECT_OK(id.status());
    if (id.ok()) {
      grower = pod;
      container = *id;
      EXPECT_EQ(ShellIn(*id, "echo works").value_or("?"), "works\n");
    }
  }
  ASSERT_OK(Cri().RemovePod(more));
  EXPECT_OK(Eventually(In(seconds(60)), []() -> absl::Status {
    const json now = Claims();
    for (const json& claim : now["claims"]) {
      if (claim["lowered_bytes"] != 0) return absl::UnavailableError("still lowered");
    }
    return absl::OkStatus();
  }));
  EXPECT_EQ(Claims()["claimed_bytes"], kFits * kPodClaim);

  // A resize that does not fit has its round too, among the others.
  Resources larger;
  larger.memory = 384 * static_cast<int64_t>(kMiB);  // where the default of 192 was
  ASSERT_OK(Eventually(In(seconds(120)), [&] { return Cri().UpdateResources(container, larger); }));
  claims = Claims();
  printf("after the resize: %s\n", claims.dump().c_str());
  EXPECT_LE(claims["claimed_bytes"], claims["capacity_bytes"]);
  lowered = 0;
  for (const json& claim : claims["claims"]) {
    lowered += claim["lowered_bytes"].get<uint64_t>();
    if (claim["id"] != grower) continue;
    EXPECT_EQ(claim["target_bytes"], kPodClaim + 192 * kMiB);
    EXPECT_EQ(claim["lowered_bytes"], 0);
  }
  EXPECT_GE(lowered, 192 * kMiB - 44 * kMiB);
}

TEST_F(MemoryTest, LaminadKilledInTheMiddleOfThirtyStartsLeaksNothing) {
  SetNode(false);
  const Started started = StartTogether(30, [] {
    EXPECT_OK(Eventually(In(seconds(60)), []() -> absl::Status {
      return ClaimIds().empty() ? absl::UnavailableError("no claim yet") : absl::OkStatus();
    }));
    EXPECT_OK(TestNode().StopLaminad(SIGKILL));
    EXPECT_OK(TestNode().StartLaminad());
  });
  printf("%zu of 30 run\n", started.pods.size());
  EXPECT_LE(started.pods.size(), kFits);
  // What is claimed is what lives: claims of those that failed are dropped when their shims have gone.
  EXPECT_OK(Eventually(In(seconds(30)), [&]() -> absl::Status {
    return ClaimIds() == started.pods ? absl::OkStatus() : absl::UnavailableError(Claims().dump());
  }));
  EXPECT_EQ(Qemus(), started.pods.size());
  EXPECT_EQ(Claims()["claimed_bytes"], started.pods.size() * kPodClaim);
  // The node takes pods as before.
  PodSpec spec;
  spec.name = "afterwards";
  if (started.pods.size() < kFits) {
    EXPECT_OK(Cri().RunPod(spec, seconds(180)).status());
  }
}

}  // namespace
}  // namespace lamina::e2e

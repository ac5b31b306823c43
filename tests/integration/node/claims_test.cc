#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "base/file_system.h"
#include "base/subprocess.h"
#include "base/units.h"
#include "persist/state_store.h"
#include "tests/integration/node/node_kit.h"
#include "tests/testing/status_matchers.h"

namespace lamina::node {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kService[] = "lamina.laminad.v1.Laminad";

std::vector<std::string> ClaimIds(const Laminad& laminad) {
  std::vector<std::string> ids;
  const json answer = json::parse(laminad.Http("/v1/claims").body);
  for (const json& claim : answer["claims"]) ids.push_back(claim["id"]);
  return ids;
}

TEST(LaminadClaims, ALifeOfOneSandbox) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  const auto claim = laminad.Claim("one", 1 * kGiB);
  ASSERT_OK(claim);
  EXPECT_EQ(claim->capacity_bytes(), 64 * kGiB);
  EXPECT_EQ(claim->claimed_bytes(), 1 * kGiB);
  EXPECT_EQ(claim->available_bytes(), 63 * kGiB);
  EXPECT_EQ(laminad.Claim("one", 1 * kGiB)->generation(), claim->generation());
  EXPECT_THAT(laminad.Claim("one", 2 * kGiB), testing::HasStatus(absl::StatusCode::kAlreadyExists));

  Sleeper vmm;
  ASSERT_OK(laminad.Started("one", claim->generation(), vmm));
  EXPECT_OK(laminad.Started("one", claim->generation(), vmm));
  EXPECT_THAT(laminad.Release("one", claim->generation()),
              testing::HasStatus(absl::StatusCode::kFailedPrecondition));
  EXPECT_OK(laminad.Release("one", claim->generation() + 1));  // stale: nothing happens
  EXPECT_THAT(ClaimIds(laminad), ElementsAre("one"));
  vmm.End();
  EXPECT_OK(laminad.Release("one", claim->generation()));
  EXPECT_THAT(ClaimIds(laminad), ElementsAre());
  EXPECT_OK(laminad.Release("one", claim->generation()));  // again
  EXPECT_EQ(laminad.Stop(SIGTERM), 0) << laminad.Log();
}

TEST(LaminadClaims, SixtyFourAtOnceNeverGetMoreThanThereIs) {
  constexpr uint64_t kEach = 1 * kGiB;
  constexpr int kThreads = 64, kFits = 40;
  Laminad laminad("[memory]\ncapacity = \"40GiB\"\nreserve = 0\nmin_available = 0\n");
  ASSERT_OK(laminad.Start()) << laminad.Log();
  std::atomic<int> granted{0}, refused{0}, other{0};
  std::vector<double> milliseconds(kThreads);
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        const auto start = std::chrono::steady_clock::now();
        const auto claim = laminad.Claim("sandbox-" + std::to_string(i), kEach);
        milliseconds[i] =
            std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
        if (claim.ok()) {
          ++granted;
        } else if (claim.status().code() == absl::StatusCode::kResourceExhausted) {
          ++refused;
        } else {
          ++other;
        }
      });
    }
  }
  EXPECT_EQ(granted, kFits);
  EXPECT_EQ(refused, kThreads - kFits);
  EXPECT_EQ(other, 0);
  std::sort(milliseconds.begin(), milliseconds.end());
  RecordProperty("slowest_claim_ms", std::to_string(milliseconds.back()));
  printf("64 durable claims at once: median %.1f ms, slowest %.1f ms\n", milliseconds[kThreads / 2],
         milliseconds.back());
  const json claims = json::parse(laminad.Http("/v1/claims").body);
  EXPECT_EQ(claims["claimed_bytes"], claims["capacity_bytes"]);
  EXPECT_EQ(claims["available_bytes"], 0);
  EXPECT_THAT(laminad.Http("/metrics").body,
              HasSubstr("lamina_claims_refused_total{reason=\"no_memory\"} 24"));
}

TEST(LaminadClaims, SurviveKillNine) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  Sleeper vmm, dying_shim;
  const auto kept = laminad.Claim("kept", 2 * kGiB);
  ASSERT_OK(kept);
  ASSERT_OK(laminad.Started("kept", kept->generation(), vmm));
  ASSERT_OK(laminad.Claim("building", 1 * kGiB));
  laminad::v1::ClaimRequest orphan = laminad.ClaimOf("orphan", 4 * kGiB);
  orphan.set_shim_pid(dying_shim.pid());
  orphan.set_shim_start_time(dying_shim.start_time());
  laminad::v1::ClaimResponse orphaned;
  ASSERT_OK(laminad.Call("Claim", orphan, &orphaned));

  EXPECT_EQ(laminad.Stop(SIGKILL), 128 + SIGKILL);
  dying_shim.End();
  ASSERT_OK(laminad.Start()) << laminad.Log();
  EXPECT_THAT(ClaimIds(laminad), ElementsAre("building", "kept"));
  EXPECT_EQ(laminad.Claim("kept", 2 * kGiB)->generation(), kept->generation());
  const auto next = laminad.Claim("next", 1 * kGiB);
  ASSERT_OK(next);
  EXPECT_GT(next->generation(), kept->generation());
  EXPECT_EQ(next->claimed_bytes(), 4 * kGiB);
  EXPECT_THAT(laminad.Release("kept", kept->generation()),
              testing::HasStatus(absl::StatusCode::kFailedPrecondition));
}

// Killed again and again while 16 shims claim and release: whatever was granted is there afterwards, and
// nothing is granted twice.
TEST(LaminadClaims, KilledInTheMiddleOfParallelClaimsItLosesNothing) {
  constexpr int kShims = 16;
  constexpr uint64_t kEach = 1 * kGiB;
  Laminad laminad("[memory]\ncapacity = \"12GiB\"\nreserve = 0\nmin_available = 0\n");
  std::map<std::string, uint64_t> held;  // id -> generation, of what was granted and not released
  for (int round = 0; round < 5; ++round) {
    ASSERT_OK(laminad.Start()) << laminad.Log();
    // What an unanswered call left is either there or not; nobody relies on it.
    std::mutex mutex;
    std::set<std::string> unanswered;
    std::atomic<int> granted{0};
    {
      std::vector<std::jthread> threads;
      for (int i = 0; i < kShims; ++i) {
        threads.emplace_back([&, i] {
          const std::string id = "shim-" + std::to_string(i);
          for (;;) {
            const auto claim = laminad.Claim(id, kEach);
            const auto code = claim.status().code();
            std::lock_guard lock(mutex);
            if (claim.ok()) {
              const auto before = held.find(id);
              if (before != held.end()) {
                EXPECT_EQ(before->second, claim->generation());  // the same claim
              }
              held[id] = claim->generation();
              ++granted;
            } else if (code != absl::StatusCode::kResourceExhausted) {
              unanswered.insert(id);
              return;  // it was killed
            }
            if (!claim.ok() || i % 2 == 0) continue;
            mutex.unlock();
            const absl::Status released = laminad.Release(id, claim->generation());
            mutex.lock();
            held.erase(id);
            if (!released.ok()) {
              unanswered.insert(id);
              return;
            }
          }
        });
      }
      Eventually([&] { return granted > 40 * (round + 1); });
      EXPECT_EQ(laminad.Stop(SIGKILL), 128 + SIGKILL);
    }
    ASSERT_OK(laminad.Start()) << laminad.Log();
    const json answer = json::parse(laminad.Http("/v1/claims").body);
    std::map<std::string, uint64_t> found;
    for (const json& claim : answer["claims"]) found[claim["id"]] = claim["generation"];
    for (const auto& [id, generation] : held) {
      if (found.count(id) == 0) {
        ADD_FAILURE() << id << " was granted and is gone, round " << round;
      } else {
        EXPECT_EQ(found[id], generation) << id;
      }
    }
    for (const auto& [id, generation] : found) {
      EXPECT_TRUE(held.count(id) != 0 || unanswered.count(id) != 0) << id << " is held by nobody";
      held[id] = generation;
    }
    EXPECT_EQ(answer["claimed_bytes"], found.size() * kEach);
    EXPECT_LE(answer["claimed_bytes"], 12 * kGiB);
    EXPECT_EQ(laminad.Stop(SIGKILL), 128 + SIGKILL);
  }
}

// The journal is gone, the VM is not: what is seen counts.
TEST(LaminadClaims, AVmWithoutARecordIsCounted) {
  Laminad laminad;
  Sleeper vmm;
  persist::SandboxState state;
  state.sandbox_id = "seen";
  state.pod_namespace = "shop";
  state.pod_name = "web";
  state.memory_bytes = 3 * kGiB;
  state.claim_bytes = 3 * kGiB;
  state.claim_generation = 41;
  state.vmm = {vmm.pid(), vmm.start_time()};
  state.shim = {vmm.pid(), vmm.start_time()};
  persist::StateStore store(FileSystem::Real(), laminad.directory() + "/state");
  ASSERT_OK(store.Save(state));
  ASSERT_OK(laminad.Start()) << laminad.Log();
  EXPECT_THAT(ClaimIds(laminad), ElementsAre("seen"));
  const auto next = laminad.Claim("next", 1 * kGiB);
  ASSERT_OK(next);
  EXPECT_EQ(next->claimed_bytes(), 4 * kGiB);
  EXPECT_GT(next->generation(), 41u);
}

// The shim wrote QEMU's pid down, then died before it could say Started.
TEST(LaminadClaims, AVmWhoseStartWasNeverToldKeepsItsClaim) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  Sleeper shim, vmm;
  laminad::v1::ClaimRequest request = laminad.ClaimOf("untold", 1 * kGiB);
  request.set_shim_pid(shim.pid());
  request.set_shim_start_time(shim.start_time());
  laminad::v1::ClaimResponse response;
  ASSERT_OK(laminad.Call("Claim", request, &response));
  persist::SandboxState state;
  state.sandbox_id = "untold";
  state.claim_bytes = state.memory_bytes = 1 * kGiB;
  state.claim_generation = response.generation();
  state.shim = {shim.pid(), shim.start_time()};
  state.vmm = {vmm.pid(), vmm.start_time()};
  persist::StateStore store(FileSystem::Real(), laminad.directory() + "/state");
  ASSERT_OK(store.Save(state));
  shim.End();
  EXPECT_THAT(laminad.Release("untold", response.generation()),
              testing::HasStatus(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(laminad.Stop(SIGKILL), 128 + SIGKILL);
  ASSERT_OK(laminad.Start()) << laminad.Log();
  EXPECT_THAT(ClaimIds(laminad), ElementsAre("untold"));
  vmm.End();
  EXPECT_TRUE(Eventually([&] { return ClaimIds(laminad).empty(); })) << laminad.Log();
}

// On the machine's own NUMA nodes: granted whole or not at all, there again after a crash, shown.
TEST(LaminadClaims, NumaNodes) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  const auto nodes = [&] { return json::parse(laminad.Http("/v1/claims").body)["numa_nodes"]; };
  if (nodes().empty()) GTEST_SKIP() << "this kernel shows no NUMA nodes";
  uint64_t capacity = 0;
  for (const json& node : nodes()) capacity += node["capacity_bytes"].get<uint64_t>();
  EXPECT_EQ(capacity, 64 * kGiB);
  const uint32_t number = nodes()[0]["node"];
  const uint64_t whole = nodes()[0]["capacity_bytes"];
  const auto left = [&] { return nodes()[0]["available_bytes"].get<uint64_t>(); };
  const auto claim = [&](const std::string& id, uint64_t bytes, uint32_t node) {
    laminad::v1::ClaimRequest request = laminad.ClaimOf(id, bytes);
    request.add_numa_nodes(number);
    if (node != number) request.add_numa_nodes(node);
    laminad::v1::ClaimResponse response;
    const absl::Status status = laminad.Call("Claim", request, &response);
    return status.ok() ? absl::StatusOr<uint64_t>(response.generation()) : status;
  };
  const auto unknown = claim("unknown", 1 * kGiB, 127);
  EXPECT_THAT(unknown, testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(std::string(unknown.status().message()), HasSubstr("no NUMA node 127 with memory here"));
  const auto large = claim("large", whole + kMiB, number);
  EXPECT_THAT(large, testing::HasStatus(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(std::string(large.status().message()),
              HasSubstr(fmt::format("node {} has {}", number, FormatBytes(whole))));
  EXPECT_EQ(left(), whole);

  const auto generation = claim("bound", 1 * kGiB, number);
  ASSERT_OK(generation);
  Sleeper vmm;
  ASSERT_OK(laminad.Started("bound", *generation, vmm));
  for (int restarted = 0; restarted < 2; ++restarted) {
    EXPECT_EQ(left(), whole - 1 * kGiB);
    EXPECT_EQ(claim("bound", 1 * kGiB, number).value_or(0), *generation);
    EXPECT_EQ(json::parse(laminad.Http("/v1/claims").body)["claims"][0]["numa_nodes"], json({number}));
    EXPECT_EQ(json::parse(laminad.Http("/v1/sandboxes").body)["sandboxes"][0]["numa_nodes"], json({number}));
    EXPECT_THAT(
        laminad.Http("/metrics").body,
        HasSubstr(fmt::format("lamina_numa_node_claimed_bytes{{node=\"{}\"}} {}\n", number, 1 * kGiB)));
    EXPECT_THAT(RunLamina({"explain", "bound"}, &laminad).output,
                HasSubstr(fmt::format("NUMA:      {}\n", number)));
    EXPECT_THAT(RunLamina({"claims"}, &laminad).output,
                ::testing::ContainsRegex(fmt::format("0B +{} +yes", number)));
    EXPECT_EQ(laminad.Stop(SIGKILL), 128 + SIGKILL);
    ASSERT_OK(laminad.Start()) << laminad.Log();
  }
  laminad::v1::RetargetRequest grow;
  laminad::v1::Empty empty;
  grow.set_sandbox_id("bound");
  grow.set_generation(*generation);
  grow.set_bytes(whole + kMiB);
  EXPECT_THAT(laminad.Call("Retarget", grow, &empty),
              testing::HasStatus(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(left(), whole - 1 * kGiB);
  grow.set_bytes(2 * kGiB);
  EXPECT_OK(laminad.Call("Retarget", grow, &empty));
  EXPECT_EQ(left(), whole - 2 * kGiB);
  vmm.End();
  EXPECT_OK(laminad.Release("bound", *generation));
  EXPECT_EQ(left(), whole);
}

TEST(LaminadClaims, AShimThatCannotBeSeenGetsNothing) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  laminad::v1::ClaimRequest request = laminad.ClaimOf("unseen", 1 * kGiB);
  request.set_shim_start_time(1);
  laminad::v1::ClaimResponse response;
  EXPECT_THAT(laminad.Call("Claim", request, &response),
              testing::HasStatus(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(ClaimIds(laminad), ElementsAre());
}

TEST(LaminadClaims, HostileRequestsAreRefused) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  EXPECT_THAT(laminad.Claim("../../etc", 1 * kGiB), testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(laminad.Claim("", 1 * kGiB), testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(laminad.Claim("zero", 0), testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(laminad.Claim("huge", UINT64_MAX), testing::HasStatus(absl::StatusCode::kResourceExhausted));
  Sleeper vmm;
  EXPECT_THAT(laminad.Started("unknown", 1, vmm), testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_THAT(laminad.Place("unknown", 1, {"/"}), testing::HasStatus(absl::StatusCode::kFailedPrecondition));
  const auto client = laminad.Connect();
  ASSERT_NE(client, nullptr);
  laminad::v1::Empty empty;
  EXPECT_THAT(client->Call(kService, "Nonsense", empty, &empty, std::chrono::seconds(5)),
              testing::HasStatus(absl::StatusCode::kUnimplemented));
  EXPECT_EQ(laminad.Http("/healthz").status, 200);
}

TEST(LaminadClaims, OnePerRunDirectory) {
  Laminad laminad;
  ASSERT_OK(laminad.Start()) << laminad.Log();
  const auto second =
      RunCommand({LAMINA_BIN_DIR "/laminad", "--config", laminad.config_path()}, std::chrono::seconds(20));
  ASSERT_OK(second);
  EXPECT_EQ(second->exit_code, 1);
  EXPECT_THAT(second->output, HasSubstr("another laminad runs on"));
  EXPECT_OK(laminad.Claim("one", 1 * kGiB));
}

TEST(LaminadClaims, GrantsNothingWhenOthersHaveEatenTheMemory) {
  Laminad laminad("[memory]\ncapacity = \"64GiB\"\nreserve = 0\nmin_available = \"1000TiB\"\n");
  ASSERT_OK(laminad.Start()) << laminad.Log();
  const auto claim = laminad.Claim("one", 1 * kMiB);
  EXPECT_THAT(claim, testing::HasStatus(absl::StatusCode::kUnavailable));
  EXPECT_THAT(std::string(claim.status().message()), HasSubstr("memory.min_available"));
}

TEST(LaminadClaims, ABadConfigNamesTheKey) {
  Laminad laminad("[memory]\ncapacitty = \"1GiB\"\n");
  const auto result =
      RunCommand({LAMINA_BIN_DIR "/laminad", "--config", laminad.config_path()}, std::chrono::seconds(20));
  ASSERT_OK(result);
  EXPECT_EQ(result->exit_code, 2);
  EXPECT_THAT(result->output, HasSubstr("memory.capacity"));
}

}  // namespace
}  // namespace lamina::node

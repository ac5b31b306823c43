#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <future>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <thread>
#include <tuple>

#include "base/file_system.h"
#include "base/units.h"
#include "tests/integration/node/node_kit.h"
#include "tests/testing/status_matchers.h"

namespace lamina::node {
namespace {

using laminad::v1::Placement;
using nlohmann::json;
using ::testing::HasSubstr;

constexpr char kConfig[] =
    "[memory]\ncapacity = \"64GiB\"\nreserve = 0\nmin_available = 0\n"
    "[layers]\narena_size = \"64MiB\"\nmax_layer_size = \"8MiB\"\n";

class LaminadLayers : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_OK(laminad_.Start()) << laminad_.Log(); }

  // A layer directory with one incompressible file.
  std::string MakeLayer(const std::string& name, size_t bytes) {
    const std::string directory = laminad_.directory() + "/snapshots/" + name;
    EXPECT_OK(FileSystem::Real().MakeDirectories(directory, 0755));
    std::mt19937_64 random(bytes + name.size());
    std::string content(bytes, '\0');
    for (char& c : content) c = static_cast<char>(random());
    WriteFile(directory + "/data", content);
    return directory;
  }

  uint64_t Claim(const std::string& id, const std::string& pod_namespace = "shop") {
    laminad::v1::ClaimRequest request = laminad_.ClaimOf(id, 256 * kMiB);
    request.set_pod_namespace(pod_namespace);
    laminad::v1::ClaimResponse response;
    const absl::Status status = laminad_.Call("Claim", request, &response);
    EXPECT_OK(status);
    boot_arenas_ = response.boot_arenas_size();
    return response.generation();
  }

  Laminad laminad_{kConfig};
  int boot_arenas_ = 0;
};

TEST_F(LaminadLayers, OnceForANamespaceAndNotBeyondIt) {
  const std::string base = MakeLayer("base", 1 * kMiB), app = MakeLayer("app", 100 * kKiB);
  const uint64_t first = Claim("first");
  EXPECT_EQ(boot_arenas_, 0);
  const auto placed = laminad_.Place("first", first, {base, app});
  ASSERT_OK(placed);
  ASSERT_EQ(placed->placements_size(), 2);
  for (const Placement& placement : placed->placements()) {
    EXPECT_EQ(placement.kind(), Placement::VPMEM) << placement.why_scsi();
    EXPECT_EQ(placement.layer_id().size(), 64u);
    EXPECT_FALSE(placement.reused());
    EXPECT_TRUE(FileSystem::Real().Exists(placement.arena().path()));
  }
  EXPECT_EQ(placed->placements(0).arena().id(), placed->placements(1).arena().id());

  const uint64_t second = Claim("second");
  EXPECT_EQ(boot_arenas_, 1);  // a hotplug less
  const auto again = laminad_.Place("second", second, {base, app});
  ASSERT_OK(again);
  EXPECT_TRUE(again->placements(0).reused());
  EXPECT_EQ(again->placements(0).offset(), placed->placements(0).offset());

  const uint64_t stranger = Claim("stranger", "bank");
  EXPECT_EQ(boot_arenas_, 0);
  const auto apart = laminad_.Place("stranger", stranger, {base});
  ASSERT_OK(apart);
  EXPECT_NE(apart->placements(0).arena().id(), placed->placements(0).arena().id());
  EXPECT_EQ(apart->placements(0).layer_id(), placed->placements(0).layer_id());

  const std::string metrics = laminad_.Http("/metrics").body;
  EXPECT_THAT(metrics, HasSubstr("lamina_layer_conversions_total 2\n"));
  EXPECT_THAT(metrics, HasSubstr("lamina_layer_reuses_total 2\n"));
  EXPECT_THAT(metrics, HasSubstr("lamina_arena_bytes{arena=\"arena-1\",kind=\"size\"}"));
}

TEST_F(LaminadLayers, ADiskWhereVpmemCannotServe) {
  const std::string large = MakeLayer("large", 9 * kMiB), small = MakeLayer("small", 64 * kKiB);
  const uint64_t generation = Claim("one");
  const auto placed = laminad_.Place("one", generation, {large, small});
  ASSERT_OK(placed);
  EXPECT_EQ(placed->placements(0).kind(), Placement::SCSI);
  EXPECT_THAT(placed->placements(0).why_scsi(), HasSubstr("maximum layer size"));
  EXPECT_TRUE(FileSystem::Real().Exists(placed->placements(0).image_path()));
  EXPECT_EQ(placed->placements(1).kind(), Placement::VPMEM);

  const uint64_t slotless = Claim("slotless");
  const auto without = laminad_.Place("slotless", slotless, {small}, 0);
  ASSERT_OK(without);
  EXPECT_EQ(without->placements(0).kind(), Placement::SCSI);
  EXPECT_THAT(without->placements(0).why_scsi(), HasSubstr("slot"));

  const CliAnswer table = RunLamina({"layers"}, &laminad_);
  EXPECT_EQ(table.exit_code, 0) << table.output;
  EXPECT_THAT(table.output, HasSubstr("maximum layer size"));
  EXPECT_THAT(table.output, HasSubstr("arena-1"));
}

TEST_F(LaminadLayers, GoWithTheirLastUserAndAreCollected) {
  const std::string base = MakeLayer("base", 1 * kMiB);
  const uint64_t generation = Claim("one");
  ASSERT_OK(laminad_.Place("one", generation, {base}));
  EXPECT_EQ(RunLamina({"layers", "gc"}, &laminad_).output, "0B freed\n");
  ASSERT_OK(laminad_.Release("one", generation));
  EXPECT_THAT(json::parse(laminad_.Http("/v1/layers").body)["layers"][0]["users"], ::testing::IsEmpty());
  const CliAnswer collected = RunLamina({"layers", "gc", "-o", "json"}, &laminad_);
  EXPECT_EQ(collected.exit_code, 0) << collected.output;
  EXPECT_GT(json::parse(collected.output)["freed_bytes"], 1 * kMiB);
  EXPECT_THAT(json::parse(laminad_.Http("/v1/layers").body)["layers"], ::testing::IsEmpty());
}

TEST_F(LaminadLayers, AreStillUsedAfterKillNine) {
  const std::string base = MakeLayer("base", 1 * kMiB);
  Sleeper shim, vmm;
  laminad::v1::ClaimRequest request = laminad_.ClaimOf("gone", 256 * kMiB);
  request.set_shim_pid(shim.pid());
  request.set_shim_start_time(shim.start_time());
  laminad::v1::ClaimResponse gone;
  ASSERT_OK(laminad_.Call("Claim", request, &gone));
  ASSERT_OK(laminad_.Place("gone", gone.generation(), {base}));
  const uint64_t generation = Claim("kept");
  ASSERT_OK(laminad_.Started("kept", generation, vmm));
  const auto placed = laminad_.Place("kept", generation, {base});
  ASSERT_OK(placed);
  laminad_.Stop(SIGKILL);
  shim.End();
  ASSERT_OK(laminad_.Start()) << laminad_.Log();
  const json layers = json::parse(laminad_.Http("/v1/layers").body)["layers"];
  ASSERT_EQ(layers.size(), 1u);
  EXPECT_EQ(layers[0]["users"], json::array({"kept"}));
  const auto again = laminad_.Place("kept", generation, {base}, 4, {placed->placements(0).arena().id()});
  ASSERT_OK(again);
  EXPECT_TRUE(again->placements(0).reused());
}

TEST_F(LaminadLayers, AFailureNamesTheLayer) {
  const uint64_t generation = Claim("one");
  const auto missing = laminad_.Place("one", generation, {laminad_.directory() + "/nothing"});
  EXPECT_THAT(missing, testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("/nothing"));
  EXPECT_THAT(laminad_.Place("one", generation, {"relative"}),
              testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(laminad_.Place("one", generation + 1, {"/"}),
              testing::HasStatus(absl::StatusCode::kFailedPrecondition));
}

TEST_F(LaminadLayers, ArePackedWhenNobodyUsesThem) {
  // Arenas of 64 MiB: eight of 8 MiB fill one, the ninth begins another.
  std::vector<std::string> layers;
  for (int i = 0; i < 9; ++i) layers.push_back(MakeLayer("layer" + std::to_string(i), 7 * kMiB));
  const uint64_t first = Claim("first"), second = Claim("second");
  const auto placed = laminad_.Place("first", first, {layers.begin(), layers.end() - 1});
  ASSERT_OK(placed);
  const auto other = laminad_.Place("second", second, {layers.back()});
  ASSERT_OK(other);
  ASSERT_EQ(json::parse(laminad_.Http("/v1/arenas").body)["arenas"].size(), 2u);
  EXPECT_THAT(RunLamina({"layers", "pack"}, &laminad_).output, HasSubstr("0 layers moved"));
  ASSERT_OK(laminad_.Release("first", first));
  ASSERT_EQ(RunLamina({"layers", "gc", "--keep", "21MiB"}, &laminad_).exit_code, 0);
  const CliAnswer packed = RunLamina({"layers", "pack", "-o", "json"}, &laminad_);
  ASSERT_EQ(packed.exit_code, 0) << packed.output;
  EXPECT_EQ(json::parse(packed.output)["removed_arenas"], 1);
  EXPECT_GE(json::parse(packed.output)["moved_layers"], 1);
  const json arenas = json::parse(laminad_.Http("/v1/arenas").body)["arenas"];
  ASSERT_EQ(arenas.size(), 1u);
  EXPECT_EQ(arenas[0]["id"], other->placements(0).arena().id()) << "what a sandbox uses does not move";
}

// Holes of 1 TiB, which mkfs.erofs writes as zeros: they end long after this test.
TEST_F(LaminadLayers, HugeLayersDelayNoOtherTenantsPod) {
  const size_t cores = std::max(2U, std::thread::hardware_concurrency());
  const auto tiny = [&](const std::string& id) {
    const std::string layer = MakeLayer(id, 10 * kKiB);
    const uint64_t generation = Claim(id, "patient");
    const auto start = std::chrono::steady_clock::now();
    EXPECT_OK(laminad_.Place(id, generation, {layer}));
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  const auto converting = [&] {
    return laminad_.Http("/metrics").body.find(fmt::format("lamina_layers_converting {}\n", cores)) !=
           std::string::npos;
  };
  const double alone = tiny("alone");
  std::map<std::string, uint64_t> hostile;
  std::vector<std::future<absl::Status>> placing;
  for (size_t i = 0; i <= cores; ++i) {
    const std::string id = "hostile" + std::to_string(i), layer = MakeLayer(id, 1);
    std::filesystem::resize_file(layer + "/data", 1ULL << 40);
    hostile[id] = Claim(id, "hostile");
    placing.push_back(std::async(std::launch::async, [this, id, layer, generation = hostile[id]] {
      return laminad_.Place(id, generation, {layer}).status();
    }));
  }
  ASSERT_TRUE(Eventually(converting)) << "as many as there are cores, and one waits";
  const double beside = tiny("beside");
  EXPECT_TRUE(converting()) << "it did not wait for any of them";
  RecordProperty("alone_seconds", std::to_string(alone));
  RecordProperty("beside_seconds", std::to_string(beside));
  EXPECT_LT(beside, alone + 10) << "beside those who fill the cores and the disk";
  for (const auto& [id, generation] : hostile) EXPECT_OK(laminad_.Release(id, generation));
  for (auto& one : placing) EXPECT_NOT_OK(one.get());
  const auto left = [&] { return laminad_.Http("/metrics").body.find("lamina_layers_converting 0\n"); };
  EXPECT_TRUE(Eventually([&] { return left() != std::string::npos; }));
  EXPECT_THAT(laminad_.Http("/metrics").body, HasSubstr("lamina_layers_confined 1\n"));
  EXPECT_EQ(json::parse(laminad_.Http("/v1/status").body).value("unconfined", ""), "");
}

// Who shares an arena, by the configured domain: {same namespace, other namespace}.
class LaminadSharing : public ::testing::TestWithParam<std::tuple<const char*, bool, bool>> {};

TEST_P(LaminadSharing, IsAsFarAsTheDomain) {
  const auto& [domain, in_namespace, beyond] = GetParam();
  Laminad laminad(std::string(kConfig) + "sharing = \"" + domain + "\"\n");
  ASSERT_OK(laminad.Start()) << laminad.Log();
  const std::string layer = laminad.directory() + "/layer";
  ASSERT_OK(FileSystem::Real().MakeDirectories(layer, 0755));
  WriteFile(layer + "/file", "content");
  std::map<std::string, std::string> arenas;
  for (const auto& [id, pod_namespace] : std::vector<std::pair<std::string, std::string>>{
           {"a1", "shop"}, {"a2", "shop"}, {"b1", "bank"}, {"none1", ""}, {"none2", ""}}) {
    laminad::v1::ClaimRequest request = laminad.ClaimOf(id, 256 * kMiB);
    request.set_pod_namespace(pod_namespace);
    laminad::v1::ClaimResponse claim;
    ASSERT_OK(laminad.Call("Claim", request, &claim));
    const auto placed = laminad.Place(id, claim.generation(), {layer});
    ASSERT_OK(placed);
    arenas[id] = placed->placements(0).arena().id();
  }
  EXPECT_EQ(arenas["a1"] == arenas["a2"], in_namespace);
  EXPECT_EQ(arenas["a1"] == arenas["b1"], beyond);
  EXPECT_EQ(arenas["none1"] == arenas["none2"], beyond) << "no namespace is not a shared one";
  EXPECT_THAT(laminad.Http("/metrics").body, HasSubstr("lamina_layer_conversions_total 1\n"))
      << "converted once in any case";
}

INSTANTIATE_TEST_SUITE_P(Domains, LaminadSharing,
                         ::testing::Values(std::tuple("pod", false, false),
                                           std::tuple("namespace", true, false),
                                           std::tuple("node", true, true)));

}  // namespace
}  // namespace lamina::node

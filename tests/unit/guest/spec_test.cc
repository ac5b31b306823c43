#include "guest/agent/spec.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

using Json = nlohmann::json;

Json Minimal() {
  return Json::parse(
      R"({"ociVersion":"1.0.2","process":{"args":["/bin/true"],"cwd":"/"},"root":{"path":"/host/rootfs"},
    "linux":{"namespaces":[{"type":"pid"},{"type":"mount"}],"cgroupsPath":"/kubepods/x"}})");
}

absl::StatusOr<Json> Prepare(const Json& spec, SpecContext context = {}) {
  if (context.container_id.empty()) context.container_id = "c1";
  if (context.rootfs.empty()) context.rootfs = "/run/lamina/containers/c1/rootfs";
  auto prepared = PrepareSpec(spec.dump(), context);
  if (!prepared.ok()) return prepared.status();
  return Json::parse(prepared->config_json);
}

TEST(Spec, TheGuestsFactsGoIn) {
  Json spec = Minimal();
  spec["process"]["consoleSize"] = {{"width", 80}, {"height", 24}};
  const auto prepared = Prepare(spec);
  ASSERT_OK(prepared);
  EXPECT_EQ((*prepared)["root"]["path"], "/run/lamina/containers/c1/rootfs");
  EXPECT_EQ((*prepared)["linux"]["cgroupsPath"], "/lamina/c1");
  EXPECT_EQ((*prepared)["process"]["terminal"], false);
  EXPECT_FALSE((*prepared)["process"].contains("consoleSize"));
  EXPECT_EQ((*prepared)["ociVersion"], "1.0.2");
}

TEST(Spec, EveryVersionOneIsPutInTheWordsOfCrunsOwn) {
  Json spec = Minimal();
  for (const char* version : {"1.0.0", "1.1.0", "1.2.1", "1.0.2-dev"}) {
    spec["ociVersion"] = version;
    const auto prepared = Prepare(spec);
    ASSERT_OK(prepared);
    EXPECT_EQ((*prepared)["ociVersion"], "1.0.2");
  }
  for (const Json& version : {Json("2.0.0"), Json(""), Json(1), Json()}) {
    spec["ociVersion"] = version;
    EXPECT_THAT(Prepare(spec), testing::HasStatus(absl::StatusCode::kInvalidArgument)) << version;
  }
  spec.erase("ociVersion");
  EXPECT_NE(std::string(Prepare(spec).status().message()).find("ociVersion"), std::string::npos);
}

TEST(Spec, WhatTheGuestCannotDoGoesOut) {
  Json spec = Minimal();
  spec["hooks"] = {{"prestart", Json::array({{{"path", "/bin/evil"}}})}};
  spec["hostname"] = "web";
  spec["process"]["apparmorProfile"] = "cri-containerd.apparmor.d";
  spec["process"]["selinuxLabel"] = "x";
  spec["linux"]["mountLabel"] = "x";
  spec["linux"]["intelRdt"] = Json::object();
  spec["linux"]["resources"] = Json::parse(
      R"({"network":{"classID":1},"cpu":{"shares":2,"realtimeRuntime":1},"memory":{"limit":5,"swappiness":1},
          "hugepageLimits":[{"pageSize":"2MB","limit":0},{"pageSize":"1GB","limit":0}]})");
  SpecContext context;
  context.has_huge_pages = [](std::string_view size) { return size == "2MB"; };
  const auto prepared = Prepare(spec, context);
  ASSERT_OK(prepared);
  EXPECT_FALSE(prepared->contains("hooks"));
  EXPECT_FALSE(prepared->contains("hostname"));
  EXPECT_FALSE((*prepared)["process"].contains("apparmorProfile"));
  EXPECT_FALSE((*prepared)["process"].contains("selinuxLabel"));
  EXPECT_FALSE((*prepared)["linux"].contains("mountLabel"));
  EXPECT_FALSE((*prepared)["linux"].contains("intelRdt"));
  const Json& resources = (*prepared)["linux"]["resources"];
  EXPECT_EQ(resources, Json::parse(R"({"cpu":{"shares":2},"memory":{"limit":5},
                                       "hugepageLimits":[{"pageSize":"2MB","limit":0}]})"));
}

TEST(Spec, AHostnameStaysWithAUtsNamespaceOfItsOwn) {
  Json spec = Minimal();
  spec["hostname"] = "web";
  spec["linux"]["namespaces"].push_back({{"type", "uts"}});
  EXPECT_EQ((*Prepare(spec))["hostname"], "web");
}

TEST(Spec, NamespacePathsOfTheHostAreRefused) {
  Json spec = Minimal();
  spec["linux"]["namespaces"].push_back({{"type", "network"}, {"path", "/var/run/netns/cni-1"}});
  const auto prepared = Prepare(spec);
  ASSERT_THAT(prepared, testing::HasStatus(absl::StatusCode::kInvalidArgument));
  EXPECT_NE(std::string(prepared.status().message()).find("network"), std::string::npos);
  spec["linux"]["namespaces"][2]["path"] = "/proc/17/ns/net";
  EXPECT_OK(Prepare(spec));
}

TEST(Spec, BrokenSpecsAreRefusedWithWhere) {
  const SpecContext context{.container_id = "c1", .rootfs = "/r"};
  for (const char* bad :
       {"", "[]", "{", "null", R"({"process":3})", R"({"process":{"args":[],"cwd":"/"}})",
        R"({"process":{"args":["x",1],"cwd":"/"}})", R"({"process":{"args":["x"]}})",
        R"({"process":{"args":["x"],"cwd":"rel"}})",
        R"({"process":{"args":["x"],"cwd":"/"},"linux":{"namespaces":{}}})",
        R"({"process":{"args":["x"],"cwd":"/"},"linux":{"namespaces":[{"path":"/proc/1"}]}})"}) {
    EXPECT_THAT(PrepareSpec(bad, context), testing::HasStatus(absl::StatusCode::kInvalidArgument)) << bad;
  }
  std::string deep = R"({"process":{"args":["x"],"cwd":"/"},"a":)";
  deep += std::string(100000, '[') + std::string(100000, ']') + "}";
  EXPECT_THAT(PrepareSpec(deep, context), testing::HasStatus(absl::StatusCode::kInvalidArgument));
}

TEST(Spec, ARootWithoutLayersMustBeShared) {
  SpecContext context{.container_id = "c1"};
  Json spec = Minimal();
  EXPECT_NOT_OK(PrepareSpec(spec.dump(), context));
  spec["root"]["path"] = "/run/lamina/shared/../../etc";
  EXPECT_NOT_OK(PrepareSpec(spec.dump(), context));
  spec["root"]["path"] = "/run/lamina/shared/rootfs";
  const auto prepared = PrepareSpec(spec.dump(), context);
  ASSERT_OK(prepared);
  EXPECT_EQ(prepared->rootfs, "/run/lamina/shared/rootfs");
}

TEST(Spec, WhatItTakesOfTheSharedDirectoryIsNamedOnce) {
  Json spec = Minimal();
  spec["mounts"] = {{{"destination", "/a"}, {"source", "/run/lamina/shared/c1-0"}},
                    {{"destination", "/b"}, {"source", "/run/lamina/shared/c1-1/sub/file"}},
                    {{"destination", "/c"}, {"source", "/run/lamina/shared/c1-1"}},
                    {{"destination", "/d"}, {"source", "/run/lamina/shared/../../etc"}},
                    {{"destination", "/e"}, {"source", "/run/lamina/shm"}},
                    {{"destination", "/f"}, {"source", 5}},
                    {{"destination", "/g"}},
                    "no mount"};
  auto prepared = PrepareSpec(spec.dump(), {.container_id = "c1", .rootfs = "/run/lamina/shared/root/x"});
  ASSERT_OK(prepared);
  EXPECT_EQ(prepared->shared_names, (std::vector<std::string>{"root", "c1-0", "c1-1"}));
  spec["mounts"] = "none";
  prepared = PrepareSpec(spec.dump(), {.container_id = "c1", .rootfs = "/r"});
  ASSERT_OK(prepared);
  EXPECT_TRUE(prepared->shared_names.empty());
}

TEST(Spec, BytesThatAreNotTextDoNotThrow) {
  const std::string spec = "{\"process\":{\"args\":[\"\xff\xfe\"],\"cwd\":\"/\"}}";
  // The parser refuses them; whichever way, there is an answer.
  EXPECT_NOT_OK(PrepareSpec(spec, {.container_id = "c1", .rootfs = "/r"}));
}

TEST(Spec, IsBelowWantsWholeCleanParts) {
  EXPECT_TRUE(IsBelow("/a/b/c", "/a/b"));
  for (const char* bad :
       {"/a/b", "/a/b/", "/a/bc", "/a/b/../c", "/a/b/./c", "/a/b//c", "/a/b/c/", "a/b/c", ""}) {
    EXPECT_FALSE(IsBelow(bad, "/a/b")) << bad;
  }
}

TEST(Spec, ExecsAreCheckedTheSameWay) {
  const auto process = PrepareProcess(R"({"args":["sh"],"cwd":"/","apparmorProfile":"x"})", true);
  ASSERT_OK(process);
  EXPECT_EQ(Json::parse(process->json), Json::parse(R"({"args":["sh"],"cwd":"/","terminal":true})"));
  EXPECT_FALSE(process->oom_score_adj.has_value());
  EXPECT_EQ(PrepareProcess(R"({"args":["sh"],"cwd":"/","oomScoreAdj":-997})", true)->oom_score_adj, -997);
  for (const char* score : {"-1001", "1001", "1.5", "\"1\"", "null", "18446744073709551615"}) {
    EXPECT_THAT(PrepareProcess(fmt::format(R"({{"args":["sh"],"cwd":"/","oomScoreAdj":{}}})", score), true),
                testing::HasStatus(absl::StatusCode::kInvalidArgument, "oomScoreAdj"))
        << score;
  }
  EXPECT_NOT_OK(PrepareProcess(R"({"args":[],"cwd":"/"})", false));
}

TEST(Spec, ResourcesForAnUpdateLoseWhatCgroupV2HasNot) {
  const auto resources =
      PrepareResources(R"({"memory":{"limit":1,"kernel":2},"hugepageLimits":[{"pageSize":"2MB"}]})",
                       [](std::string_view) { return false; });
  ASSERT_OK(resources);
  EXPECT_EQ(Json::parse(*resources), Json::parse(R"({"memory":{"limit":1}})"));
}

TEST(Spec, DevicesComeUnderTheGuestsOwnNumbers) {
  SpecContext context;
  context.devices = {{"/data", 8, 16, "r", 0660, 5, 6}};
  const auto prepared = Prepare(Minimal(), context);
  ASSERT_OK(prepared);
  EXPECT_EQ(
      (*prepared)["linux"]["devices"],
      Json::parse(R"([{"path":"/data","type":"b","major":8,"minor":16,"fileMode":432,"uid":5,"gid":6}])"));
  EXPECT_EQ((*prepared)["linux"]["resources"]["devices"],
            Json::parse(R"([{"allow":true,"type":"b","major":8,"minor":16,"access":"r"}])"));
  for (const ContainerDevice& wrong : {ContainerDevice{"data", 8, 16, "r"}, ContainerDevice{"", 8, 16, "r"},
                                       ContainerDevice{"/data", 8, 16, "rx"}}) {
    context.devices = {wrong};
    EXPECT_THAT(Prepare(Minimal(), context), testing::HasStatus(absl::StatusCode::kInvalidArgument))
        << wrong.path;
  }
  // One that a rule for all allows already.
  context.devices = {{"/dev/kmsg", 1, 11, "", 0600, 0, 0, false}};
  const auto own = Prepare(Minimal(), context);
  ASSERT_OK(own);
  EXPECT_EQ((*own)["linux"]["devices"][0]["type"], "c");
  EXPECT_EQ((*own)["linux"]["resources"]["devices"], Json::array());
  Json odd = Minimal();
  odd["linux"]["devices"] = 7;
  context.devices = {{"/data", 8, 16, "r"}};
  EXPECT_THAT(Prepare(odd, context), testing::HasStatus(absl::StatusCode::kInvalidArgument, "linux.devices"));
}

}  // namespace
}  // namespace lamina::guest

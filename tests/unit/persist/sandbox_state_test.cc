#include "persist/sandbox_state.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <set>

#include "base/crc32.h"
#include "base/file_system.h"
#include "base/framing.h"
#include "tests/testing/status_matchers.h"
#include "tests/unit/persist/random_state.h"

namespace lamina::persist {
namespace {

using absl::StatusCode;
using nlohmann::json;
using testing::HasStatus;

SandboxState Decoded(const std::string& content) {
  auto state = DecodeState(content, "f");
  EXPECT_OK(state.status());
  return state.value_or(SandboxState());
}

// A file with a right header over any body, as a writer of `version` would have left it.
std::string WithHeader(int version, const std::string& body) {
  if (version >= 3) return EncodeFrame({"state", 3, version}, body);
  return fmt::format("lamina-state {} {:08x}\n{}", version, Crc32(body), body);
}

TEST(SandboxState, ComesBackAsItWas) {
  RandomState random(1);
  for (int i = 0; i < 300; ++i) {
    const SandboxState state = random.Make("pod-" + std::to_string(i));
    const std::string content = EncodeState(state);
    const SandboxState read = Decoded(content);
    // The encoding says every field: equal texts are equal states.
    ASSERT_EQ(EncodeState(read), content);
    ASSERT_EQ(read.vmm.pid, state.vmm.pid);
    ASSERT_EQ(read.claim_generation, state.claim_generation);
    ASSERT_EQ(read.numa_nodes, state.numa_nodes);
    ASSERT_EQ(read.containers.size(), state.containers.size());
    ASSERT_EQ(read.netns_path, state.netns_path);
    ASSERT_EQ(read.life_cycle, state.life_cycle);
  }
}

TEST(SandboxState, AChangeOfAnyFieldChangesTheFile) {
  RandomState random(7);
  SandboxState state = random.Make("p");
  ContainerState& container = state.containers["c"];
  container.id = "c";
  container.bundle = "/b";
  container.life = ContainerLife::kStopped;
  container.layer_ids = {"l"};
  container.mounts = {"v"};
  container.disks = {"d"};
  container.pid = 3;
  container.stdin_path = "/fifo/in";
  container.stdout_path = "/fifo/out";
  container.stderr_path = "/fifo/err";
  container.terminal = true;
  container.first_stream = 4;
  state.layers = {{"l", "a", 1, 2, "", "", "p"}};
  std::set<std::string> seen = {EncodeState(state)};
  const auto changed = [&](const char* what) { EXPECT_TRUE(seen.insert(EncodeState(state)).second) << what; };
  state.numa_nodes.push_back(7), changed("NUMA nodes");
  state.mac += "1", changed("mac");
  state.netns_path += "1", changed("netns");
  state.tap_name += "1", changed("tap");
  state.vmm.start_time ^= 1, changed("vmm");
  state.virtiofsd.pid ^= 1, changed("virtiofsd");
  state.shim.pid ^= 1, changed("shim");
  state.cgroup_dirs.push_back("/x"), changed("cgroups");
  state.arenas.push_back("x"), changed("arenas");
  state.has_pod_files = !state.has_pod_files, changed("pod files");
  state.layers[0].offset ^= 1, changed("layer");
  state.layers[0].tree_path += "1", changed("hash tree");
  state.disks.push_back({"r", "/image"}), changed("the pod's disks");
  state.disks[0].image.clear(), changed("an image");
  state.containers["c"].disks.push_back("x"), changed("disks");
  state.containers["c"].devices.push_back("x"), changed("devices");
  state.containers["c"].pid ^= 1, changed("pid");
  state.containers["c"].exit_status ^= 1, changed("exit status");
  state.containers["c"].exit_unix_nanos ^= 1, changed("exit time");
  state.containers["c"].life = ContainerLife::kRunning, changed("a container's life");
  state.containers["c"].stdin_path += "1", changed("stdin");
  state.containers["c"].stdout_path += "1", changed("stdout");
  state.containers["c"].stderr_path += "1", changed("stderr");
  state.containers["c"].terminal = false, changed("terminal");
  state.containers["c"].first_stream += 1, changed("streams");
  state.containers.erase("c"), changed("a container less");
  state.life_cycle = static_cast<LifeCycle>((static_cast<int>(state.life_cycle) + 1) % 4), changed("life");
}

TEST(SandboxState, DamageAtAnyByteIsSeen) {
  RandomState random(2);
  const std::string content = EncodeState(random.Make("damaged"));
  for (size_t i = 0; i < content.size(); ++i) {
    for (const int bit : {0, 5}) {
      std::string bad = content;
      bad[i] = static_cast<char>(bad[i] ^ (1 << bit));
      const auto state = DecodeState(bad, "/x/state.json");
      ASSERT_THAT(state, HasStatus(StatusCode::kDataLoss, "/x/state.json: damaged (")) << "byte " << i;
    }
  }
}

TEST(SandboxState, EveryTruncationIsSeen) {
  RandomState random(3);
  const std::string content = EncodeState(random.Make("cut"));
  for (size_t size = 0; size < content.size(); ++size)
    ASSERT_THAT(DecodeState(content.substr(0, size), "/x"), HasStatus(StatusCode::kDataLoss, "/x")) << size;
  EXPECT_THAT(DecodeState(content + " ", "/x"), HasStatus(StatusCode::kDataLoss, "1 bytes too many"));
}

TEST(SandboxState, ANewerVersionIsRefusedWhateverItHolds) {
  EXPECT_THAT(DecodeState(WithHeader(kStateVersion + 1, "not even JSON"), "/x"),
              HasStatus(StatusCode::kFailedPrecondition, "/x: written by a newer Lamina (version 4"));
  for (const char* version : {"0", "-1", "3", "12", "x"}) {
    EXPECT_THAT(DecodeState(fmt::format("lamina-state {} 00000000\n", version), "/x"),
                HasStatus(StatusCode::kDataLoss, "/x: damaged ("))
        << version;
  }
}

TEST(SandboxState, VersionOneIsMigratedAndKeepsWhatItWasCreatedWith) {
  // As the first Lamina wrote it: the network's values stand among the others.
  const json old = {{"created_with_version", 1},
                    {"life_cycle", "ready"},
                    {"sandbox_id", "pod"},
                    {"vmm", {{"pid", 7}, {"start_time", 8}}},
                    {"netns_path", "/run/netns/x"},
                    {"tap_name", "lamina-tap0"},
                    {"containers", {{{"id", "c"}, {"state", "running"}, {"mounts", {"c-0"}}}}}};
  const SandboxState state = Decoded(WithHeader(1, old.dump()));
  EXPECT_EQ(state.created_with_version, 1);
  EXPECT_EQ(state.life_cycle, LifeCycle::kReady);
  EXPECT_EQ(state.netns_path, "/run/netns/x");
  EXPECT_EQ(state.tap_name, "lamina-tap0");
  EXPECT_EQ(state.mac, "");
  EXPECT_EQ(state.vmm.pid, 7);
  ASSERT_EQ(state.containers.count("c"), 1U);
  EXPECT_EQ(state.containers.at("c").mounts, std::vector<std::string>{"c-0"});
  // Written anew it is of the present version, and still tells where it comes from.
  const std::string again = EncodeState(state);
  EXPECT_EQ(again.rfind(fmt::format("lamina-state {} ", kStateVersion), 0), 0U);
  EXPECT_EQ(Decoded(again).created_with_version, 1);
  EXPECT_EQ(Decoded(again).netns_path, "/run/netns/x");
}

// As the last Lamina wrote it that did not frame its files so.
TEST(SandboxState, VersionTwoIsRead) {
  const std::string old =
      *FileSystem::Real().Read(LAMINA_SOURCE_DIR "/tests/data/formats/state-2.json", 1 << 20);
  ASSERT_TRUE(old.starts_with("lamina-state 2 "));
  const SandboxState state = Decoded(old);
  EXPECT_EQ(state.created_with_version, 1);
  EXPECT_EQ(state.life_cycle, LifeCycle::kReady);
  EXPECT_EQ(state.sandbox_id, "pod-1");
  EXPECT_EQ(state.numa_nodes, (std::vector<uint32_t>{0, 1}));
  EXPECT_EQ(state.vmm, (ProcessId{13, 14}));
  EXPECT_EQ(state.mac, "02:00:00:00:00:01");
  ASSERT_EQ(state.layers.size(), 1U);
  EXPECT_EQ(state.layers[0].offset, 4096U);
  EXPECT_EQ(state.containers.at("c").disks, std::vector<std::string>{"/d.img"});
  const std::string again = EncodeState(state);
  EXPECT_TRUE(again.starts_with("lamina-state 3 "));
  // What it said it still says; fields that are younger are there beside.
  const auto fields = [](const std::string& text) {
    return nlohmann::json::parse(text.substr(text.find('\n'))).flatten();
  };
  const nlohmann::json before = fields(old), after = fields(again);
  for (const auto& [field, value] : before.items())
    EXPECT_EQ(after.value(field, nlohmann::json()), value) << field;
  EXPECT_EQ(EncodeState(Decoded(again)), again);
  for (size_t at = 0; at < old.size(); ++at) {
    std::string bad = old;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    EXPECT_THAT(DecodeState(bad, "/x"), HasStatus(StatusCode::kDataLoss, "/x: damaged (")) << at;
    EXPECT_THAT(DecodeState(old.substr(0, at), "/x"), HasStatus(StatusCode::kDataLoss, "/x: damaged ("))
        << at;
  }
}

TEST(SandboxState, AContentThatIsNoStateIsDataLoss) {
  const std::string id = R"("sandbox_id":"p","life_cycle":"ready")";
  EXPECT_OK(DecodeState(WithHeader(kStateVersion, "{" + id + "}"), "/x").status());
  for (const std::string& body : {
           std::string(""),
           std::string("[]"),
           std::string("null"),
           std::string("{}"),
           std::string(R"({"sandbox_id":"../up","life_cycle":"ready"})"),
           std::string(R"({"sandbox_id":"p","life_cycle":"asleep"})"),
           "{" + id + R"(,"vcpus":-1})",
           "{" + id + R"(,"vcpus":4294967296})",
           "{" + id + R"(,"vcpus":1.5})",
           "{" + id + R"(,"memory_bytes":-1})",
           "{" + id + R"(,"shim":{"pid":18446744073709551615}})",
           "{" + id + R"(,"shim":[]})",
           "{" + id + R"(,"network":7})",
           "{" + id + R"(,"network":{"mac":7}})",
           "{" + id + R"(,"arenas":["a",1]})",
           "{" + id + R"(,"disks":["a"]})",
           "{" + id + R"(,"disks":[{"name":1}]})",
           "{" + id + R"(,"layers":{}})",
           "{" + id + R"(,"layers":[7]})",
           "{" + id + R"(,"containers":[{"id":"a/b"}]})",
           "{" + id + R"(,"containers":[[]]})",
           "{" + id + R"(,"created_with_version":0})",
           "{" + id + fmt::format(R"(,"created_with_version":{}}})", kStateVersion + 1),
       }) {
    EXPECT_THAT(DecodeState(WithHeader(kStateVersion, body), "/x"), HasStatus(StatusCode::kDataLoss, "/x"))
        << body;
  }
  for (const int version : {1, 2, kStateVersion}) {
    EXPECT_THAT(DecodeState(WithHeader(version, std::string(1 << 20, '[')), "/x"),
                HasStatus(StatusCode::kDataLoss, "/x"));
  }
}

}  // namespace
}  // namespace lamina::persist

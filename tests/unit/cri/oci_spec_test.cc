#include "cri/oci_spec.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/file_system.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

using absl::StatusCode;
using nlohmann::json;
using ::testing::Contains;
using ::testing::ElementsAre;
using testing::HasStatus;
using ::testing::HasSubstr;

BundleSpec Parsed(const json& spec) {
  auto parsed = ParseSpec(spec.dump(), "config.json");
  EXPECT_OK(parsed.status());
  return parsed.value_or(BundleSpec());
}

json Guest(const json& spec, const std::map<size_t, std::string>& sources = {},
           std::vector<std::string>* notes = nullptr) {
  std::vector<std::string> unused;
  auto text = GuestSpec(spec.dump(), sources, notes != nullptr ? *notes : unused);
  EXPECT_OK(text.status());
  return text.ok() ? json::parse(*text) : json();
}

TEST(ParseSpec, ReadsWhatTheShimNeeds) {
  const BundleSpec spec = Parsed(json::parse(R"({
    "hostname": "web", "process": {"oomScoreAdj": -998},
    "annotations": {"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "abc",
                    "io.kubernetes.cri.container-name": "c", "other": 7},
    "mounts": [{"destination": "/a", "type": "bind", "source": "/h", "options": ["ro", 1, "rslave"]},
               {"destination": "/b", "type": "none", "options": ["rbind"]},
               {"destination": "/proc", "type": "proc", "source": "proc"}],
    "linux": {"cgroupsPath": "/kubepods/x", "sysctl": {"net.core.somaxconn": "5"},
      "namespaces": [{"type": "pid"}, {"type": "network", "path": "/run/netns/n"}],
      "resources": {"cpu": {"quota": 50000, "period": 100000, "shares": 512}, "memory": {"limit": 1048576},
                    "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}, {"limit": -1}, 5]}}})"));
  EXPECT_EQ(spec.hostname, "web");
  EXPECT_EQ(spec.Annotation("container-type"), "sandbox");
  EXPECT_EQ(spec.sandbox_id("fallback"), "abc");
  EXPECT_EQ(spec.annotations.count("other"), 0U) << "what is no text is no annotation";
  EXPECT_EQ(spec.cgroups_path, "/kubepods/x");
  EXPECT_EQ(spec.oom_score_adj, -998);
  EXPECT_TRUE(spec.has_network_namespace);
  EXPECT_EQ(spec.netns_path, "/run/netns/n");
  EXPECT_EQ(spec.sysctls.at("net.core.somaxconn"), "5");
  ASSERT_EQ(spec.mounts.size(), 3U);
  EXPECT_TRUE(spec.mounts[0].is_bind() && spec.mounts[0].read_only() && spec.mounts[0].follows_host());
  EXPECT_TRUE(spec.mounts[1].is_bind());
  EXPECT_FALSE(spec.mounts[1].read_only() || spec.mounts[1].follows_host());
  EXPECT_FALSE(spec.mounts[2].is_bind());
  EXPECT_EQ(spec.limits.name, "container c");
  EXPECT_EQ(spec.limits.cpu.quota, 50'000);
  EXPECT_EQ(spec.limits.cpu.period, 100'000U);
  EXPECT_EQ(spec.limits.cpu.shares, 512U);
  EXPECT_EQ(spec.limits.memory_bytes, 1 << 20);
  EXPECT_EQ(spec.limits.extra_memory_bytes, 4U << 20);
}

TEST(ParseSpec, AnEmptySpecHasNoValues) {
  const BundleSpec spec = Parsed(json::object());
  EXPECT_EQ(spec.Annotation("container-type"), "");
  EXPECT_EQ(spec.sandbox_id("id"), "id");
  EXPECT_FALSE(spec.has_network_namespace);
  EXPECT_TRUE(spec.mounts.empty());
  EXPECT_EQ(spec.oom_score_adj, 0);
  EXPECT_FALSE(spec.limits.memory_bytes.has_value());
}

TEST(ParseSpec, PartsOfAnotherTypeAreAbsent) {
  const BundleSpec spec = Parsed(json::parse(R"({"annotations": [1], "hostname": {}, "mounts": 5,
      "linux": {"namespaces": {}, "cgroupsPath": [], "sysctl": "x",
                "resources": {"cpu": [], "memory": {"limit": "1"}, "hugepageLimits": {}}}})"));
  EXPECT_TRUE(spec.annotations.empty() && spec.hostname.empty() && spec.mounts.empty());
  EXPECT_FALSE(spec.limits.memory_bytes.has_value());
}

TEST(ParseSpec, NumbersBeyondAllBoundsDoNotWrap) {
  const BundleSpec spec = Parsed(json::parse(R"({"linux": {"resources": {
      "memory": {"limit": 18446744073709551615},
      "cpu": {"quota": -1, "period": 18446744073709551615, "shares": -4},
      "hugepageLimits": [{"limit": 9223372036854775807}, {"limit": 9223372036854775807},
                         {"limit": 18446744073709551615}, {"limit": 9223372036854775807}]}}})"));
  EXPECT_EQ(spec.limits.memory_bytes, INT64_MAX);
  EXPECT_EQ(spec.limits.cpu.quota, -1);
  EXPECT_EQ(spec.limits.cpu.period, static_cast<uint64_t>(INT64_MAX));
  EXPECT_FALSE(spec.limits.cpu.shares.has_value());
  EXPECT_EQ(spec.limits.extra_memory_bytes, static_cast<uint64_t>(INT64_MAX));
}

TEST(ParseSpec, HostileTextsAreRefusedByName) {
  for (const std::string& text : {std::string(""), std::string("[]"), std::string("7"), std::string("{"),
                                  std::string("{\"a\":\"\xff\"}"), std::string("null")}) {
    EXPECT_THAT(ParseSpec(text, "/b/config.json"), HasStatus(StatusCode::kInvalidArgument, "/b/config.json"))
        << text;
    std::vector<std::string> notes;
    EXPECT_THAT(GuestSpec(text, {}, notes), HasStatus(StatusCode::kInvalidArgument, "config.json")) << text;
  }
  const std::string deep = "{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}";
  EXPECT_THAT(ParseSpec(deep, "f"), HasStatus(StatusCode::kInvalidArgument, "deeper than 64"));
  const std::string open(1 << 20, '[');
  EXPECT_THAT(ParseSpec(open, "f"), HasStatus(StatusCode::kInvalidArgument, "deeper than 64"));
  // The kernel's calls end a path at a NUL: "/kubepods\0x" would be /kubepods.
  EXPECT_THAT(ParseSpec(R"({"linux": {"cgroupsPath": "/kubepods\u0000x"}})", "f"),
              HasStatus(StatusCode::kInvalidArgument, "NUL"));
  EXPECT_THAT(ParseSpec(R"({"mounts": [{"destination": "/a", "source": "/etc\u0000/x"}]})", "f"),
              HasStatus(StatusCode::kInvalidArgument, "NUL"));
  EXPECT_THAT(ParseSpec(R"({"mounts": [{"source": "/x"}]})", "f"),
              HasStatus(StatusCode::kInvalidArgument, "without a destination"));
  EXPECT_THAT(ParseSpec(R"({"mounts": ["x"]})", "f"),
              HasStatus(StatusCode::kInvalidArgument, "without a destination"));
}

TEST(ReadSpec, NamesTheFile) {
  const testing::TempDir dir;
  EXPECT_THAT(ReadSpec(dir.path()), HasStatus(StatusCode::kNotFound, dir / "config.json"));
  ASSERT_OK(FileSystem::Real().WriteAndSync(dir / "config.json", std::string(9 << 20, ' '), 0600));
  EXPECT_THAT(ReadSpec(dir.path()), HasStatus(StatusCode::kResourceExhausted, dir / "config.json"));
}

TEST(GuestSpec, KeepsWhatTheContainerIs) {
  const json spec = json::parse(R"({"ociVersion": "1.0.2",
    "process": {"args": ["sh"], "env": ["A=1"], "cwd": "/x", "user": {"uid": 5, "additionalGids": [6]},
                "capabilities": {"bounding": ["CAP_CHOWN"]}, "rlimits": [{"type": "RLIMIT_NOFILE"}],
                "noNewPrivileges": true},
    "root": {"path": "rootfs", "readonly": true},
    "linux": {"maskedPaths": ["/proc/kcore"], "readonlyPaths": ["/proc/sys"],
              "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": []},
              "rootfsPropagation": "rslave",
              "resources": {"memory": {"limit": 100}, "pids": {"limit": 9}, "cpu": {"quota": 1, "shares": 2},
                            "devices": [{"allow": false, "access": "rwm"}]}}})");
  const json guest = Guest(spec);
  EXPECT_EQ(guest["process"], spec["process"]);
  EXPECT_EQ(guest["root"], spec["root"]);
  for (const char* key : {"maskedPaths", "readonlyPaths", "seccomp", "rootfsPropagation", "resources"}) {
    EXPECT_EQ(guest["linux"][key], spec["linux"][key]) << key;
  }
}

TEST(GuestSpec, DropsWhatIsTheHosts) {
  std::vector<std::string> notes;
  const json guest = Guest(json::parse(R"({"hostname": "h", "hooks": {"prestart": [{"path": "/bin/sh"}]},
    "process": {"args": ["a"], "apparmorProfile": "p", "selinuxLabel": "l", "oomScoreAdj": -997},
    "linux": {"cgroupsPath": "/host", "mountLabel": "l", "intelRdt": {}, "sysctl": {"kernel.x": "1"},
      "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 1}], "gidMappings": [],
      "seccomp": {"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/run/host.sock"},
      "devices": [{"path": "/dev/null"}, {"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}, {"path": "/dev/fuse"}, 7],
      "resources": {"devices": [{"allow": true, "access": "rwm"}], "blockIO": {"weight": 10}, "network": {"classID": 1}, "rdma": {},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
        "cpu": {"cpus": "0-3", "mems": "0", "realtimeRuntime": 1, "realtimePeriod": 1, "shares": 10}}}})"),
                           {}, &notes);
  for (const char* key : {"hostname", "hooks"}) EXPECT_FALSE(guest.contains(key)) << key;
  EXPECT_EQ(guest["process"], json({{"args", {"a"}}, {"oomScoreAdj", -997}}));
  for (const char* key : {"cgroupsPath", "mountLabel", "intelRdt", "sysctl", "uidMappings", "gidMappings"})
    EXPECT_FALSE(guest["linux"].contains(key)) << key;
  EXPECT_EQ(guest["linux"]["seccomp"], json({{"defaultAction", "SCMP_ACT_NOTIFY"}}));
  EXPECT_EQ(guest["linux"]["devices"], json::array({{{"path", "/dev/null"}}}));
  EXPECT_EQ(guest["linux"]["resources"]["cpu"], json({{"shares", 10}}));
  EXPECT_THAT(notes, Contains(HasSubstr("the VM's own")));
  for (const char* what : {"blockIO", "hugepageLimits", "network", "rdma", "listenerPath"})
    EXPECT_THAT(notes, Contains(HasSubstr(what)));
}

TEST(GuestSpec, ADeviceOfTheNodeIsRefusedWithItsPath) {
  std::vector<std::string> notes;
  const auto with = [](const char* device, const char* rules) {
    return fmt::format(R"({{"linux": {{"devices": [{}], "resources": {{"devices": [{}]}}}}}})", device,
                       rules);
  };
  const char *fuse = R"({"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229})",
             *disk = R"({"path": "/dev/sda", "type": "b", "major": 8, "minor": 0})",
             *its_rule = R"({"allow": true, "type": "b", "major": 8, "minor": 0, "access": "rw"})",
             *none = R"({"allow": false, "access": "rwm"})", *all = R"({"allow": true, "access": "rwm"})";
  EXPECT_THAT(GuestSpec(with(fuse, none), {}, notes), HasStatus(StatusCode::kInvalidArgument, "/dev/fuse"));
  EXPECT_THAT(GuestSpec(with(disk, none), {}, notes), HasStatus(StatusCode::kInvalidArgument, "/dev/sda"));
  EXPECT_THAT(GuestSpec(with("7", none), {}, notes), HasStatus(StatusCode::kInvalidArgument, "device"));
  EXPECT_OK(GuestSpec(with(disk, its_rule), {}, notes));
  EXPECT_OK(GuestSpec(with(fuse, all), {}, notes));
  // A rule that names a type or a number is not one for all.
  for (const char* rule : {R"({"allow": true, "type": "c", "access": "rwm"})",
                           R"({"allow": true, "major": 10, "access": "rwm"})", R"({"allow": false})", "7"}) {
    EXPECT_NOT_OK(GuestSpec(with(fuse, rule), {}, notes)) << rule;
  }
}

TEST(GuestSpec, NamespacesOfThePodAreTheVmsOwn) {
  const auto types = [](const char* namespaces) {
    std::vector<std::string> names;
    const json guest = Guest(json::parse(fmt::format(R"({{"linux": {{"namespaces": {}}}}})", namespaces)));
    for (const json& item : guest["linux"]["namespaces"]) {
      EXPECT_FALSE(item.contains("path"));
      names.push_back(item["type"]);
    }
    return names;
  };
  EXPECT_THAT(types(R"([{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                        {"type": "network", "path": "/run/netns/x"}, {"type": "user"}])"),
              ElementsAre("pid", "mount", "cgroup"));
  EXPECT_THAT(types(R"([{"type": "pid", "path": "/proc/1/ns/pid"}, {"type": "cgroup"}])"),
              ElementsAre("cgroup"));
  EXPECT_THAT(types(R"([{"path": "/x"}, 7, {"type": "magic"}, {"type": 5}])"), ElementsAre("cgroup"));
  EXPECT_THAT(types("{}"), ElementsAre("cgroup"));
}

TEST(GuestSpec, MountsComeFromTheirGuestSources) {
  const json spec = {{"mounts",
                      {{{"destination", "/proc"}, {"type", "proc"}, {"source", "proc"}},
                       {{"destination", "/data"}, {"type", "bind"}, {"source", "/host"}, {"options", {"ro"}}},
                       {{"destination", "/gone"}, {"type", "bind"}, {"source", "/host2"}}}}};
  const json mounts = Guest(spec, {{1, "/run/lamina/shared/c-1"}, {2, ""}})["mounts"];
  ASSERT_EQ(mounts.size(), 2U);
  EXPECT_EQ(mounts[0], spec["mounts"][0]);
  EXPECT_EQ(mounts[1]["source"], "/run/lamina/shared/c-1");
  EXPECT_EQ(mounts[1]["options"], json({"ro"}));
  std::vector<std::string> notes;
  EXPECT_THAT(GuestSpec(R"({"mounts": ["x"]})", {{0, "/y"}}, notes),
              HasStatus(StatusCode::kInvalidArgument, "mounts[0]"));
}

TEST(GuestSpec, AnEmptySpecStaysAlmostEmpty) {
  const json guest = Guest(json::object());
  EXPECT_EQ(guest,
            json::parse(R"({"linux": {"devices": [], "namespaces": [{"type": "cgroup"}]}, "mounts": []})"));
  EXPECT_EQ(Guest(json::parse(R"({"linux": 7})")), guest);
}

// As containerd writes them: a container's own devices have rules of their own, a privileged one has one for
// all.
TEST(OciSpec, BlockDevicesAreThoseThatAreAskedFor) {
  const std::string asked = R"({"linux": {
    "devices": [
      {"path": "/data", "type": "b", "major": 7, "minor": 3, "fileMode": 25008, "uid": 5, "gid": 6},
      {"path": "/read", "type": "b", "major": 8, "minor": 16},
      {"path": "/denied", "type": "b", "major": 8, "minor": 17},
      {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}],
    "resources": {"devices": [
      {"allow": false, "access": "rwm"},
      {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
      {"allow": true, "type": "b", "major": 7, "minor": 3, "access": "rwm"},
      {"allow": true, "type": "b", "major": 8, "minor": 16, "access": "r"},
      {"allow": true, "type": "b", "major": 8, "minor": 17, "access": "rw"},
      {"allow": false, "type": "b", "major": 8, "minor": 17, "access": "rw"},
      {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"}]}}})";
  const auto spec = ParseSpec(asked, "config.json");
  ASSERT_OK(spec);
  ASSERT_EQ(spec->block_devices.size(), 2U);
  const SpecDevice& data = spec->block_devices[0];
  EXPECT_EQ(data.path, "/data");
  EXPECT_EQ(data.number, (DeviceNumber{7, 3}));
  EXPECT_TRUE(data.writable());
  EXPECT_EQ(data.mode, 0660U);
  EXPECT_EQ(data.uid, 5U);
  EXPECT_EQ(data.gid, 6U);
  EXPECT_EQ(spec->block_devices[1].access, "r");
  EXPECT_FALSE(spec->block_devices[1].writable());
  std::vector<std::string> notes;
  json disks = json::parse(asked);
  disks["linux"]["devices"].erase(3);
  disks["linux"]["devices"].erase(2);
  disks["linux"]["resources"]["devices"].erase(6);
  const auto guest = GuestSpec(disks.dump(), {}, notes);
  ASSERT_OK(guest);
  const json rules = json::parse(*guest)["linux"]["resources"]["devices"];
  EXPECT_EQ(rules, json::parse(R"([{"allow": false, "access": "rwm"},
                                   {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                                   {"allow": true, "type": "b", "major": 8, "minor": 17, "access": "rw"},
                                   {"allow": false, "type": "b", "major": 8, "minor": 17, "access": "rw"}])"));
  const auto privileged = ParseSpec(R"({"root": {"readonly": true}, "linux": {
    "devices": [{"path": "/dev/loop3", "type": "b", "major": 7, "minor": 3}],
    "resources": {"devices": [{"allow": false, "access": "rwm"}, {"allow": true, "access": "rwm"}]}}})",
                                    "config.json");
  ASSERT_OK(privileged);
  EXPECT_TRUE(privileged->block_devices.empty());
  EXPECT_TRUE(privileged->all_devices);
  EXPECT_FALSE(spec->all_devices);
  EXPECT_TRUE(privileged->read_only_root);
}

}  // namespace
}  // namespace lamina::cri

#include "cri/pod_files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

using lamina::testing::HasStatus;
using nlohmann::json;
using ::testing::HasSubstr;

std::string Text(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

json Mounts(const std::string& spec) {
  const auto with = WithPodFiles(spec, "/run/pod/etc", "config.json");
  EXPECT_OK(with);
  return with.ok() ? json::parse(*with)["mounts"] : json();
}

TEST(PodFiles, SayWhatTheConfigSays) {
  const lamina::testing::TempDir dir;
  const std::string etc = dir.path() + "/etc";
  const PodFiles files{"web-0", {"10.96.0.10", "10.96.0.11"}, {"a.svc", "svc"}, {"ndots:5"}};
  for (int repeat = 0; repeat < 2; ++repeat) {
    ASSERT_OK(WritePodFiles(etc, files));
    EXPECT_EQ(Text(etc + "/hostname"), "web-0\n");
    EXPECT_EQ(Text(etc + "/resolv.conf"),
              "search a.svc svc\nnameserver 10.96.0.10\nnameserver 10.96.0.11\noptions ndots:5\n");
    EXPECT_EQ(Text(etc + "/hosts"), Text("/etc/hosts"));
  }
  // Whatever user a container has reads them.
  struct stat info {};
  ASSERT_EQ(stat((etc + "/resolv.conf").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0644u);
}

TEST(PodFiles, WithoutAConfigTheyAreTheNodes) {
  const lamina::testing::TempDir dir;
  ASSERT_OK(WritePodFiles(dir.path(), {}));
  char name[256] = "";
  ASSERT_EQ(gethostname(name, sizeof name - 1), 0);
  EXPECT_EQ(Text(dir.path() + "/hostname"), std::string(name) + "\n");
  EXPECT_EQ(Text(dir.path() + "/resolv.conf"), Text("/etc/resolv.conf"));
}

TEST(PodFiles, AFolderThatCannotBeMadeIsNamed) {
  EXPECT_THAT(WritePodFiles("/proc/none", {}).ToString(), HasSubstr("/proc/none"));
}

TEST(PodFiles, AreMountedWhereNothingElseIs) {
  const json all = Mounts("{}");
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[2], json::parse(R"({"destination":"/etc/resolv.conf","type":"bind",
                                    "source":"/run/pod/etc/resolv.conf","options":["rbind","rprivate","rw"]})"));
  // The kubelet brings its own hosts file.
  const json rest = Mounts(
      R"({"root":{"readonly":true},"mounts":[{"destination":"/etc/hosts","type":"bind","source":"/pods/hosts"}]})");
  ASSERT_EQ(rest.size(), 3u);
  EXPECT_EQ(rest[0]["source"], "/pods/hosts");
  EXPECT_EQ(rest[1]["destination"], "/etc/hostname");
  EXPECT_EQ(rest[1]["options"][2], "ro");
}

TEST(PodFiles, ThePodsSharedMemoryIsOne) {
  const json mounts = Mounts(
      R"({"mounts":[{"destination":"/dev/shm","type":"tmpfs","source":"shm","options":["size=65536k"]},
                    {"destination":"/dev/mqueue","type":"mqueue","source":"mqueue"}]})");
  EXPECT_EQ(mounts[0]["type"], "bind");
  EXPECT_EQ(mounts[1]["type"], "mqueue");
  // One that the pod's author asked for stays.
  EXPECT_EQ(Mounts(R"({"mounts":[{"destination":"/dev/shm","type":"bind","source":"/x"}]})")[0]["source"],
            "/x");
}

TEST(PodFiles, BadSpecsAreNamed) {
  for (const char* bad : {"", "[]", "{", R"({"mounts":[1]})", R"({"mounts":[{"type":"tmpfs"}]})"}) {
    EXPECT_THAT(WithPodFiles(bad, "/d", "the-file"),
                HasStatus(absl::StatusCode::kInvalidArgument, "the-file"))
        << bad;
  }
  EXPECT_EQ(Mounts(R"({"mounts":7,"root":7})").size(), 3u);
}

}  // namespace
}  // namespace lamina::cri

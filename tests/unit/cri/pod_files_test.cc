#include "cri/pod_files.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "guest/protocol/contract.h"
#include "tests/testing/status_matchers.h"

namespace lamina::cri {
namespace {

using lamina::testing::HasStatus;
using nlohmann::json;

std::string Text(const std::string& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

json Mounts(const std::string& spec) {
  const auto with = WithPodFiles(spec, "config.json");
  EXPECT_OK(with);
  return with.ok() ? json::parse(*with)["mounts"] : json();
}

TEST(PodFiles, SayWhatTheConfigSays) {
  const auto files = PodFileContents({"web-0", {"10.96.0.10", "10.96.0.11"}, {"a.svc", "svc"}, {"ndots:5"}});
  ASSERT_OK(files);
  EXPECT_EQ(files->at("hostname"), "web-0\n");
  EXPECT_EQ(files->at("resolv.conf"),
            "search a.svc svc\nnameserver 10.96.0.10\nnameserver 10.96.0.11\noptions ndots:5\n");
  EXPECT_EQ(files->at("hosts"), Text("/etc/hosts"));
  EXPECT_EQ(files->size(), 3u);
}

TEST(PodFiles, WithoutAConfigTheyAreTheNodes) {
  const auto files = PodFileContents({});
  ASSERT_OK(files);
  char name[256] = "";
  ASSERT_EQ(gethostname(name, sizeof name - 1), 0);
  EXPECT_EQ(files->at("hostname"), std::string(name) + "\n");
  EXPECT_EQ(files->at("resolv.conf"), Text("/etc/resolv.conf"));
}

TEST(PodFiles, WhatAGuestDoesNotTakeIsNamed) {
  PodFiles files;
  files.dns_searches = {std::string(guest::kMaxPodFileBytes, 'x')};
  EXPECT_THAT(PodFileContents(files),
              HasStatus(absl::StatusCode::kInvalidArgument, "the pod's /etc/resolv.conf has 262152 bytes"));
}

TEST(PodFiles, OnlyTheirOwnMountsAreTheGuests) {
  EXPECT_TRUE(IsPodFileMount("/run/lamina/etc/hosts", "/etc/hosts"));
  EXPECT_FALSE(IsPodFileMount("/run/lamina/etc/hosts", "/etc/hostname"));
  EXPECT_FALSE(IsPodFileMount("/run/lamina/etc/passwd", "/etc/passwd"));
  EXPECT_FALSE(IsPodFileMount("/run/lamina/etc/../etc/hosts", "/etc/hosts"));
}

TEST(PodFiles, AreMountedWhereNothingElseIs) {
  const json all = Mounts("{}");
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[2], json::parse(R"({"destination":"/etc/resolv.conf","type":"bind",
                                    "source":"/run/lamina/etc/resolv.conf","options":["rbind","rprivate","rw"]})"));
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
    EXPECT_THAT(WithPodFiles(bad, "the-file"), HasStatus(absl::StatusCode::kInvalidArgument, "the-file"))
        << bad;
  }
  EXPECT_EQ(Mounts(R"({"mounts":7,"root":7})").size(), 3u);
}

}  // namespace
}  // namespace lamina::cri

#include "cri/command_line.h"

#include <gtest/gtest.h>

#include "tests/testing/status_matchers.h"

namespace lamina::cri {
namespace {

using absl::StatusCode;
using testing::HasStatus;

TEST(CommandLine, ReadsGoFlagsInEveryForm) {
  const auto line = ParseCommandLine({"-namespace", "k8s.io", "--address=/run/c.sock", "-id=abc", "-debug",
                                      "--bundle", "/b", "-publish-binary", "/usr/bin/containerd", "start"});
  ASSERT_OK(line.status());
  EXPECT_EQ(line->ns, "k8s.io");
  EXPECT_EQ(line->address, "/run/c.sock");
  EXPECT_EQ(line->id, "abc");
  EXPECT_EQ(line->bundle, "/b");
  EXPECT_EQ(line->publish_binary, "/usr/bin/containerd");
  EXPECT_EQ(line->action, "start");
  EXPECT_TRUE(line->debug);
  EXPECT_FALSE(ParseCommandLine({"-debug=false"})->debug);
  EXPECT_TRUE(ParseCommandLine({"-v"})->version);
  EXPECT_TRUE(ParseCommandLine({"-info"})->info);
}

TEST(CommandLine, FlagsOfANewerContainerdAreIgnoredWithTheirValue) {
  const auto line = ParseCommandLine({"-new-thing", "value", "--other=1", "-id", "a", "delete"});
  ASSERT_OK(line.status());
  EXPECT_EQ(line->id, "a");
  EXPECT_EQ(line->action, "delete");
}

TEST(CommandLine, WhatCannotBeIsNamed) {
  EXPECT_THAT(ParseCommandLine({"-id"}), HasStatus(StatusCode::kInvalidArgument, "-id has no value"));
  EXPECT_THAT(ParseCommandLine({"-unknown"}), HasStatus(StatusCode::kInvalidArgument, "-unknown"));
  for (const char* bad : {"../x", "a/b", ".hidden", "a b"}) {
    EXPECT_THAT(ParseCommandLine({"-id", bad}), HasStatus(StatusCode::kInvalidArgument, bad));
    EXPECT_THAT(ParseCommandLine({"-namespace", bad}), HasStatus(StatusCode::kInvalidArgument, bad));
  }
  EXPECT_OK(ParseCommandLine({}).status());
}

TEST(ShortId, KeepsShortOnesAndTellsLongOnesApart) {
  EXPECT_EQ(ShortId("abc", 16), "abc");
  EXPECT_EQ(ShortId(std::string(16, 'a'), 16), std::string(16, 'a'));
  const std::string one = ShortId("my-namespace-pod-1", 16), two = ShortId("my-namespace-pod-2", 16);
  EXPECT_EQ(one.size(), 16U);
  EXPECT_EQ(one.substr(0, 8), "my-name-");
  EXPECT_NE(one, two);
  EXPECT_EQ(one, ShortId("my-namespace-pod-1", 16)) << "the same again, whoever asks";
}

TEST(ShimSocket, FitsIntoASocketAddressAndIsOnesOwn) {
  const std::string id(128, 'x'), ns(76, 'n');
  const std::string path = ShimSocket("/run/lamina", ns, id);
  EXPECT_LT(path.size(), 107U);
  EXPECT_NE(path, ShimSocket("/run/lamina", ns, id.substr(1)));
  EXPECT_NE(path, ShimSocket("/run/lamina", ns.substr(1), id));
  EXPECT_EQ(ShimSocket("/run/lamina", "k8s.io", "abc"), "/run/lamina/shim/k8s.io-abc.sock");
}

}  // namespace
}  // namespace lamina::cri

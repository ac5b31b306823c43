#include "node/json.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "proto/node/node.pb.h"

namespace lamina::node {
namespace {

using nlohmann::json;

TEST(ToJson, KeepsNumbersNumbersAndNames) {
  v1::Sandbox sandbox;
  sandbox.set_id("abc");
  sandbox.set_namespace_("shop");
  sandbox.set_memory_bytes(UINT64_MAX);
  sandbox.set_vmm_pid(-1);
  sandbox.set_limit_cpus(0.25);
  sandbox.add_reasons("because");
  (*sandbox.mutable_boot_seconds())["total"] = 1.5;
  const json parsed = json::parse(ToJson(sandbox));
  EXPECT_EQ(parsed["namespace"], "shop");
  EXPECT_EQ(parsed["memory_bytes"], UINT64_MAX);
  EXPECT_EQ(parsed["vmm_pid"], -1);
  EXPECT_EQ(parsed["limit_cpus"], 0.25);
  EXPECT_EQ(parsed["reasons"], json::array({"because"}));
  EXPECT_EQ(parsed["boot_seconds"]["total"], 1.5);
  EXPECT_EQ(parsed["vcpus"], 0);  // unset, and there
}

TEST(ToJson, IsAsciiWhateverItsTexts) {
  v1::Sandbox sandbox;
  sandbox.add_reasons("a\x1b[2J\n\xc2\x9b\xff");
  const std::string text = ToJson(sandbox);
  for (const char c : text) EXPECT_TRUE(c == '\n' || (c >= ' ' && c <= '~')) << text;
  EXPECT_EQ(json::parse(text)["reasons"][0], "a\x1b[2J\n\xc2\x9b\xef\xbf\xbd");
}

TEST(ToJson, NestsLists) {
  v1::LayerList list;
  list.add_layers()->add_users("one");
  list.mutable_layers(0)->add_users("two");
  const json parsed = json::parse(ToJson(list));
  EXPECT_EQ(parsed["layers"][0]["users"], json::array({"one", "two"}));
}

TEST(ToJson, EscapesAndSurvivesBytesThatAreNoText) {
  v1::Sandbox sandbox;
  sandbox.set_pod("a\"b\n\xff");
  const json parsed = json::parse(ToJson(sandbox), nullptr, false);
  ASSERT_FALSE(parsed.is_discarded());
  EXPECT_EQ(parsed["pod"], "a\"b\n\xEF\xBF\xBD");
}

}  // namespace
}  // namespace lamina::node

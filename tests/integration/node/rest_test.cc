#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/units.h"
#include "tests/integration/node/node_kit.h"
#include "tests/testing/status_matchers.h"

namespace lamina::node {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

class LaminadRest : public ::testing::Test {
 protected:
  void SetUp() override { ASSERT_OK(laminad_.Start()) << laminad_.Log(); }
  Laminad laminad_;
};

TEST_F(LaminadRest, SaysHowItFares) {
  EXPECT_EQ(laminad_.Http("/healthz").body, "ok\n");
  EXPECT_EQ(laminad_.Http("/readyz").body, "ready\n");
  const json status = json::parse(laminad_.Http("/v1/status").body);
  EXPECT_EQ(status["ready"], true);
  EXPECT_EQ(status["capacity_bytes"], 64 * kGiB);
}

TEST_F(LaminadRest, ListsInJson) {
  const auto claim = laminad_.Claim("one", 320 * kMiB);
  ASSERT_OK(claim);
  const HttpAnswer answer = laminad_.Http("/v1/sandboxes");
  EXPECT_EQ(answer.status, 200);
  EXPECT_THAT(answer.headers, HasSubstr("application/json"));
  const json sandbox = json::parse(answer.body)["sandboxes"][0];
  EXPECT_EQ(sandbox["id"], "one");
  EXPECT_EQ(sandbox["pod"], "pod-one");
  EXPECT_EQ(sandbox["namespace"], "shop");
  EXPECT_EQ(sandbox["vcpus"], 1);
  EXPECT_EQ(sandbox["vcpus_exact"], "0.75");
  EXPECT_EQ(sandbox["memory_bytes"], 320 * kMiB);
  EXPECT_EQ(sandbox["reasons"].size(), 1u);
  const json listed = json::parse(laminad_.Http("/v1/claims").body)["claims"][0];
  EXPECT_EQ(listed["target_bytes"], 320 * kMiB);
  EXPECT_EQ(listed["generation"], claim->generation());
  EXPECT_EQ(listed["bound"], false);
  EXPECT_TRUE(json::parse(laminad_.Http("/v1/arenas").body)["arenas"].is_array());
  EXPECT_TRUE(json::parse(laminad_.Http("/v1/layers").body)["layers"].is_array());
}

TEST_F(LaminadRest, RefusesWhatItDoesNotServe) {
  for (const char* path : {"/", "/v1", "/v1/sandboxes/../../etc/passwd", "/v2/claims", "/metrics/x"}) {
    const HttpAnswer answer = laminad_.Http(path, {"--path-as-is"});
    EXPECT_EQ(answer.status, 404) << path;
    EXPECT_TRUE(json::parse(answer.body).contains("error")) << path;
  }
  for (const char* method : {"POST", "PUT", "DELETE", "PATCH", "TRACE", "OPTIONS", "ODD"}) {
    const HttpAnswer answer = laminad_.Http("/v1/claims", {"-X", method});
    EXPECT_EQ(answer.status, 405) << method;
    EXPECT_THAT(answer.headers, HasSubstr("Allow: GET, HEAD"));
    EXPECT_TRUE(json::parse(answer.body).contains("error"));
  }
}

TEST_F(LaminadRest, AnswersHeadWithoutABody) {
  const HttpAnswer answer = laminad_.Http("/metrics", {"-I"});
  EXPECT_EQ(answer.status, 200);
  EXPECT_THAT(answer.headers, HasSubstr("text/plain; version=0.0.4"));
}

}  // namespace
}  // namespace lamina::node

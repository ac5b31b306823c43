#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "node/services.h"
#include "tests/testing/status_matchers.h"
#include "tests/unit/node/fake_host.h"

namespace lamina::node {
namespace {

using nlohmann::json;

class RoutesTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char directory[] = "/tmp/lamina-unit-node-XXXXXX";
    ASSERT_NE(mkdtemp(directory), nullptr);
    directory_ = directory;
    Config config;
    config.paths.state_dir = directory_ + "/state";
    config.layers.arena_bytes = 16 * kMiB;
    absl::StatusOr<std::unique_ptr<NodeState>> node =
        NodeState::Open(config, FileSystem::Real(), host_, clock_);
    ASSERT_OK(node);
    node_ = std::move(*node);
  }
  void TearDown() override {
    node_.reset();
    FileSystem::Real().RemoveTree(directory_).IgnoreError();
  }
  std::string directory_;
  FakeHost host_;
  FakeClock clock_;
  std::unique_ptr<NodeState> node_;
};

TEST_F(RoutesTest, ReadyMeansReconciled) {
  EXPECT_EQ(AnswerRest(*node_, "/healthz").status, 200);
  EXPECT_EQ(AnswerRest(*node_, "/readyz").status, 503);
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(AnswerRest(*node_, "/readyz").status, 200);
}

TEST_F(RoutesTest, MetricsHaveTheirContentType) {
  const RestAnswer answer = AnswerRest(*node_, "/metrics");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.content_type, "text/plain; version=0.0.4; charset=utf-8");
  EXPECT_THAT(answer.body, ::testing::HasSubstr("# TYPE lamina_sandboxes gauge"));
}

TEST_F(RoutesTest, ListsAreJson) {
  for (const char* path : {"/v1/status", "/v1/sandboxes", "/v1/claims", "/v1/arenas", "/v1/layers"}) {
    const RestAnswer answer = AnswerRest(*node_, path);
    EXPECT_EQ(answer.status, 200) << path;
    EXPECT_EQ(answer.content_type, "application/json") << path;
    EXPECT_FALSE(json::parse(answer.body, nullptr, false).is_discarded()) << path;
  }
}

TEST_F(RoutesTest, NothingElseIsServed) {
  for (const char* path :
       {"", "/", "/v1", "/v1/", "/v1/claims/", "/metrics/", "/../healthz", "/healthz\n", "/V1/claims"}) {
    const RestAnswer answer = AnswerRest(*node_, path);
    EXPECT_EQ(answer.status, 404) << path;
    EXPECT_TRUE(json::parse(answer.body, nullptr, false).contains("error")) << path;
  }
}

}  // namespace
}  // namespace lamina::node

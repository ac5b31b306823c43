#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/units.h"
#include "node/engine.h"
#include "node/rest_routes.h"
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
    absl::StatusOr<std::unique_ptr<Engine>> node = Engine::Open(config, FileSystem::Real(), host_, clock_);
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
  std::unique_ptr<Engine> node_;
};

TEST_F(RoutesTest, ReadyMeansReconciled) {
  EXPECT_EQ(AnswerRest(node_->views(), "/healthz").status, 200);
  EXPECT_EQ(AnswerRest(node_->views(), "/readyz").status, 503);
  ASSERT_OK(node_->Reconcile());
  EXPECT_EQ(AnswerRest(node_->views(), "/readyz").status, 200);
}

TEST_F(RoutesTest, MetricsHaveTheirContentType) {
  const RestAnswer answer = AnswerRest(node_->views(), "/metrics");
  EXPECT_EQ(answer.status, 200);
  EXPECT_EQ(answer.content_type, "text/plain; version=0.0.4; charset=utf-8");
  EXPECT_THAT(answer.body, ::testing::HasSubstr("# TYPE lamina_sandboxes gauge"));
}

TEST_F(RoutesTest, WhatBeginsWithAVersionIsJson) {
  for (const RestRoute& route : RestRoutes()) {
    const std::string path = route.path;
    if (path.rfind("/v1/", 0) != 0) continue;
    const RestAnswer answer = AnswerRest(node_->views(), path);
    EXPECT_EQ(answer.status, 200) << path;
    EXPECT_EQ(answer.content_type, "application/json") << path;
    EXPECT_FALSE(json::parse(answer.body, nullptr, false).is_discarded()) << path;
  }
}

TEST_F(RoutesTest, NothingElseIsServed) {
  for (const char* path :
       {"", "/", "/v1", "/v1/", "/v1/claims/", "/metrics/", "/../healthz", "/healthz\n", "/V1/claims"}) {
    const RestAnswer answer = AnswerRest(node_->views(), path);
    EXPECT_EQ(answer.status, 404) << path;
    const json said = json::parse(answer.body, nullptr, false);
    ASSERT_TRUE(said.contains("error")) << path;
    for (const RestRoute& route : RestRoutes())
      EXPECT_THAT(said["error"].get<std::string>(), ::testing::HasSubstr(std::string(" ") + route.path));
  }
}

// The page's table of paths is this one, row by row.
TEST(RestRoutes, StandInTheDocs) {
  std::ifstream page(LAMINA_SOURCE_DIR "/docs/laminad.md");
  std::vector<std::string> documented, served;
  for (std::string line; std::getline(page, line);) {
    if (line.rfind("| `/", 0) == 0) documented.push_back(line);
  }
  for (const RestRoute& route : RestRoutes())
    served.push_back(std::string("| `") + route.path + "` | " + route.answers + " |");
  EXPECT_THAT(documented, ::testing::ElementsAreArray(served));
}

}  // namespace
}  // namespace lamina::node

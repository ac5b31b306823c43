#include "node/claim_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "base/units.h"
#include "node/engine.h"
#include "node/rest_routes.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"
#include "tests/unit/node/fake_host.h"

namespace lamina::node {
namespace {

using lamina::testing::HasStatus;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int64_t kShim = 100;
const std::string kLong(1 << 20, 'x');
const std::string kOdd = "a\x1b[2J\n\xff\xc2\x9b";
const std::string kOddShown = "a\\x1b[2J\\n\\xff\\xc2\\x9b";

class ClaimTextTest : public ::testing::Test {
 protected:
  void SetUp() override {
    config_.paths.state_dir = directory_ / "state";
    config_.memory.capacity_bytes = 4 * kGiB;
    config_.memory.min_available_bytes = 0;
    host_.Start(kShim, 1);
    absl::StatusOr<std::unique_ptr<Engine>> node = Engine::Open(config_, FileSystem::Real(), host_, clock_);
    ASSERT_OK(node);
    node_ = std::move(*node);
    ASSERT_OK(node_->Reconcile());
  }
  laminad::v1::ClaimRequest Request(const std::string& id) {
    laminad::v1::ClaimRequest request;
    request.set_sandbox_id(id);
    request.set_pod_namespace("shop");
    request.set_pod_name("pod");
    request.set_bytes(64 * kMiB);
    request.set_shim_pid(kShim);
    request.set_shim_start_time(1);
    return request;
  }
  v1::Sandbox Shown() { return node_->views().sandboxes().sandboxes(0); }

  lamina::testing::TempDir directory_;
  Config config_;
  FakeHost host_;
  FakeClock clock_;
  std::unique_ptr<Engine> node_;
};

TEST_F(ClaimTextTest, NamesThatNoPodHasAreRefused) {
  const auto claim = [&](void (laminad::v1::ClaimRequest::*set)(const std::string&),
                         const std::string& text) {
    laminad::v1::ClaimRequest request = Request("one");
    (request.*set)(text);
    return node_->claims().Claim(request).status();
  };
  using Request = laminad::v1::ClaimRequest;
  using enum absl::StatusCode;
  const std::pair<const char*, void (Request::*)(const std::string&)> fields[] = {
      {"namespace", &Request::set_pod_namespace},
      {"name", &Request::set_pod_name},
      {"uid", &Request::set_pod_uid}};
  for (const auto& [field, set] : fields) {
    const absl::Status odd = claim(set, kOdd);
    EXPECT_THAT(
        odd, HasStatus(kInvalidArgument, std::string("claim one: the pod's ") + field + " \"" + kOddShown));
    const absl::Status longest = claim(set, kLong);
    EXPECT_THAT(longest,
                HasStatus(kInvalidArgument, "(1048576 bytes) is not printable ASCII of at most 253 bytes"));
    EXPECT_LT(longest.message().size(), 300u);
  }
  EXPECT_EQ(node_->views().sandboxes().sandboxes_size(), 0);
  EXPECT_THAT(AnswerRest(node_->views(), "/metrics").body,
              HasSubstr("lamina_claims_refused_total{reason=\"invalid\"} 6\n"));
  EXPECT_OK(claim(&Request::set_pod_name, std::string(253, 'x')));
}

TEST_F(ClaimTextTest, WhatAShimReportsIsShownEscapedAndCut) {
  laminad::v1::ClaimRequest request = Request("one");
  request.mutable_sizing()->set_vcpus_exact(kLong);
  for (int i = 0; i < 100; ++i) request.mutable_sizing()->add_reasons(i == 0 ? kOdd : kLong);
  const auto claim = node_->claims().Claim(request);
  ASSERT_OK(claim);
  EXPECT_LE(Shown().vcpus_exact().size(), 64u);
  ASSERT_EQ(Shown().reasons_size(), 64);
  EXPECT_EQ(Shown().reasons(0), kOddShown);
  EXPECT_EQ(Shown().reasons(1).size(), 1024u);

  laminad::v1::RetargetRequest again;
  again.set_sandbox_id("one");
  again.set_generation(claim->generation());
  again.set_bytes(request.bytes());
  again.mutable_sizing()->add_reasons("now " + kOdd);
  ASSERT_OK(node_->claims().Retarget(again));
  EXPECT_EQ(Shown().reasons(0), "now " + kOddShown);

  laminad::v1::ReadyRequest ready;
  ready.set_sandbox_id("one");
  ready.set_generation(claim->generation());
  ready.set_state_path("/" + kOdd);
  for (int i = 0; i < 100; ++i) (*ready.mutable_phase_seconds())[std::to_string(i) + kLong] = 1;
  ASSERT_OK(node_->claims().Ready(ready));
  EXPECT_EQ(Shown().state_path(), "/" + kOddShown);
  EXPECT_EQ(Shown().boot_seconds_size(), 32);

  const std::string body = AnswerRest(node_->views(), "/v1/sandboxes").body;
  EXPECT_LT(body.size(), 100u << 10);
  EXPECT_FALSE(nlohmann::json::parse(body, nullptr, false).is_discarded());
  EXPECT_THAT(body, AllOf(Not(HasSubstr("\x1b")), Not(HasSubstr("\xff"))));
}

}  // namespace
}  // namespace lamina::node

#include "base/ttrpc/fake_caller.h"

#include <gtest/gtest.h>

#include "proto/ttrpc.pb.h"
#include "tests/testing/status_matchers.h"

namespace lamina::ttrpc {
namespace {

using testing::HasStatus;

constexpr Method<KeyValue, KeyValue> kSwap{"Test", "Swap"};

TEST(FakeCallerTest, HandlersAnswerAndAFaultComesAtItsCall) {
  FakeCaller caller;
  KeyValue pair;
  pair.set_key("a");
  const auto empty = Call(caller, kSwap, pair, kNoTimeout);
  ASSERT_OK(empty);
  EXPECT_EQ(empty->value(), "");
  caller.Handle(kSwap, [](const KeyValue& request) -> absl::StatusOr<KeyValue> {
    if (request.key().empty()) return absl::NotFoundError("no key");
    KeyValue swapped;
    swapped.set_value(request.key());
    return swapped;
  });
  const auto swapped = Call(caller, kSwap, pair, kNoTimeout);
  ASSERT_OK(swapped);
  EXPECT_EQ(swapped->value(), "a");
  EXPECT_THAT(Call(caller, kSwap, KeyValue(), kNoTimeout), HasStatus(absl::StatusCode::kNotFound, "no key"));
  caller.FailAt(3);
  EXPECT_THAT(Call(caller, kSwap, pair, kNoTimeout), HasStatus(absl::StatusCode::kUnavailable, "injected"));
  ASSERT_OK(Call(caller, kSwap, pair, kNoTimeout));
  EXPECT_EQ(caller.Count("Swap"), 5);
}

}  // namespace
}  // namespace lamina::ttrpc

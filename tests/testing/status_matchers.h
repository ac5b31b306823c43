#pragma once

#include <gmock/gmock.h>

#include "base/status.h"

namespace lamina::testing {

inline const absl::Status& ToStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& ToStatus(const absl::StatusOr<T>& result) {
  return result.status();
}

MATCHER(IsOk, "is OK") {
  *result_listener << ToStatus(arg).ToString();
  return ToStatus(arg).ok();
}
MATCHER_P2(HasStatus, code, text, "has the code and mentions \"" + std::string(text) + "\"") {
  *result_listener << ToStatus(arg).ToString();
  return ToStatus(arg).code() == code && Message(ToStatus(arg)).find(text) != std::string::npos;
}

}  // namespace lamina::testing

#define ASSERT_OK(expr) ASSERT_THAT(expr, ::lamina::testing::IsOk())
#define EXPECT_OK(expr) EXPECT_THAT(expr, ::lamina::testing::IsOk())

// How tests look at absl::Status and absl::StatusOr: what a failure prints is the status, not "false".
#pragma once

#include <gmock/gmock.h>

#include <string>
#include <utility>

#include "base/status.h"

namespace lamina::testing {

inline const absl::Status& ToStatus(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& ToStatus(const absl::StatusOr<T>& result) {
  return result.status();
}

inline ::testing::AssertionResult IsOk(const char* text, const absl::Status& status) {
  if (status.ok()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << text << " is " << status.ToString();
}
inline ::testing::AssertionResult IsNotOk(const char* text, const absl::Status& status) {
  if (!status.ok()) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << text << " is OK";
}

// EXPECT_THAT(Open(path), HasStatus(absl::StatusCode::kNotFound, path))
MATCHER_P(HasStatus, code, "has the code " + absl::StatusCodeToString(code)) {
  *result_listener << ToStatus(arg).ToString();
  return ToStatus(arg).code() == code;
}
MATCHER_P2(HasStatus, code, text,
           "has the code " + absl::StatusCodeToString(code) + " and mentions \"" + std::string(text) + "\"") {
  *result_listener << ToStatus(arg).ToString();
  return ToStatus(arg).code() == code && Message(ToStatus(arg)).find(text) != std::string::npos;
}

}  // namespace lamina::testing

#define ASSERT_OK(expr) ASSERT_PRED_FORMAT1(::lamina::testing::IsOk, ::lamina::testing::ToStatus(expr))
#define EXPECT_OK(expr) EXPECT_PRED_FORMAT1(::lamina::testing::IsOk, ::lamina::testing::ToStatus(expr))
#define ASSERT_NOT_OK(expr) ASSERT_PRED_FORMAT1(::lamina::testing::IsNotOk, ::lamina::testing::ToStatus(expr))
#define EXPECT_NOT_OK(expr) EXPECT_PRED_FORMAT1(::lamina::testing::IsNotOk, ::lamina::testing::ToStatus(expr))

// ASSERT_OK_AND_ASSIGN(auto x, F()): declares or assigns x, or ends the test with F's error.
#define ASSERT_OK_AND_ASSIGN(lhs, expr) \
  ASSERT_OK_AND_ASSIGN_INNER(LAMINA_CONCAT(_test_status_or_, __LINE__), lhs, expr)
#define ASSERT_OK_AND_ASSIGN_INNER(tmp, lhs, expr) \
  auto tmp = (expr);                               \
  ASSERT_OK(tmp) << #expr;                         \
  lhs = std::move(tmp).value()

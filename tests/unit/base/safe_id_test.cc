#include "base/safe_id.h"

#include <gtest/gtest.h>

#include <string>

#include "tests/testing/status_matchers.h"

namespace lamina {
namespace {

using testing::HasStatus;

TEST(SafeId, CannotLeaveItsDirectoryOrBeAnOption) {
  for (const char* good : {"a", "0", "a.b", "A_b-c", "a..b", "web-1.a_b"})
    EXPECT_TRUE(IsSafeId(good)) << good;
  EXPECT_TRUE(IsSafeId(std::string(128, 'x')));
  for (const std::string& bad :
       {std::string(), std::string("."), std::string(".."), std::string(".a"), std::string("-x"),
        std::string("_x"), std::string("a/b"), std::string("/"), std::string("a b"), std::string("a\n"),
        std::string("\xc3\xbc"), std::string("a\\b"), std::string("a\0b", 3), std::string(129, 'x')}) {
    EXPECT_FALSE(IsSafeId(bad)) << bad;
  }
}

TEST(SafeId, AnErrorNamesTheIdAsFarAsItGoes) {
  EXPECT_OK(CheckSafeId("a", "container id"));
  EXPECT_THAT(CheckSafeId("a/b", "container id"),
              HasStatus(absl::StatusCode::kInvalidArgument, "container id \"a/b\": want 1 to 128"));
  EXPECT_LT(CheckSafeId(std::string(1 << 20, 'x'), "id").message().size(), 300U);
}

}  // namespace
}  // namespace lamina

#include "base/version.h"

#include <gtest/gtest.h>

#include <string>

namespace lamina {
namespace {

TEST(Version, IsTheProjectsWithTheRevision) {
  const std::string version = Version(), project = LAMINA_PROJECT_VERSION;
  if (version == project) return;  // built outside a git work tree
  ASSERT_EQ(version.rfind(project + "+g", 0), 0U) << version;
  const std::string revision = version.substr(project.size() + 2);
  EXPECT_GE(revision.size(), 8U);
  EXPECT_EQ(revision.find_first_not_of("0123456789abcdef"), std::string::npos) << version;
}

}  // namespace
}  // namespace lamina

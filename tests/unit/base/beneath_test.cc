#include "base/beneath.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using testing::HasStatus;

class BeneathTest : public ::testing::Test {
 protected:
  void SetUp() override {
    fs::create_directories(dir_ / "in/a/b");
    std::ofstream(dir_ / "in/a/b/file") << "x";
    std::ofstream(dir_ / "secret") << "s";
    in_ = UniqueFd(open((dir_ / "in").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    ASSERT_TRUE(in_);
  }
  absl::Status Try(const std::string& path) { return OpenBeneath(in_.get(), path, O_RDONLY).status(); }

  testing::TempDir dir_;
  UniqueFd in_;
};

TEST_F(BeneathTest, WhatLiesBeneathIsOpened) {
  EXPECT_OK(Try("a"));
  ASSERT_OK_AND_ASSIGN(const UniqueFd file, OpenBeneath(in_.get(), "a/b/file", O_RDONLY));
  EXPECT_NE(fcntl(file.get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_THAT(Try("a/none"), HasStatus(StatusCode::kNotFound, "a/none"));
}

TEST_F(BeneathTest, NoLinkAndNoWayOutIsTaken) {
  fs::create_symlink("b", dir_ / "in/a/link");
  fs::create_symlink("../../secret", dir_ / "in/a/out");
  fs::create_symlink("/proc/self/root", dir_ / "in/root");
  for (const char* path : {"a/link", "a/link/file", "a/out", "root", "root/etc/passwd"})
    EXPECT_THAT(Try(path), HasStatus(StatusCode::kFailedPrecondition, "link")) << path;
  for (const char* path : {"..", "../secret", "a/../../secret", "/etc/passwd"})
    EXPECT_NOT_OK(Try(path)) << path;
}

}  // namespace
}  // namespace lamina

#include "base/log.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <string>

#include "base/file_system.h"
#include "base/unique_fd.h"
#include "tests/testing/temp_dir.h"

namespace lamina {
namespace {

using ::testing::EndsWith;

// One line each, of what a terminal and a log's reader can take, whatever was in the message.
TEST(Log, OthersWordsAreEscapedAndCut) {
  const testing::TempDir directory;
  const std::string path = directory / "log";
  const UniqueFd fd(open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  SetLogTarget(fd.get(), LogLevel::kInfo);
  const auto logged = [&](const std::string& message) {
    EXPECT_EQ(ftruncate(fd.get(), 0), 0);
    EXPECT_EQ(lseek(fd.get(), 0, SEEK_SET), 0);
    LogWarning("{}", message);
    return FileSystem::Real().Read(path, 1 << 20).value_or("");
  };
  EXPECT_THAT(logged("plain"), EndsWith("Z warning plain\n"));
  EXPECT_THAT(logged("a\n2026-01-01T00:00:00Z error forged\x1b[2J\xff\xc2\x9b"),
              EndsWith("Z warning a\\n2026-01-01T00:00:00Z error forged\\x1b[2J\\xff\\xc2\\x9b\n"));
  const std::string longest = logged(std::string(1 << 20, 'x'));
  EXPECT_THAT(longest, EndsWith("xxx...\n"));
  EXPECT_EQ(std::count(longest.begin(), longest.end(), 'x'), static_cast<long>(kMaxLogBytes) - 3);
  SetLogTarget(STDERR_FILENO, LogLevel::kInfo);
}

}  // namespace
}  // namespace lamina

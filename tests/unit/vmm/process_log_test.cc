#include "vmm/process_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>
#include <sstream>

#include "base/file_system.h"
#include "base/process.h"
#include "base/subprocess.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::vmm {
namespace {

using ::testing::EndsWith;

uint64_t Occupied(const std::string& path) {
  struct stat info {};
  EXPECT_EQ(stat(path.c_str(), &info), 0);
  return static_cast<uint64_t>(info.st_blocks) * 512;
}

TEST(TrimLogTest, AWriterOf64MiBLeavesLittleAndLosesNothingOfTheEnd) {
  const lamina::testing::TempDir dir;
  SpawnOptions options;
  options.argv = {"seq", "1", "8700000"};
  options.log_path = dir / "log";
  const auto pid = Spawn(options);
  ASSERT_OK(pid);
  const uint64_t start_time = ProcessStartTime(*pid).value_or(0);
  while (ProcessAlive(*pid, start_time)) ASSERT_OK(TrimLog(options.log_path));
  ASSERT_OK(KillProcess(*pid, start_time, std::chrono::seconds(10)));  // reaps it
  const auto length = TrimLog(options.log_path);
  ASSERT_OK(length);
  EXPECT_GT(*length, 64u << 20);
  EXPECT_LE(Occupied(options.log_path), kLogMaxBytes);
  EXPECT_THAT(LogTail(options.log_path, 40), EndsWith(" 8699998 8699999 8700000"));
  // What is kept is whole: not a line is missing from where it begins.
  std::istringstream kept(LogTail(options.log_path, kLogKeptBytes));
  int number, last = 0, count = 0;
  for (kept >> last; kept >> number; last = number) {
    if (count++ > 0) {
      ASSERT_EQ(number, last + 1);
    }
  }
  EXPECT_EQ(last, 8'700'000);
  EXPECT_GT(count, 60'000);
}

TEST(TrimLogTest, AShortLogAndNoneAreLeftAlone) {
  const lamina::testing::TempDir dir;
  EXPECT_EQ(*TrimLog(dir / "none"), 0u);
  const std::string text(kLogMaxBytes - 4096, 'x');
  std::ofstream(dir / "log") << text;
  EXPECT_EQ(*TrimLog(dir / "log"), text.size());
  EXPECT_EQ(FileSystem::Real().Read(dir / "log", 2 * kLogMaxBytes).value_or(""), text);
}

TEST(LogTailTest, IsTheEndHoweverLongTheLogIs) {
  const lamina::testing::TempDir dir;
  EXPECT_EQ(LogTail(dir / "none", 100), "");
  std::ofstream(dir / "log") << std::string(3 << 20, 'x') << "\nfirst\nlast\n\n";
  EXPECT_EQ(LogTail(dir / "log", 12), "first last");
  EXPECT_EQ(LogTail(dir / "log", 600).size(), 598u);
}

// It goes into logs and onto terminals.
TEST(LogTailTest, IsOnePrintableLine) {
  const lamina::testing::TempDir dir;
  std::ofstream(dir / "log") << "red \x1b[31m\r\xff end\nnext";
  EXPECT_EQ(LogTail(dir / "log", 600), "red \\x1b[31m\\x0d\\xff end next");
}

}  // namespace
}  // namespace lamina::vmm

#include <gtest/gtest.h>

#include "base/units.h"
#include "cli/cli.h"

namespace lamina::cli {
namespace {

TEST(Table, AlignsColumnsWithoutTrailingSpaces) {
  Table table({"A", "LONG HEADER", "C"});
  table.Add({"value", "x", ""});
  table.Add({"v", "y", "z"});
  EXPECT_EQ(table.ToString(),
            "A      LONG HEADER  C\n"
            "value  x\n"
            "v      y            z\n");
}

TEST(HumanBytes, HasThreeDigits) {
  EXPECT_EQ(HumanBytes(0), "0B");
  EXPECT_EQ(HumanBytes(1023), "1023B");
  EXPECT_EQ(HumanBytes(320 * kMiB), "320MiB");
  EXPECT_EQ(HumanBytes(1536 * kMiB), "1.5GiB");
  EXPECT_EQ(HumanBytes(64 * kGiB), "64GiB");
  EXPECT_EQ(HumanBytes(UINT64_MAX), "16EiB");
}

TEST(HumanSeconds, PicksAUnit) {
  EXPECT_EQ(HumanSeconds(-1), "0s");
  EXPECT_EQ(HumanSeconds(5.4), "5s");
  EXPECT_EQ(HumanSeconds(600), "10m");
  EXPECT_EQ(HumanSeconds(7200 * 2), "4h");
  EXPECT_EQ(HumanSeconds(86400 * 3), "3d");
}

TEST(Printable, KeepsEscapesOutOfTheTerminal) {
  EXPECT_EQ(Printable("a\x1b[31mb\n"), "a\\x1b[31mb\\n");
  EXPECT_EQ(Printable("\xc2\x9b"
                      "2J"),
            "\\xc2\\x9b2J")
      << "CSI, of one character";
  EXPECT_EQ(Printable(std::string(1 << 20, 'x')).size(), 4096u);
  Table table({"A"});
  table.Add({"\x1b[2J"});
  EXPECT_EQ(table.ToString(), "A\n\\x1b[2J\n");
}

TEST(ExitCode, IsWhatHelpSays) {
  EXPECT_EQ(ExitCode(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCode(absl::InternalError("")), 1);
  EXPECT_EQ(ExitCode(absl::NotFoundError("")), 1);
  EXPECT_EQ(ExitCode(absl::InvalidArgumentError("")), 2);
  EXPECT_EQ(ExitCode(absl::OutOfRangeError("")), 2);
  EXPECT_EQ(ExitCode(absl::UnavailableError("")), 3);
}

}  // namespace
}  // namespace lamina::cli

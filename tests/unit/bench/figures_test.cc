// How the benchmarks judge, and how they read /proc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>

#include "tests/bench/pod/host_memory.h"
#include "tests/bench/pod/report.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::bench {
namespace {

using ::testing::HasSubstr;

TEST(Report, CountsWhatIsOverItsBudget) {
  Report report;
  report.AtMost("at the budget", 1.25, 1.25, "");
  report.AtLeast("fast enough", 50, 50, "MB/s");
  report.Show("no budget", 1e9, "B");
  EXPECT_EQ(report.missed(), 0);
  report.AtMost("too much", 1.26, 1.25, "");
  report.AtLeast("too slow", 49.9, 50, "MB/s");
  EXPECT_EQ(report.missed(), 2);
}

TEST(Report, ShowsFigureBudgetAndVerdict) {
  Report report;
  report.Section("a group");
  report.AtMost("ratio", 1.5, 1.25, "", "how");
  EXPECT_THAT(report.Text(), HasSubstr("| **a group** |\n"));
  EXPECT_THAT(report.Text(), HasSubstr("| ratio       |        1.500 |      <= 1.25 | OVER | how\n"));
}

TEST(Median, IsTheMiddle) {
  EXPECT_EQ(Median({}), 0);
  EXPECT_EQ(Median({3, 1, 2}), 2);
  EXPECT_EQ(Median({4, 1, 3, 2}), 2.5);
}

TEST(SumMappings, TakesTheFilesBelowThePrefix) {
  const std::string smaps =
      "7f0000000000-7f0040000000 r--s 00000000 08:01 42                         /var/a/arena-0\n"
      "Size:            1048576 kB\nRss:               40960 kB\nPss:               20480 kB\n"
      "VmFlags: rd sh mr me ms\n"
      "7f0050000000-7f0051000000 rw-p 00000000 00:00 0 \n"
      "Rss:                 512 kB\nPss:                 512 kB\n"
      "7f0060000000-7f0061000000 r--s 00000000 08:01 43                         /var/a/arena 1\n"
      "Rss:                   4 kB\nPss:                   2 kB\n";
  const MappedBytes below = SumMappings(smaps, "/var/a/");
  EXPECT_EQ(below.resident, 40964u << 10);
  EXPECT_EQ(below.proportional, 20482u << 10);
  EXPECT_EQ(SumMappings(smaps, "").resident, (40964u + 512) << 10);
  EXPECT_EQ(SumMappings(smaps, "/nowhere").resident, 0u);
}

TEST(HostMemory, SeesAPrivateAndAFileMapping) {
  const testing::TempDir dir;
  const std::string path = dir / "file";
  constexpr size_t kBytes = 4 << 20;
  std::ofstream(path) << std::string(kBytes, 'x');
  EXPECT_GE(BytesOnDisk(dir.path()), kBytes);
  FILE* handle = fopen(path.c_str(), "r");
  ASSERT_NE(handle, nullptr);
  void* mapped = mmap(nullptr, kBytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fileno(handle), 0);
  fclose(handle);
  ASSERT_NE(mapped, MAP_FAILED);
  const auto all = ProcessMemory(getpid()), of_file = MappingMemory(getpid(), dir.path());
  munmap(mapped, kBytes);
  ASSERT_OK(all);
  ASSERT_OK(of_file);
  EXPECT_EQ(of_file->resident, kBytes);
  EXPECT_GT(all->resident, of_file->resident);
}

TEST(HostMemory, AProcessThatIsGoneIsNotFound) {
  EXPECT_THAT(ProcessMemory(1 << 23), testing::HasStatus(absl::StatusCode::kNotFound));
  EXPECT_THAT(CpuSeconds(1 << 23), testing::HasStatus(absl::StatusCode::kNotFound));
}

}  // namespace
}  // namespace lamina::bench

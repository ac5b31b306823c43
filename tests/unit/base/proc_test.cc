#include "base/proc.h"

#include <gtest/gtest.h>

#include "base/file_system.h"
#include "tests/testing/status_matchers.h"

namespace lamina {
namespace {

TEST(Proc, KilobytesBecomeBytes) {
  const char* text =
      "MemTotal:         503000 kB\nMemFree:            1000 kB\nSwapCached:    9 kB\nCached:    8 kB\n"
      "HugePages_Total:       3\n";
  EXPECT_EQ(KernelBytes(text, "MemTotal"), 503000u * 1024);
  EXPECT_EQ(KernelBytes(text, "MemFree"), 1000u * 1024);
  EXPECT_EQ(KernelBytes(text, "Cached"), 8u * 1024) << "not of another key's end";
  EXPECT_EQ(KernelBytes(text, "Mem"), 0u);
  EXPECT_EQ(KernelBytes(text, "Buffers"), 0u);
  EXPECT_EQ(KernelBytes("Name:\tx\nVmRSS:\t    2 kB\n", "VmRSS"), 2048u);
  EXPECT_EQ(KernelBytes("Node 0 Active(file):   7 kB\nNode 0 Inactive(file): 6 kB\n", "Inactive(file)"),
            6144u);
  EXPECT_EQ(KernelBytes("Name:\tx VmRSS: 9 kB\nVmRSS:\t    2 kB\n", "VmRSS"), 2048u)
      << "not of a process's name";
  for (const char* broken : {"", "VmRSS", "VmRSS:", "VmRSS: ", "VmRSS:\t", "VmRSS: x", "VmRSS: -1 kB",
                             "VmRSS: 99999999999999999999 kB"})
    EXPECT_EQ(KernelBytes(broken, "VmRSS"), 0u) << broken;
  EXPECT_GT(KernelBytes(*FileSystem::Real().Read("/proc/self/status", 65536), "VmRSS"), 0u);
}

TEST(Proc, MountsComeInTheirOrderAndWithTheirNames) {
  const auto mounts = ParseMountinfo(
      "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
      "no mount\n"
      "\n"
      "30 22 0:40 /of\\134it /mnt/with\\040space\\011 rw shared:5 master:2 - fuse.x a\\040b rw,x=1\n"
      "31 22 0:41 / /odd\\09\\0 rw -  \n"
      "32 22 0:42 / /last rw - tmpfs none rw");
  ASSERT_EQ(mounts.size(), 4u);
  EXPECT_EQ(mounts[0].device, "8:1");
  EXPECT_EQ(mounts[0].root, "/");
  EXPECT_EQ(mounts[0].point, "/");
  EXPECT_EQ(mounts[0].type, "ext4");
  EXPECT_EQ(mounts[0].source, "/dev/sda1");
  EXPECT_EQ(mounts[1].root, "/of\\it");
  EXPECT_EQ(mounts[1].point, "/mnt/with space\t");
  EXPECT_EQ(mounts[1].type, "fuse.x");
  EXPECT_EQ(mounts[1].source, "a b");
  EXPECT_EQ(mounts[2].point, "/odd\\09\\0") << "no escape";
  EXPECT_EQ(mounts[2].source, "");
  EXPECT_EQ(mounts[3].point, "/last");
  EXPECT_EQ(mounts[3].source, "none");
  EXPECT_FALSE(ParseMountinfo(*FileSystem::Real().Read("/proc/self/mountinfo", 16 << 20)).empty());
}

TEST(Proc, TheOwnProgramIsTheTest) {
  ASSERT_OK_AND_ASSIGN(const std::string program, OwnProgram());
  EXPECT_TRUE(program.ends_with("/unit_base")) << program;
}

}  // namespace
}  // namespace lamina

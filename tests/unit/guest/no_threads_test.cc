// The agent where no thread can be had: the call fails, the agent goes on.
#include "tests/testing/no_threads.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/file_system.h"
#include "guest/agent/devices.h"
#include "guest/agent/overlay.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::guest {
namespace {

using lamina::testing::HasStatus;
using lamina::testing::NoThreads;
using lamina::testing::TempDir;

TEST(WithoutThreads, AWatcherOfDevicesThatCannotStartIsAnError) {
  const NoThreads none;
  EXPECT_THAT(DeviceMonitor::Start(nullptr).status(),
              HasStatus(absl::StatusCode::kResourceExhausted, "start a thread"));
}

TEST(WithoutThreads, AnOverlayIsNotMountedAndNothingStaysMounted) {
  const TempDir dir;
  const std::string layer = dir / "layers/0", container = dir / "c";
  std::filesystem::create_directories(layer);
  std::filesystem::create_directories(container);
  {
    const NoThreads none;
    EXPECT_THAT(MountOverlay(container, dir / "layers", {"0"}, layer, ""),
                HasStatus(absl::StatusCode::kResourceExhausted, "start a thread"));
  }
  EXPECT_EQ(FileSystem::Real().Read("/proc/self/mounts", 1 << 20)->find(container), std::string::npos);
}

}  // namespace
}  // namespace lamina::guest

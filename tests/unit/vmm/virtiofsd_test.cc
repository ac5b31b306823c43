// Starting virtiofsd, with programs in its place. tests/integration/vmm has the real one.
#include "vmm/virtiofsd.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "base/process.h"
#include "base/unix_socket.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"
#include "vmm/process_log.h"

namespace lamina::vmm {
namespace {

using lamina::testing::HasStatus;
using std::chrono::seconds;
using ::testing::HasSubstr;

class VirtiofsdTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directory(dir_ / "shared");
    options_.shared_dir = dir_ / "shared";
    options_.socket = dir_ / "fs.sock";
    options_.log_path = dir_ / "log";
  }
  void Play(const std::string& script) {
    options_.program = dir_ / "virtiofsd";
    std::ofstream(options_.program) << "#!/bin/sh\n" << script << "\n";
    ASSERT_EQ(chmod(options_.program.c_str(), 0755), 0);
  }
  static void End(const VirtiofsdProcess& process) {
    kill(process.pid, SIGKILL);
    EXPECT_EQ(waitpid(process.pid, nullptr, 0), process.pid);
  }
  lamina::testing::TempDir dir_;
  VirtiofsdOptions options_;
};

TEST_F(VirtiofsdTest, ItsSocketTakesAConnectionAtOnceAndRefusesItAfterItsEnd) {
  std::ofstream(options_.socket) << "";
  std::filesystem::remove(options_.socket);
  ASSERT_OK(ListenUnix(options_.socket));  // one that an earlier one left
  Play("exec sleep 1000");
  const auto process = StartVirtiofsd(options_);
  ASSERT_OK(process);
  EXPECT_OK(ConnectUnix(options_.socket));
  struct stat info {};
  ASSERT_EQ(stat(options_.socket.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600U);
  End(*process);
  EXPECT_THAT(ConnectUnix(options_.socket), HasStatus(absl::StatusCode::kUnavailable));
}

TEST_F(VirtiofsdTest, OneWhosePidCannotBeWrittenDownIsEnded) {
  Play("exec sleep 1000");
  pid_t pid = 0;
  uint64_t start_time = 0;
  options_.on_started = [&](pid_t its_pid, uint64_t its_start_time) {
    pid = its_pid;
    start_time = its_start_time;
    return absl::ResourceExhaustedError("no space for the state");
  };
  EXPECT_THAT(StartVirtiofsd(options_),
              HasStatus(absl::StatusCode::kResourceExhausted, "no space for the state"));
  EXPECT_GT(pid, 0);
  EXPECT_FALSE(ProcessAlive(pid, start_time));
}

// A script needs a shell and what it calls, which no root of its own has: the rest holds all the same.
TEST_F(VirtiofsdTest, AScriptHasNoRootOfItsOwnAndItIsSaid) {
  Play("grep -E '^(NoNewPrivs|CapBnd|CapPrm)' /proc/self/status; exec sleep 1000");
  ::testing::internal::CaptureStderr();
  const auto process = StartVirtiofsd(options_);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(),
              HasSubstr("virtiofsd has no root and no namespaces of its own: "));
  ASSERT_OK(process);
  const auto deadline = std::chrono::steady_clock::now() + seconds(20);
  std::string said;
  while (said.find("NoNewPrivs") == std::string::npos && std::chrono::steady_clock::now() < deadline) {
    said = LogTail(options_.log_path, 1000);
    usleep(2000);
  }
  EXPECT_THAT(said, HasSubstr("CapPrm:\\x0900000000800401db CapBnd:\\x0900000000800401db NoNewPrivs:\\x091"));
  End(*process);
}

TEST_F(VirtiofsdTest, WhatIsMissingIsNamed) {
  options_.program = dir_ / "no-virtiofsd";
  EXPECT_THAT(StartVirtiofsd(options_), HasStatus(absl::StatusCode::kNotFound, "no-virtiofsd"));
  options_.program = "/bin/true";
  options_.shared_dir = dir_ / "no-folder";
  EXPECT_THAT(StartVirtiofsd(options_), HasStatus(absl::StatusCode::kNotFound, "no-folder"));
}

}  // namespace
}  // namespace lamina::vmm

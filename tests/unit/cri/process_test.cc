#include "cri/process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <thread>

#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina::cri {
namespace {

using absl::StatusCode;
using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::HasStatus;

class ProcessStdioTest : public ::testing::Test {
 protected:
  ProcessStdioTest() {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) abort();
    host_ = guest::StdioMux::Create(UniqueFd(fds[0]));
    guest_ = guest::StdioMux::Create(UniqueFd(fds[1]), {.early_bytes = guest::kMaxEarlyBytes});
    for (std::string* path : {&paths_.in, &paths_.out, &paths_.err}) {
      *path = dir_ / std::to_string(path - &paths_.in);
      if (mkfifo(path->c_str(), 0600) != 0) abort();
    }
  }
  static void Pipe(UniqueFd& read, UniqueFd& write) {
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) != 0) abort();
    read.reset(fds[0]);
    write.reset(fds[1]);
  }
  static std::string ReadAll(int fd) {
    std::string all;
    char buffer[4096];
    for (ssize_t n; (n = read(fd, buffer, sizeof buffer)) > 0;) all.append(buffer, static_cast<size_t>(n));
    return all;
  }
  static void Write(int fd, const std::string& text) {
    ASSERT_EQ(write(fd, text.data(), text.size()), static_cast<ssize_t>(text.size()));
  }

  testing::TempDir dir_;
  std::unique_ptr<guest::StdioMux> host_, guest_;
  StdioPaths paths_;
};

TEST_F(ProcessStdioTest, CarriesThreeStreams) {
  // containerd has its ends open before the shim opens any.
  const UniqueFd out(open(paths_.out.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  const UniqueFd err(open(paths_.err.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  const auto stdio = ProcessStdio::Open(paths_, *host_, 7);
  ASSERT_OK(stdio.status());
  const StreamIds ids = (*stdio)->ids();
  EXPECT_EQ(ids.in, 7U);
  EXPECT_EQ(ids.out, 8U);
  EXPECT_EQ(ids.err, 9U);
  UniqueFd in_read, in_write, out_read, out_write, err_read, err_write;
  Pipe(in_read, in_write);
  Pipe(out_read, out_write);
  Pipe(err_read, err_write);
  ASSERT_OK(guest_->AttachSink(ids.in, std::move(in_write), nullptr));
  ASSERT_OK(guest_->AttachSource(ids.out, std::move(out_read), nullptr));
  ASSERT_OK(guest_->AttachSource(ids.err, std::move(err_read), nullptr));
  Write(out_write.get(), "output");
  Write(err_write.get(), "errors");
  {
    const UniqueFd in(open(paths_.in.c_str(), O_WRONLY | O_CLOEXEC));
    Write(in.get(), "input");
  }
  // The writer has gone; only CloseIO ends the guest's input.
  char buffer[16];
  ASSERT_EQ(read(in_read.get(), buffer, sizeof buffer), 5);
  pollfd more{in_read.get(), POLLIN, 0};
  EXPECT_EQ(poll(&more, 1, 50), 0) << "no end before CloseIO";
  (*stdio)->CloseStdin();
  (*stdio)->CloseStdin();
  EXPECT_EQ(ReadAll(in_read.get()), "");
  out_write.reset();
  err_write.reset();
  (*stdio)->DrainAndClose(seconds(60));
  ASSERT_EQ(read(out.get(), buffer, sizeof buffer), 6);
  EXPECT_EQ(std::string(buffer, 6), "output");
  ASSERT_EQ(read(err.get(), buffer, sizeof buffer), 6);
  EXPECT_EQ(read(out.get(), buffer, sizeof buffer), 0) << "the FIFO's end, once all is written";
}

TEST_F(ProcessStdioTest, ATerminalHasOneOutput) {
  paths_.terminal = true;
  const auto stdio = ProcessStdio::Open(paths_, *host_, 1);
  ASSERT_OK(stdio.status());
  EXPECT_EQ((*stdio)->ids().err, 0U);
  EXPECT_EQ((*stdio)->ids().out, 2U);
}

TEST_F(ProcessStdioTest, WithoutPathsThereAreNoStreams) {
  const auto stdio = ProcessStdio::Open({}, *host_, 1);
  ASSERT_OK(stdio.status());
  EXPECT_EQ((*stdio)->ids().in + (*stdio)->ids().out + (*stdio)->ids().err, 0U);
  (*stdio)->DrainAndClose(seconds(3600));
}

TEST_F(ProcessStdioTest, AMissingFifoIsNamedAndNothingStaysAttached) {
  const std::string missing = dir_ / "missing";
  for (std::string StdioPaths::*part : {&StdioPaths::in, &StdioPaths::out, &StdioPaths::err}) {
    StdioPaths paths = paths_;
    paths.*part = missing;
    EXPECT_THAT(ProcessStdio::Open(paths, *host_, 1), HasStatus(StatusCode::kNotFound, missing));
    // The ids are free again.
    const auto again = ProcessStdio::Open(paths_, *host_, 1);
    ASSERT_OK(again.status());
    (*again)->DrainAndClose(milliseconds(0));
  }
  EXPECT_OK(host_->status());
}

TEST_F(ProcessStdioTest, OutputThatNobodyReadsEndsAtTheDeadline) {
  const auto stdio = ProcessStdio::Open(paths_, *host_, 1);
  ASSERT_OK(stdio.status());
  UniqueFd read_end, write_end;
  Pipe(read_end, write_end);
  ASSERT_OK(guest_->AttachSource((*stdio)->ids().out, std::move(read_end), nullptr));
  std::thread flood([fd = std::move(write_end)]() mutable {
    signal(SIGPIPE, SIG_IGN);
    const std::string much(1 << 20, 'x');
    while (write(fd.get(), much.data(), much.size()) > 0) {
    }
  });
  (*stdio)->DrainAndClose(milliseconds(50));
  EXPECT_OK(host_->status());
  guest_.reset();  // ends the flood
  flood.join();
}

TEST(Process, LivesOnceAndTheFirstExitCounts) {
  Process process("c", "", "", {}, nullptr);
  EXPECT_EQ(process.status(), ProcessStatus::kCreated);
  EXPECT_FALSE(process.exit().has_value());
  process.SetPid(5);
  process.SetRunning(6);
  EXPECT_EQ(process.status(), ProcessStatus::kRunning);
  EXPECT_EQ(process.pid(), 6U);
  std::thread waiter([&] { EXPECT_EQ(process.WaitExit().status, 3U); });
  EXPECT_TRUE(process.SetExited({3, 9}));
  EXPECT_FALSE(process.SetExited({4, 10}));
  waiter.join();
  EXPECT_EQ(process.exit()->unix_nanos, 9);
  process.SetRunning(7);
  EXPECT_EQ(process.status(), ProcessStatus::kStopped) << "what has ended does not run again";
}

}  // namespace
}  // namespace lamina::cri

// QemuVm against a program that plays QEMU: a script that fails, and what is refused before anything starts.
#include "vmm/qemu_vm.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/file_system.h"
#include "base/process.h"
#include "base/units.h"
#include "base/unix_socket.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"
#include "vmm/process_log.h"
#include "vmm/qemu_command.h"

namespace lamina::vmm {
namespace {

using lamina::testing::HasStatus;
using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

class QemuVmStartTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const char* name : {"vmlinux", "initramfs", "qboot"}) std::ofstream(dir_ / name) << name;
    spec_.name = "pod-1";
    spec_.kernel = dir_ / "vmlinux";
    spec_.initramfs = dir_ / "initramfs";
    spec_.firmware = dir_ / "qboot";
    spec_.runtime_dir = dir_.path();
    spec_.memory_bytes = 128 * kMiB;
  }
  // A program in QEMU's place; it leaves its pid in "pid".
  void PlayQemu(const std::string& script) {
    spec_.qemu = dir_ / "qemu";
    std::ofstream(spec_.qemu) << "#!/bin/sh\necho $$ > " << (dir_ / "pid") << "\n" << script << "\n";
    ASSERT_EQ(chmod(spec_.qemu.c_str(), 0755), 0);
  }
  bool QemuLives() {
    pid_t pid = 0;
    std::ifstream(dir_ / "pid") >> pid;
    EXPECT_GT(pid, 0);
    return kill(pid, 0) == 0;
  }
  absl::Status Start() { return QemuVm::Start(spec_, options_).status(); }

  lamina::testing::TempDir dir_;
  VmSpec spec_;
  StartOptions options_;
};

TEST_F(QemuVmStartTest, MissingFilesAreNamed) {
  spec_.kernel = dir_ / "no-kernel";
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kNotFound, dir_ / "no-kernel"));
  SetUp();
  spec_.qemu = dir_ / "no-qemu";
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kNotFound, dir_ / "no-qemu"));
}

TEST_F(QemuVmStartTest, ImpossibleMachinesAreRefused) {
  spec_.memory_bytes = 128 * kMiB + 1;
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kInvalidArgument, "whole MiB"));
  SetUp();
  spec_.vcpus = 0;
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kInvalidArgument, "0 vCPUs"));
  spec_.vcpus = 1;
  spec_.hotplug_ports = 65;
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kInvalidArgument, "at most 64"));
  spec_.hotplug_ports = 8;
  spec_.boot_arenas.resize(9);
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kInvalidArgument, "at most 8"));
}

TEST_F(QemuVmStartTest, ASocketPathThatLinuxCannotHoldIsRefusedWithItsLength) {
  spec_.runtime_dir = "/" + std::string(100, 'd');
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kInvalidArgument, "is 114 bytes, Linux allows 107"));
}

TEST_F(QemuVmStartTest, AnArenaMustBeThereWithAllItsBytes) {
  spec_.boot_arenas = {{"a", dir_ / "arena", 4 * kMiB}};
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kNotFound, dir_ / "arena"));
  std::ofstream(dir_ / "arena") << "short";
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kInvalidArgument, "not a file of 4194304 bytes"));
  spec_.boot_arenas = {{"a,readonly=off", dir_ / "arena", 4 * kMiB}};
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kInvalidArgument, "arena id"));
}

TEST_F(QemuVmStartTest, AQemuThatEndsAtOnceIsQuoted) {
  PlayQemu("echo 'qemu: could not load PC BIOS' >&2; exit 1");
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kUnavailable, "could not load PC BIOS"));
  EXPECT_FALSE(QemuLives());
}

TEST_F(QemuVmStartTest, AQemuThatNeverAnswersIsEnded) {
  PlayQemu("exec sleep 1000");
  options_.timeout = milliseconds(300);
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kDeadlineExceeded, "no answer from QEMU in time"));
  EXPECT_FALSE(QemuLives());
}

// A guest can make it write before it answers, and while it boots.
TEST_F(QemuVmStartTest, TheLogOfAStartIsKeptShort) {
  const std::string log = QemuLog(spec_.runtime_dir);
  PlayQemu("head -c 8000000 /dev/zero; exec sleep 1000");
  const UniqueFd cancel(eventfd(0, EFD_CLOEXEC));
  options_.cancel_fd = cancel.get();
  options_.timeout = seconds(300);
  struct stat info {};
  std::thread watcher([&] {
    const auto deadline = steady_clock::now() + seconds(30);
    const auto is_short = [&] {
      return stat(log.c_str(), &info) == 0 && info.st_size == 8'000'000 &&
             static_cast<uint64_t>(info.st_blocks) * 512 <= kLogMaxBytes;
    };
    while (!is_short() && steady_clock::now() < deadline) usleep(1000);
    eventfd_write(cancel.get(), 1);
  });
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kCancelled, "given up"));
  watcher.join();
  EXPECT_EQ(info.st_size, 8'000'000);
  EXPECT_LE(static_cast<uint64_t>(info.st_blocks) * 512, kLogMaxBytes);
}

// virtiofsd's end is QEMU's, whose own words do not say why.
TEST_F(QemuVmStartTest, AVirtiofsdThatEndedIsQuoted) {
  spec_.virtiofs_socket = spec_.runtime_dir + "/fs.sock";
  ASSERT_OK(ListenUnix(spec_.virtiofs_socket));  // and nobody listens any more
  std::ofstream(VirtiofsdLog(spec_.runtime_dir)) << "no such source\n";
  PlayQemu("exec sleep 1000");
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kUnavailable, "virtiofsd said: no such source"));
  const auto listener = ListenUnix(spec_.virtiofs_socket);
  ASSERT_OK(listener);
  PlayQemu("echo 'vhost_backend_init failed' >&2; exit 1");
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kUnavailable,
                                 "vhost_backend_init failed; virtiofsd said: no such source"));
}

// What is told is the pid of the program that runs, before it has said a word.
TEST_F(QemuVmStartTest, ThePidIsToldBeforeQemuAnswers) {
  PlayQemu("exec sleep 1000");
  pid_t pid = 0;
  uint64_t start_time = 0;
  options_.timeout = milliseconds(300);
  options_.on_started = [&](pid_t its_pid, uint64_t its_start_time) {
    pid = its_pid;
    start_time = its_start_time;
    EXPECT_TRUE(ProcessAlive(pid, start_time));
    return absl::OkStatus();
  };
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kDeadlineExceeded, "no answer from QEMU in time"));
  EXPECT_GT(pid, 0);
  EXPECT_FALSE(ProcessAlive(pid, start_time));
}

TEST_F(QemuVmStartTest, AQemuWhosePidCannotBeWrittenDownIsEnded) {
  PlayQemu("exec sleep 1000");
  pid_t pid = 0;
  uint64_t start_time = 0;
  options_.on_started = [&](pid_t its_pid, uint64_t its_start_time) {
    pid = its_pid;
    start_time = its_start_time;
    return absl::ResourceExhaustedError("no space for the state");
  };
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kResourceExhausted, "no space for the state"));
  EXPECT_GT(pid, 0);
  EXPECT_FALSE(ProcessAlive(pid, start_time));
}

// QEMU as far as it speaks QMP.
class SpeakingQemuTest : public QemuVmStartTest {
 protected:
  void SetUp() override {
    QemuVmStartTest::SetUp();
    spec_.qemu = LAMINA_FAKE_QEMU;
    options_.on_started = [this](pid_t pid, uint64_t start_time) {
      pid_ = pid;
      start_time_ = start_time;
      return absl::OkStatus();
    };
  }
  void TearDown() override { EXPECT_OK(KillProcess(pid_, start_time_, seconds(10))); }
  std::unique_ptr<Vm> StartVm() {
    auto vm = QemuVm::Start(spec_, options_);
    EXPECT_OK(vm);
    return vm.ok() ? *std::move(vm) : nullptr;
  }
  // False after half a minute.
  static bool Await(const std::function<bool()>& condition) {
    const auto deadline = steady_clock::now() + seconds(30);
    while (!condition()) {
      if (steady_clock::now() >= deadline) return false;
      usleep(1000);
    }
    return true;
  }

  // QEMU gets one end of a pipe, as its tap: the other is readable (end of file) once its last thread has
  // ended.
  UniqueFd HeldByQemu() {
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    qemus_end_ = UniqueFd(ends[1]);
    spec_.tap_fd = 3;
    spec_.mac = "02:00:00:00:00:01";
    options_.tap_fd = ends[1];
    options_.on_started = [this, then = options_.on_started](pid_t pid, uint64_t start_time) {
      qemus_end_ = UniqueFd();
      return then(pid, start_time);
    };
    return UniqueFd(ends[0]);
  }
  static bool Readable(int fd) {
    pollfd end{fd, POLLIN, 0};
    return poll(&end, 1, 0) == 1;
  }

  pid_t pid_ = 0;
  uint64_t start_time_ = 0;
  UniqueFd qemus_end_;
};

TEST_F(SpeakingQemuTest, AStartThatIsGivenUpEndsAtOnceAndLeavesNothing) {
  spec_.name = "silent";
  const UniqueFd cancel(eventfd(0, EFD_CLOEXEC));
  options_.cancel_fd = cancel.get();
  options_.timeout = seconds(300);
  const std::string log = QemuLog(spec_.runtime_dir);
  std::thread owner([&] {
    EXPECT_TRUE(Await([&] { return LogTail(log, 100) == "connected"; }));
    eventfd_write(cancel.get(), 1);
  });
  EXPECT_THAT(Start(), HasStatus(absl::StatusCode::kCancelled, "given up"));
  owner.join();
  EXPECT_GT(pid_, 0);
  EXPECT_FALSE(ProcessAlive(pid_, start_time_));
}

TEST_F(SpeakingQemuTest, ALogThatGrowsForEverStaysShortAndTellsItsEnd) {
  spec_.name = "flood";
  const auto vm = StartVm();
  ASSERT_NE(vm, nullptr);
  std::thread watcher([&] { EXPECT_TRUE(vm->WaitExit(-1)); });
  const std::string log = QemuLog(spec_.runtime_dir);
  struct stat info {};
  // 4 MiB each; the first was the one that negotiates.
  for (int command = 2; command <= 17; ++command) {
    EXPECT_OK(vm->resizer().RequestMemory(0));
    EXPECT_TRUE(Await([&] {
      return stat(log.c_str(), &info) == 0 && static_cast<uint64_t>(info.st_blocks) * 512 <= kLogMaxBytes;
    })) << info.st_blocks;
  }
  EXPECT_GT(info.st_size, 64 << 20);
  EXPECT_EQ(kill(vm->pid(), SIGKILL), 0);
  watcher.join();
  EXPECT_THAT(vm->Alive(), HasStatus(absl::StatusCode::kUnavailable, "answers command 17"));
}

// A debugger that holds QEMU at its very end keeps SIGKILL from ending it.
TEST_F(SpeakingQemuTest, AKillThatTimedOutIsTriedAgainByTheNext) {
  const UniqueFd held = HeldByQemu();
  const auto vm = StartVm();
  ASSERT_NE(vm, nullptr);
  ASSERT_EQ(ptrace(PTRACE_SEIZE, pid_, nullptr, PTRACE_O_TRACEEXIT), 0) << strerror(errno);
  for (const milliseconds timeout : {milliseconds(0), milliseconds(100), milliseconds(0)}) {
    EXPECT_THAT(vm->Kill(timeout), HasStatus(absl::StatusCode::kDeadlineExceeded, "does not die"));
    EXPECT_TRUE(ProcessAlive(pid_, start_time_));
    EXPECT_OK(vm->Alive());
  }
  int status = 0;
  EXPECT_TRUE(Await([&] { return waitpid(pid_, &status, WNOHANG) == pid_; })) << "it was never held";
  EXPECT_EQ(status >> 8, SIGTRAP | (PTRACE_EVENT_EXIT << 8));
  EXPECT_FALSE(Readable(held.get()));
  EXPECT_EQ(ptrace(PTRACE_DETACH, pid_, nullptr, nullptr), 0);
  EXPECT_OK(vm->Kill(seconds(30)));
  EXPECT_TRUE(Readable(held.get())) << "killed, and still running";
  EXPECT_FALSE(ProcessAlive(pid_, start_time_));
  EXPECT_NOT_OK(vm->Alive());
  EXPECT_OK(vm->Kill(milliseconds(0)));
}

// A process's first thread may be a zombie while others run, and hold its memory.
TEST_F(SpeakingQemuTest, LivesAsLongAsItsLastThread) {
  spec_.name = "headless";
  const UniqueFd held = HeldByQemu();
  const auto vm = StartVm();
  ASSERT_NE(vm, nullptr);
  ASSERT_TRUE(Await([&] {
    const std::string stat = FileSystem::Real().Read(fmt::format("/proc/{}/stat", pid_), 4096).value_or("");
    return stat.find(") Z ") != std::string::npos;
  }));
  EXPECT_OK(vm->Alive());
  EXPECT_OK(vm->resizer().RequestMemory(0)) << "it answers";
  // The helper is gone, and QEMU does not follow it.
  const UniqueFd helper(eventfd(1, EFD_CLOEXEC));
  EXPECT_FALSE(vm->WaitExit(helper.get()));
  EXPECT_FALSE(Readable(held.get()));
  EXPECT_OK(vm->Kill(seconds(30)));
  EXPECT_TRUE(Readable(held.get())) << "killed, and still running";
  EXPECT_FALSE(ProcessAlive(pid_, start_time_));
  EXPECT_TRUE(vm->WaitExit(helper.get()));
}

size_t OpenDescriptors() {
  return static_cast<size_t>(std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

TEST_F(SpeakingQemuTest, QemuHasItsTapItsSocketsAndNoOtherDescriptorOfOurs) {
  spec_.name = "fds";
  const UniqueFd careless(open("/dev/null", O_RDONLY));  // not closed on exec
  spec_.tap_fd = kTapFd;
  spec_.mac = "02:00:00:00:00:01";
  options_.tap_fd = careless.get();
  const size_t before = OpenDescriptors();
  for (int round = 0; round < 3; ++round) {
    const auto vm = StartVm();
    ASSERT_NE(vm, nullptr);
    EXPECT_EQ(LogTail(QemuLog(spec_.runtime_dir), 22), "[0][1][2][3][4][5][6]");
    EXPECT_OK(vm->Kill(seconds(30)));
  }
  spec_.tap_fd = -1;
  options_.tap_fd = -1;
  {
    const auto vm = StartVm();
    ASSERT_NE(vm, nullptr);
    EXPECT_EQ(LogTail(QemuLog(spec_.runtime_dir), 20), " [0][1][2][4][5][6]");
    EXPECT_OK(vm->Kill(seconds(30)));
  }
  EXPECT_EQ(OpenDescriptors(), before);
}

}  // namespace
}  // namespace lamina::vmm

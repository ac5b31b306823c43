// Each attempt is made twice: free, where it must succeed, and confined. A machine that has no namespaces for
// us fails these tests.
#include "base/confinement.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <poll.h>
#include <seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <future>
#include <memory>
#include <sstream>
#include <thread>

#include "base/file_system.h"
#include "base/unique_fd.h"
#include "tests/testing/status_matchers.h"
#include "tests/testing/temp_dir.h"

namespace lamina {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using testing::HasStatus;
using ::testing::HasSubstr;
using testing::TempDir;
using ::testing::UnorderedElementsAre;

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

class ConfinementTest : public ::testing::Test {
 protected:
  ConfinementTest() {
    std::filesystem::create_directories(tree_ + "/d");
    std::ofstream(tree_ + "/secret") << "of the layer";
    std::ofstream(image_) << "";
    EXPECT_EQ(chmod((tree_ + "/secret").c_str(), 0), 0);
    EXPECT_EQ(chown((tree_ + "/secret").c_str(), 1234, 1234), 0);
    EXPECT_EQ(setxattr((tree_ + "/d").c_str(), "trusted.overlay.opaque", "y", 1, 0), 0) << strerror(errno);
  }

  static Confinement Prepared(std::vector<int> capabilities = {CAP_DAC_READ_SEARCH},
                              std::vector<SystemCall> system_calls = {}) {
    auto made =
        Confinement::Prepare({LAMINA_CONFINEMENT_PROBE, std::move(capabilities), std::move(system_calls)});
    EXPECT_OK(made);
    EXPECT_OK(made->shortfall());
    return *std::move(made);
  }
  ConfinedRun Attempt(std::vector<std::string> arguments) const {
    ConfinedRun run;
    run.arguments = std::move(arguments);
    run.files = {{tree_, "/layer"}, {image_, "/image", true}};
    run.wall_time = seconds(60);
    return run;
  }
  static std::string Free(const std::vector<std::string>& arguments) {
    std::vector<std::string> argv = {LAMINA_CONFINEMENT_PROBE};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    return Said(RunCommand(argv, seconds(60)));
  }
  std::string Confined(const std::vector<std::string>& arguments) const {
    return Said(confinement_.Run(Attempt(arguments)));
  }
  static std::string Said(const absl::StatusOr<CommandResult>& result) {
    if (!result.ok()) return Message(result.status());
    if (result->exit_code == 0) return "succeeded";
    std::string said = result->output;
    while (!said.empty() && said.back() == '\n') said.pop_back();
    return result->exit_code == 10 ? said : fmt::format("exit code {} {}", result->exit_code, said);
  }

  const TempDir dir_;
  const std::string tree_ = dir_ / "tree", image_ = dir_ / "image";
  const Confinement confinement_ = Prepared();
};

TEST_F(ConfinementTest, OnlyItsFilesExist) {
  const auto list = [&](const std::string& path) {
    return Lines(confinement_.Run(Attempt({"list", path}))->output);
  };
  const std::string program = std::filesystem::canonical(LAMINA_CONFINEMENT_PROBE);
  const std::string top = program.substr(1, program.find('/', 1) - 1);
  EXPECT_THAT(list("/"),
              ::testing::IsSubsetOf({top, std::string("layer"), std::string("image"), std::string("lib"),
                                     std::string("lib64"), std::string("usr")}));
  EXPECT_THAT(list("/layer"), UnorderedElementsAre("secret", "d"));
  EXPECT_THAT(list(std::filesystem::path(program).parent_path()),
              ElementsAre(std::filesystem::path(program).filename().string()));
  EXPECT_EQ(Free({"read", "/etc/passwd"}), "succeeded");
  for (const char* path : {"/etc/passwd", "/proc/self/root/etc/passwd", "/../../etc/passwd",
                           "/layer/../../../etc/passwd", "/dev/null", "/proc/1/environ"}) {
    EXPECT_EQ(Confined({"read", path}), "ENOENT") << path;
  }
}

TEST_F(ConfinementTest, ReadsWhatItIsGivenWhateverItsMode) {
  EXPECT_EQ(Confined({"read", "/layer/secret"}), "succeeded");
  EXPECT_EQ(Said(Prepared({}).Run(Attempt({"read", "/layer/secret"}))), "EACCES");
  EXPECT_EQ(Confined({"attribute", "/layer/d"}), "ENODATA") << "hidden without CAP_SYS_ADMIN";
  EXPECT_EQ(Said(Prepared({CAP_SYS_ADMIN}).Run(Attempt({"attribute", "/layer/d"}))), "succeeded");
}

TEST_F(ConfinementTest, WritesNothingButItsOutput) {
  EXPECT_EQ(Confined({"write", "/image"}), "succeeded");
  EXPECT_EQ(Free({"write", tree_ + "/new"}), "succeeded");
  std::ofstream(tree_ + "/open") << "to all";
  for (const char* path : {"/layer/new", "/layer/open", "/new", "/lib64/new", "/lib64/ld-linux-x86-64.so.2"})
    EXPECT_EQ(Confined({"write", path}), "EROFS") << path;
}

TEST_F(ConfinementTest, DevicesAreDead) {
  ASSERT_EQ(mknod((tree_ + "/zero").c_str(), S_IFCHR | 0666, makedev(1, 5)), 0);
  EXPECT_EQ(Free({"read", tree_ + "/zero"}), "succeeded");
  EXPECT_EQ(Confined({"read", "/layer/zero"}), "EACCES");
  EXPECT_EQ(Free({"node", dir_ / "node"}), "succeeded");
  EXPECT_EQ(Confined({"node", "/layer/node"}), "EROFS");
  // Where it may write, it lacks the capability.
  ConfinedRun run = Attempt({"node", "/out/node"});
  std::filesystem::create_directory(dir_ / "out");
  run.files.push_back({dir_ / "out", "/out", true});
  EXPECT_EQ(Said(confinement_.Run(run)), "EPERM");
}

TEST_F(ConfinementTest, RunsNothingThatItWrote) {
  EXPECT_EQ(Free({"run", image_}), "succeeded");
  EXPECT_EQ(Confined({"run", "/image"}), "EACCES");
}

TEST_F(ConfinementTest, ReachesNoNetworkProcessOrMemoryOfTheNode) {
  const UniqueFd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(bind(listener.get(), generic, sizeof address), 0);
  ASSERT_EQ(listen(listener.get(), 4), 0);
  ASSERT_EQ(getsockname(listener.get(), generic, &length), 0);
  const std::string port = std::to_string(ntohs(address.sin_port));
  EXPECT_EQ(Free({"connect", port}), "succeeded");
  EXPECT_EQ(Confined({"connect", port}), "ENETUNREACH");

  const std::string self = std::to_string(getpid());
  EXPECT_EQ(Free({"process", self}), "succeeded");
  EXPECT_EQ(Confined({"process", self}), "ESRCH");
  EXPECT_EQ(Confined({"process", "1"}), "succeeded") << "itself";

  const key_t key = 0x4c610000 + getpid() % 65536;
  const int segment = shmget(key, 4096, IPC_CREAT | IPC_EXCL | 0600);
  ASSERT_GE(segment, 0);
  EXPECT_EQ(Free({"segment", std::to_string(key)}), "succeeded");
  EXPECT_EQ(Confined({"segment", std::to_string(key)}), "ENOENT");
  shmctl(segment, IPC_RMID, nullptr);
}

TEST_F(ConfinementTest, MountsNothing) {
  EXPECT_EQ(Confined({"mount", "/layer"}), "EPERM");
  EXPECT_EQ(Said(Prepared({CAP_SYS_ADMIN}).Run(Attempt({"mount", "/layer"}))), "succeeded")
      << "in its own namespace, which nobody sees";
  EXPECT_TRUE(std::filesystem::exists(tree_ + "/secret"));
}

TEST_F(ConfinementTest, InheritsNothing) {
  setenv("LAMINA_SECRET", "of laminad", 1);
  ConfinedRun run = Attempt({"environment"});
  run.env = {"A=b"};
  EXPECT_THAT(Lines(confinement_.Run(run)->output), UnorderedElementsAre("A=b", "LC_ALL=C"));
  unsetenv("LAMINA_SECRET");
  const UniqueFd leaked(open("/etc/passwd", O_RDONLY));
  for (int fd = 3; fd < 64; ++fd) EXPECT_EQ(Confined({"descriptor", std::to_string(fd)}), "EBADF");
}

TEST_F(ConfinementTest, CallsThatAreNotNamedAreRefused) {
  const Confinement filtered = Prepared({CAP_SYS_ADMIN}, {{"brk"},
                                                          {"mmap"},
                                                          {"munmap"},
                                                          {"mprotect"},
                                                          {"openat"},
                                                          {"close"},
                                                          {"read"},
                                                          {"pread64"},
                                                          {"fstat"},
                                                          {"newfstatat"},
                                                          {"arch_prctl"},
                                                          {"set_tid_address"},
                                                          {"prlimit64", 2},
                                                          {"fork"}});
  const auto call = [&](int number) { return Said(filtered.Run(Attempt({"call", std::to_string(number)}))); };
  EXPECT_EQ(call(SYS_fork), "succeeded");
  EXPECT_EQ(call(SYS_prlimit64), "EPERM") << "it would set one";
  for (const int number : {SYS_mount, SYS_socket, SYS_unshare, SYS_bpf, SYS_clone})
    EXPECT_EQ(call(number), "EPERM") << number;
  EXPECT_EQ(Free({"call", std::to_string(SYS_socket)}), "succeeded");
  EXPECT_THAT(Confinement::Prepare({LAMINA_CONFINEMENT_PROBE, {}, {{"no_such_call"}}}),
              HasStatus(absl::StatusCode::kInvalidArgument, "no_such_call"));
}

TEST_F(ConfinementTest, LimitsHold) {
  const std::string bytes = std::to_string(64 << 20);
  ConfinedRun run = Attempt({"take", bytes});
  EXPECT_EQ(Said(confinement_.Run(run)), "succeeded");
  run.memory_bytes = 32 << 20;
  EXPECT_EQ(Said(confinement_.Run(run)), "ENOMEM");

  run = Attempt({"fill", "/image", std::to_string(4 << 20)});
  EXPECT_EQ(Said(confinement_.Run(run)), "succeeded");
  run.file_bytes = 1 << 20;
  ASSERT_EQ(truncate(image_.c_str(), 0), 0);
  EXPECT_NE(Said(confinement_.Run(run)), "succeeded");
  EXPECT_EQ(std::filesystem::file_size(image_), 1u << 20);

  run = Attempt({"spin"});
  run.cpu_time = seconds(1);
  EXPECT_EQ(Said(confinement_.Run(run)), "exit code 137 ");
  run.cpu_time = seconds(0);
  run.wall_time = milliseconds(1500);
  EXPECT_THAT(confinement_.Run(run), HasStatus(absl::StatusCode::kDeadlineExceeded, "1500 ms"));
}

// As in a container: a lower limit of our own is no reason to fail.
TEST_F(ConfinementTest, OurOwnLimitsStay) {
  const pid_t pid = fork();
  if (pid == 0) {
    const rlimit hard{0, 0};
    setrlimit(RLIMIT_CORE, &hard);
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2];
    syscall(SYS_capget, &header, data);
    data[0].effective = data[0].permitted &= ~(1U << CAP_SYS_RESOURCE);
    syscall(SYS_capset, &header, data);
    const auto result = confinement_.Run(Attempt({"nothing"}));
    _exit(result.ok() && result->exit_code == 0 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(pid, &status, 0), pid);
  EXPECT_EQ(status, 0);
}

TEST_F(ConfinementTest, ItsEndIsThatOfAllThatItStarted) {
  const std::string fifo = dir_ / "alive";
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  const UniqueFd alive(open(fifo.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  ConfinedRun run = Attempt({"linger", "/alive"});
  run.files.push_back({fifo, "/alive", true});
  std::stop_source stop;
  auto running =
      std::async(std::launch::async, [&] { return confinement_.Run(run, stop.get_token()).status(); });
  // Both have said that they are there.
  for (int said = 0; said < 2;) {
    pollfd ready{alive.get(), POLLIN, 0};
    ASSERT_EQ(poll(&ready, 1, 60'000), 1);
    char byte;
    if (read(alive.get(), &byte, 1) == 1) ++said;
  }
  stop.request_stop();
  EXPECT_THAT(running.get(), HasStatus(absl::StatusCode::kCancelled, "linger"));
  char byte;
  EXPECT_EQ(read(alive.get(), &byte, 1), 0) << "at once: the one that left the group too";
  EXPECT_EQ(waitpid(-1, nullptr, WNOHANG), -1) << "a child is left";
  // What this thread starts from now on is in its own pid namespace again.
  EXPECT_EQ(Free({"process", std::to_string(getpid())}), "succeeded");
}

TEST_F(ConfinementTest, LeavesNoMountAndNoCore) {
  const auto mounts = [] { return *FileSystem::Real().Read("/proc/self/mountinfo", 1 << 20); };
  const std::string before = mounts();
  EXPECT_THAT(Confined({"abort"}), HasSubstr("exit code 1"));
  EXPECT_EQ(mounts(), before);
}

// The capabilities and filters of a thread, as a container's would be, end with it.
template <typename F>
void OnThread(F&& work) {
  std::thread(std::forward<F>(work)).join();
}

void Refuse(const std::vector<std::string>& calls) {
  const std::unique_ptr<void, void (*)(void*)> filter(seccomp_init(SCMP_ACT_ALLOW), seccomp_release);
  for (const std::string& call : calls) {
    ASSERT_EQ(
        seccomp_rule_add(filter.get(), SCMP_ACT_ERRNO(EPERM), seccomp_syscall_resolve_name(call.c_str()), 0),
        0);
  }
  ASSERT_EQ(seccomp_load(filter.get()), 0);
}

TEST_F(ConfinementTest, WithoutPivotRootItHasARootAllTheSame) {
  OnThread([&] {
    Refuse({"pivot_root"});
    const Confinement confinement = Prepared();
    const auto listed = confinement.Run(Attempt({"list", "/layer"}));
    ASSERT_OK(listed);
    EXPECT_THAT(Lines(listed->output), UnorderedElementsAre("secret", "d"));
    for (const char* path : {"/etc/passwd", "/../../etc/passwd"})
      EXPECT_EQ(Said(confinement.Run(Attempt({"read", path}))), "ENOENT");
  });
}

// What laminad has in the chart's container: three capabilities, none of them to change the bounding set, no
// new privileges, and the runtime's filter.
TEST_F(ConfinementTest, InTheChartsContainerNothingIsMissing) {
  OnThread([&] {
    const uint64_t kept = 1ULL << CAP_DAC_READ_SEARCH | 1ULL << CAP_SYS_ADMIN | 1ULL << CAP_SYS_CHROOT;
    for (unsigned long cap = 0; cap < 64; ++cap) {
      if ((kept >> cap & 1) == 0) prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
    }
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2] = {};
    data[0].permitted = data[0].effective = static_cast<uint32_t>(kept);
    ASSERT_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    ASSERT_EQ(syscall(SYS_capset, &header, data), 0);
    Refuse({"pivot_root", "bpf", "ptrace", "keyctl", "add_key", "userfaultfd", "open_by_handle_at"});
    const Confinement confinement = Prepared({CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN});
    EXPECT_EQ(Said(confinement.Run(Attempt({"read", "/layer/secret"}))), "succeeded");
    EXPECT_EQ(Said(confinement.Run(Attempt({"attribute", "/layer/d"}))), "succeeded");
    EXPECT_EQ(Said(confinement.Run(Attempt({"read", "/etc/passwd"}))), "ENOENT");
    EXPECT_EQ(Said(confinement.Run(Attempt({"chroot", "/layer"}))), "EPERM") << "which it was entered with";
    EXPECT_EQ(Said(confinement.Run(Attempt({"process", std::to_string(getpid())}))), "ESRCH");
  });
  EXPECT_EQ(Free({"chroot", tree_}), "succeeded");
}

TEST_F(ConfinementTest, WithoutMountsItHasTheRest) {
  OnThread([&] {
    std::ofstream(tree_ + "/open") << "to all";
    Refuse({"mount", "move_mount"});
    const auto made = Confinement::Prepare({LAMINA_CONFINEMENT_PROBE, {}, {}});
    ASSERT_OK(made);
    EXPECT_THAT(made->shortfall(),
                HasStatus(absl::StatusCode::kFailedPrecondition, "without a root of its own"));
    EXPECT_THAT(Message(made->shortfall()), HasSubstr("confine: mount"));
    EXPECT_EQ(made->PathOf({tree_, "/layer"}), tree_);
    // By Landlock. What needs no opening is what is missing: it sees that the file is there.
    EXPECT_EQ(Said(made->Run(Attempt({"read", "/etc/passwd"}))), "EACCES");
    EXPECT_EQ(Said(made->Run(Attempt({"read", "/etc/no-such-file"}))), "ENOENT");
    EXPECT_EQ(Said(made->Run(Attempt({"write", dir_ / "new"}))), "EACCES");
    EXPECT_EQ(Said(made->Run(Attempt({"write", image_}))), "succeeded");
    EXPECT_EQ(Said(made->Run(Attempt({"read", tree_ + "/open"}))), "succeeded");
    EXPECT_EQ(Said(made->Run(Attempt({"write", tree_ + "/open"}))), "EACCES");
    EXPECT_EQ(Said(made->Run(Attempt({"run", image_}))), "EACCES");
    EXPECT_EQ(Said(made->Run(Attempt({"read", tree_ + "/secret"}))), "EACCES") << "it lacks the capability";
    EXPECT_EQ(Said(made->Run(Attempt({"process", std::to_string(getpid())}))), "ESRCH");
    EXPECT_EQ(Said(made->Run(Attempt({"connect", "1"}))), "ENETUNREACH");
  });
}

TEST_F(ConfinementTest, WithoutSysAdminItHasCapabilitiesCallsAndLimits) {
  OnThread([&] {
    __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2];
    ASSERT_EQ(syscall(SYS_capget, &header, data), 0);
    data[0].effective &= ~(1U << CAP_SYS_ADMIN);
    data[0].permitted &= ~(1U << CAP_SYS_ADMIN);
    ASSERT_EQ(syscall(SYS_capset, &header, data), 0);
    // Else the exec of root takes it from the bounding set.
    ASSERT_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    const auto made = Confinement::Prepare({LAMINA_CONFINEMENT_PROBE, {CAP_DAC_READ_SEARCH}, {}});
    ASSERT_OK(made);
    EXPECT_THAT(made->shortfall(), HasStatus(absl::StatusCode::kFailedPrecondition, "without namespaces"));
    EXPECT_EQ(Said(made->Run(Attempt({"read", tree_ + "/secret"}))), "succeeded");
    EXPECT_EQ(Said(made->Run(Attempt({"read", "/etc/passwd"}))), "EACCES");
    EXPECT_EQ(Said(made->Run(Attempt({"node", dir_ / "node"}))), "EACCES");
    ConfinedRun run = Attempt({"take", std::to_string(64 << 20)});
    run.memory_bytes = 32 << 20;
    EXPECT_EQ(Said(made->Run(run)), "ENOMEM");
  });
}

TEST_F(ConfinementTest, WhatIsMissingIsNamed) {
  EXPECT_THAT(Confinement::Prepare({"no-such-program-x", {}, {}}),
              HasStatus(absl::StatusCode::kNotFound, "no-such-program-x"));
  EXPECT_THAT(Confinement::Prepare({"/etc/passwd", {}, {}}),
              HasStatus(absl::StatusCode::kInvalidArgument, "/etc/passwd"));
  ConfinedRun run = Attempt({"nothing"});
  run.files.push_back({dir_ / "gone", "/gone"});
  EXPECT_THAT(confinement_.Run(run), HasStatus(absl::StatusCode::kNotFound, "gone"));
  for (const ConfinedFile& file : {ConfinedFile{"relative", "/file"}, ConfinedFile{image_, "relative"}}) {
    run.files.back() = file;
    EXPECT_THAT(confinement_.Run(run), HasStatus(absl::StatusCode::kInvalidArgument, "relative"));
  }
}

}  // namespace
}  // namespace lamina

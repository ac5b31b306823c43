// The agent as a plain program on this machine, with the real crun, in a mount namespace of its own: what a
// debugger, the sanitizers and the coverage build can see.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/subprocess.h"
#include "base/ttrpc/client.h"
#include "base/unix_socket.h"
#include "guest/protocol/stdio_mux.h"
#include "proto/agent.pb.h"
#include "tests/integration/guest/pod.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

namespace fs = std::filesystem;
using agent::v1::Empty;
using agent::v1::ProcessRequest;

class PlainAgentTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/lamina-plain-agent-XXXXXX";
    ASSERT_NE(mkdtemp(pattern), nullptr);
    root_ = pattern;
    fs::create_directories(root_ + "/root/shared");
    fs::copy(BusyboxDirectory(), root_ + "/root/shared/rootfs",
             fs::copy_options::recursive | fs::copy_options::copy_symlinks);
    SpawnOptions options;
    // crun refuses a hybrid of cgroup v1 and v2: in the agent's mount namespace there is v2 alone.
    options.argv = {"unshare",
                    "--mount",
                    "/bin/sh",
                    "-c",
                    "mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec \"$0\" \"$@\"",
                    LAMINA_AGENT,
                    "--no-boot",
                    "--rpc-socket",
                    root_ + "/rpc",
                    "--stdio-socket",
                    root_ + "/stdio",
                    "--root",
                    root_ + "/root"};
    options.log_path = root_ + "/log";
    auto pid = Spawn(options);
    ASSERT_OK(pid);
    pid_ = *pid;
    UniqueFd stdio = Connect(root_ + "/stdio");
    ASSERT_TRUE(stdio) << Log();
    mux_ = StdioMux::Create(std::move(stdio));
    UniqueFd rpc = Connect(root_ + "/rpc");
    ASSERT_TRUE(rpc) << Log();
    client_ = ttrpc::Client::FromFd(std::move(rpc), "agent");
  }

  void TearDown() override {
    client_.reset();
    mux_.reset();
    if (pid_ > 0) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    if (HasFailure()) fprintf(stderr, "%s\n", Log().c_str());
    fs::remove_all(root_);
    for (const char* cgroup : {"/sys/fs/cgroup/unified/lamina", "/sys/fs/cgroup/lamina"}) rmdir(cgroup);
  }

  UniqueFd Connect(const std::string& path) {
    for (int i = 0; i < 500; ++i) {
      if (absl::StatusOr<UniqueFd> fd = ConnectUnix(path); fd.ok()) return std::move(*fd);
      poll(nullptr, 0, 10);
    }
    return UniqueFd();
  }

  std::string Log() {
    std::ifstream log(root_ + "/log");
    return std::string(std::istreambuf_iterator<char>(log), {});
  }

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(const ttrpc::Method<Request, Response>& method, const Request& request) {
    return ttrpc::Call(*client_, method, request, std::chrono::seconds(30));
  }

  absl::StatusOr<agent::v1::CreateContainerResponse> Create(const std::string& id, const std::string& script,
                                                            uint32_t out) {
    auto spec = nlohmann::json::parse(SpecJson({.args = {"/bin/sh", "-c", script}}));
    spec["root"]["path"] = root_ + "/root/shared/rootfs";
    spec["linux"]["namespaces"] = {{{"type", "pid"}}, {{"type", "mount"}}};
    nlohmann::json mounts = nlohmann::json::array();
    for (const auto& mount : spec["mounts"]) {
      if (mount["destination"] == "/proc" || mount["destination"] == "/dev") mounts.push_back(mount);
    }
    spec["mounts"] = mounts;
    agent::v1::CreateContainerRequest request;
    request.set_container_id(id);
    request.set_spec_json(spec.dump());
    request.set_stdout_stream(out);
    return Call(kCreateContainer, request);
  }

  // Where a stream's output will be read; before the agent hears of the stream, or it is dropped.
  UniqueFd Attach(uint32_t stream) {
    int fds[2];
    EXPECT_EQ(pipe2(fds, O_CLOEXEC), 0);
    EXPECT_OK(mux_->AttachSink(stream, UniqueFd(fds[1]), nullptr));
    return UniqueFd(fds[0]);
  }
  static std::string ReadAll(const UniqueFd& output) {
    std::string text;
    char buffer[4096];
    for (ssize_t n; (n = read(output.get(), buffer, sizeof buffer)) > 0;)
      text.append(buffer, static_cast<size_t>(n));
    return text;
  }

  std::string root_;
  pid_t pid_ = 0;
  std::unique_ptr<StdioMux> mux_;
  std::unique_ptr<ttrpc::Client> client_;
};

TEST_F(PlainAgentTest, ItRunsContainersAndEndsOnShutdown) {
  agent::v1::HelloRequest hello;
  hello.set_protocol_version(kProtocolVersion);
  ASSERT_OK(Call(kHello, hello));
  const UniqueFd output = Attach(1);
  const auto created = Create("plain", "echo $$; exit 5", 1);
  ASSERT_OK(created);
  ProcessRequest process;
  process.set_container_id("plain");
  const auto started = Call(kStartProcess, process);
  ASSERT_OK(started);
  EXPECT_EQ(ReadAll(output), "1\n");
  const auto exit = Call(kWaitProcess, process);
  ASSERT_OK(exit);
  EXPECT_EQ(exit->exit_status(), 5u);
  EXPECT_OK(Call(kDeleteProcess, process));
  EXPECT_FALSE(fs::exists(root_ + "/root/containers/plain"));
  EXPECT_FALSE(fs::exists(root_ + "/root/crun/plain"));

  // One that still runs is killed by the shutdown.
  ASSERT_OK(Create("running", "sleep 1000", 2));
  process.set_container_id("running");
  ASSERT_OK(Call(kStartProcess, process));
  EXPECT_OK(Call(kShutdown, Empty()));
  int status = 0;
  ASSERT_EQ(waitpid(pid_, &status, 0), pid_);
  pid_ = 0;
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_FALSE(fs::exists(root_ + "/root/containers/running"));
}

TEST_F(PlainAgentTest, ThePodsFilesAreInABoundedTmpfs) {
  agent::v1::HelloRequest hello;
  hello.set_protocol_version(kProtocolVersion);
  ASSERT_OK(Call(kHello, hello));
  agent::v1::ConfigureSandboxRequest configure;
  configure.set_sandbox_id("pod-1");
  const auto set = [&](const std::string& name, const std::string& content) {
    configure.clear_files();
    configure.add_files()->set_name(name);
    configure.mutable_files(0)->set_content(content);
    return Call(kConfigureSandbox, configure);
  };
  const std::string there = fmt::format("/proc/{}/root{}/root/etc", pid_, root_);
  struct stat first {
  }, again{};
  ASSERT_OK(set("resolv.conf", "nameserver 10.96.0.10\n"));
  ASSERT_EQ(stat((there + "/resolv.conf").c_str(), &first), 0);
  EXPECT_EQ(first.st_mode & 07777, 0644u);
  ASSERT_OK(set("resolv.conf", "nameserver ::1\n"));
  ASSERT_EQ(stat((there + "/resolv.conf").c_str(), &again), 0);
  EXPECT_EQ(again.st_ino, first.st_ino) << "containers have it mounted";
  std::ifstream file(there + "/resolv.conf");
  std::string line;
  std::getline(file, line);
  EXPECT_EQ(line, "nameserver ::1");
  struct statvfs fs_info {};
  ASSERT_EQ(statvfs(there.c_str(), &fs_info), 0);
  EXPECT_EQ(fs_info.f_blocks * fs_info.f_frsize, kPodFilesBytes);
  EXPECT_EQ(fs_info.f_flag & (ST_NOSUID | ST_NODEV | ST_NOEXEC), unsigned{ST_NOSUID | ST_NODEV | ST_NOEXEC});
  ASSERT_EQ(stat(there.c_str(), &again), 0);
  EXPECT_EQ(again.st_mode & 07777, 0755u);

  EXPECT_OK(set("hosts", std::string(kMaxPodFileBytes, 'x')));
  EXPECT_THAT(set("hosts", std::string(kMaxPodFileBytes + 1, 'x')),
              testing::HasStatus(absl::StatusCode::kInvalidArgument, "file hosts of the pod: 262145 bytes"));
  EXPECT_THAT(set("../hosts", "x"), testing::HasStatus(absl::StatusCode::kInvalidArgument, "../hosts"));
  for (int i = 0; i < kMaxPodFiles; ++i) configure.add_files()->set_name(fmt::format("f{}", i));
  EXPECT_THAT(Call(kConfigureSandbox, configure),
              testing::HasStatus(absl::StatusCode::kInvalidArgument, "9 files of the pod: at most 8"));
}

TEST_F(PlainAgentTest, AVolumesFilesAreKeptAndGoWithTheAgent) {
  agent::v1::PutFilesRequest put;
  put.set_volume("config");
  put.set_first(true);
  put.set_last(true);
  const auto add = [&](const std::string& path, agent::v1::FileEntry::Kind kind, const std::string& content) {
    agent::v1::FileEntry& entry = *put.add_entries();
    entry.set_path(path);
    entry.set_kind(kind);
    entry.set_mode(0755);
    entry.set_content(content);
  };
  add("", agent::v1::FileEntry::FOLDER, "");
  add("key", agent::v1::FileEntry::FILE, "value");
  ASSERT_OK(Call(kPutFiles, put));
  const std::string there = fmt::format("/proc/{}/root{}/root/volumes/config/data", pid_, root_);
  std::ifstream key(there + "/key");
  std::string line;
  std::getline(key, line);
  EXPECT_EQ(line, "value");
  struct statvfs fs_info {};
  ASSERT_EQ(statvfs(there.c_str(), &fs_info), 0);
  EXPECT_EQ(fs_info.f_flag & (ST_NOSUID | ST_NODEV | ST_NOEXEC), unsigned{ST_NOSUID | ST_NODEV});
  put.mutable_entries(1)->set_path("../key");
  EXPECT_THAT(Call(kPutFiles, put), testing::HasStatus(absl::StatusCode::kInvalidArgument, "../key"));

  agent::v1::ReadFileRequest read;
  read.set_volume("config");
  EXPECT_THAT(Call(kReadFile, read), testing::HasStatus(absl::StatusCode::kFailedPrecondition, "config"));
  put.clear_entries();
  put.set_volume("log");
  add("", agent::v1::FileEntry::FILE, "the reason");
  ASSERT_OK(Call(kPutFiles, put));
  read.set_volume("log");
  const auto answer = Call(kReadFile, read);
  ASSERT_OK(answer);
  EXPECT_EQ(answer->content(), "the reason");
  EXPECT_EQ(answer->size(), 10u);

  ASSERT_OK(Call(kShutdown, Empty()));
  int status = 0;
  ASSERT_EQ(waitpid(pid_, &status, 0), pid_);
  pid_ = 0;
  EXPECT_TRUE(fs::is_empty(root_ + "/root/volumes"));
}

TEST_F(PlainAgentTest, TheMachineIsNotItsOwn) {
  agent::v1::SetVcpusRequest vcpus;
  vcpus.set_vcpus(1);
  EXPECT_THAT(Call(kSetVcpus, vcpus), testing::HasStatus(absl::StatusCode::kFailedPrecondition));
  agent::v1::HelloRequest hello;
  hello.set_protocol_version(kProtocolVersion);
  EXPECT_OK(Call(kHello, hello));
  agent::v1::AdjustClockRequest back;
  back.set_offset_nanos(-1'000'000'000'000);
  const time_t before = time(nullptr);
  const auto answer = Call(kAdjustClock, back);
  ASSERT_OK(answer);
  EXPECT_GE(answer->unix_nanos(), int64_t{before} * 1'000'000'000);
  EXPECT_GE(time(nullptr), before);
}

}  // namespace
}  // namespace lamina::guest

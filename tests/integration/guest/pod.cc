#include "tests/integration/guest/pod.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "base/subprocess.h"
#include "tests/testing/status_matchers.h"

namespace lamina::guest {
namespace {

using Json = nlohmann::json;
using std::chrono::steady_clock;
namespace fs = std::filesystem;

uint64_t g_layers = 0;
int g_containers = 0;

// busybox-static from Debian, kept beside the kernel package.
std::string BusyboxBinary() {
  const std::string cache = LAMINA_GUEST_CACHE;
  const std::string binary = cache + "/busybox/bin/busybox";
  if (fs::exists(binary)) return binary;
  const auto run = RunChecked(
      {"/bin/sh", "-c",
       "set -e; cd " + cache +
           "; apt-get -q -o APT::Sandbox::User=root download busybox-static; "
           "rm -rf busybox.new; dpkg -x busybox-static_*.deb busybox.new; mv -T busybox.new busybox"},
      std::chrono::seconds(120));
  if (!run.ok()) {
    fprintf(stderr, "busybox-static: %s\n", Message(run).c_str());
    abort();
  }
  return binary;
}

}  // namespace

Capture::Capture(GuestVm& vm, uint32_t stream) {
  int fds[2];
  if (pipe2(fds, O_CLOEXEC) != 0) abort();
  fd_.reset(fds[0]);
  const absl::Status attached = vm.mux().AttachSink(stream, UniqueFd(fds[1]), nullptr);
  EXPECT_OK(attached);
}

Capture::~Capture() = default;

bool Capture::ReadMore(steady_clock::time_point deadline) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline - steady_clock::now()).count();
  pollfd ready{fd_.get(), POLLIN, 0};
  if (left <= 0 || poll(&ready, 1, static_cast<int>(left)) <= 0) return false;
  char buffer[65536];
  const ssize_t n = read(fd_.get(), buffer, sizeof buffer);
  if (n > 0) text_.append(buffer, static_cast<size_t>(n));
  if (n == 0) ended_ = true;
  return n >= 0;
}

std::string Capture::ToEnd(std::chrono::seconds timeout) {
  const auto deadline = steady_clock::now() + timeout;
  while (!ended_ && ReadMore(deadline)) {
  }
  EXPECT_TRUE(ended_) << "the stream has not ended; so far: " << text_.substr(0, 1000);
  return text_;
}

std::string Capture::UntilContains(const std::string& text) {
  const auto deadline = steady_clock::now() + std::chrono::seconds(30);
  while (text_.find(text) == std::string::npos && !ended_ && ReadMore(deadline)) {
  }
  EXPECT_NE(text_.find(text), std::string::npos) << "so far: " << text_.substr(0, 1000);
  return text_;
}

std::string LayerId(uint64_t number) { return fmt::format("{:064x}", number); }

const std::string& BusyboxDirectory() {
  static const std::string directory = [] {
    const std::string path = GuestVm::Shared().directory() + "/busybox";
    for (const char* sub : {"bin", "proc", "sys", "dev", "tmp", "etc"})
      fs::create_directories(path + "/" + sub);
    fs::copy_file(BusyboxBinary(), path + "/bin/busybox");
    for (const char* applet : {"sh",    "true",     "false", "cat",  "echo", "id",     "ip",        "ls",
                               "sleep", "hostname", "mount", "dd",   "stty", "head",   "wc",        "stat",
                               "touch", "ps",       "grep",  "kill", "tail", "chroot", "sha256sum", "yes"}) {
      fs::create_symlink("busybox", path + "/bin/" + applet);
    }
    return path;
  }();
  return directory;
}

std::string MountDirectory(GuestVm& vm, const std::string& directory) {
  const std::string id = LayerId(++g_layers);
  const auto image = MakeErofs(directory, vm.directory() + "/" + id.substr(48) + ".erofs");
  EXPECT_OK(image);
  const auto region = vm.AddToArena(*image);
  EXPECT_OK(region);
  agent::v1::MountLayersRequest request;
  auto* layer = request.add_layers();
  layer->set_id(id);
  *layer->mutable_pmem() = *region;
  const auto mounted = vm.Call(kMountLayers, request);
  EXPECT_OK(mounted);
  return id;
}

const std::string& BusyboxLayer(GuestVm& vm) {
  static const std::string id = MountDirectory(vm, BusyboxDirectory());
  return id;
}

std::string ProcessJson(const std::vector<std::string>& args) {
  const Json capabilities = {"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL",
                             "CAP_MKNOD", "CAP_NET_RAW",      "CAP_SETGID", "CAP_SETUID"};
  return Json{{"args", args},
              {"cwd", "/"},
              {"env", {"PATH=/bin", "TERM=xterm"}},
              {"user", {{"uid", 0}, {"gid", 0}}},
              {"noNewPrivileges", true},
              {"rlimits", Json::array({{{"type", "RLIMIT_NOFILE"}, {"hard", 1024}, {"soft", 1024}}})},
              {"capabilities",
               {{"bounding", capabilities}, {"effective", capabilities}, {"permitted", capabilities}}}}
      .dump();
}

std::string SpecJson(const ContainerOptions& options) {
  const auto mount = [](const char* at, const char* type, const char* source,
                        std::vector<std::string> flags) {
    return Json{{"destination", at}, {"type", type}, {"source", source}, {"options", flags}};
  };
  Json spec = {
      {"ociVersion", "1.0.2"},
      {"process", Json::parse(ProcessJson(options.args))},
      {"root", {{"path", "ignored"}}},
      {"mounts",
       {mount("/proc", "proc", "proc", {"nosuid", "noexec", "nodev"}),
        mount("/dev", "tmpfs", "tmpfs", {"nosuid", "strictatime", "mode=755", "size=65536k"}),
        mount("/dev/pts", "devpts", "devpts",
              {"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}),
        mount("/dev/shm", "bind", "/run/lamina/shm", {"rbind", "rw"}),
        mount("/sys", "sysfs", "sysfs", {"nosuid", "noexec", "nodev", "ro"}),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", {"nosuid", "noexec", "nodev", "relatime", "ro"})}},
      {"linux",
       {{"namespaces", {{{"type", "pid"}}, {{"type", "mount"}}, {{"type", "cgroup"}}}},
        {"maskedPaths", {"/proc/kcore", "/proc/keys"}},
        {"readonlyPaths", {"/proc/bus", "/proc/fs", "/proc/sysrq-trigger"}},
        {"seccomp",
         {{"defaultAction", "SCMP_ACT_ALLOW"},
          {"architectures", {"SCMP_ARCH_X86_64"}},
          {"syscalls",
           Json::array({{{"names", {"sethostname"}}, {"action", "SCMP_ACT_ERRNO"}, {"errnoRet", 38}}})}}},
        {"resources",
         options.resources_json.empty() ? Json::object() : Json::parse(options.resources_json)}}}};
  std::string text = spec.dump();
  if (options.change_spec) options.change_spec(text);
  return text;
}

TestContainer::TestContainer(GuestVm& vm, const ContainerOptions& options) : vm_(vm) {
  id_ = fmt::format("c{}", ++g_containers);
  agent::v1::CreateContainerRequest request;
  request.set_container_id(id_);
  request.set_spec_json(SpecJson(options));
  request.set_terminal(options.terminal);
  if (options.layers.empty()) {
    request.add_layer_ids(BusyboxLayer(vm));
  } else {
    for (const std::string& layer : options.layers) request.add_layer_ids(layer);
  }
  if (options.stdin_stream || options.terminal) request.set_stdin_stream(in_stream_ = vm.NewStream());
  request.set_stdout_stream(out_stream_ = vm.NewStream());
  out_ = std::make_unique<Capture>(vm, request.stdout_stream());
  if (!options.terminal) {
    request.set_stderr_stream(vm.NewStream());
    err_ = std::make_unique<Capture>(vm, request.stderr_stream());
  }
  created_ = vm.Call(kCreateContainer, request).status();
}

TestContainer::~TestContainer() {
  const absl::Status deleted = Delete();
  EXPECT_OK(deleted);
}

agent::v1::ProcessRequest TestContainer::Request(const std::string& exec_id) const {
  agent::v1::ProcessRequest request;
  request.set_container_id(id_);
  request.set_exec_id(exec_id);
  return request;
}

absl::Status TestContainer::Start(const std::string& exec_id) {
  return vm_.Call(kStartProcess, Request(exec_id)).status();
}

agent::v1::WaitProcessResponse TestContainer::Wait(const std::string& exec_id) {
  const auto response = vm_.Call(kWaitProcess, Request(exec_id));
  EXPECT_OK(response);
  return response.ok() ? *response : agent::v1::WaitProcessResponse();
}

absl::Status TestContainer::Signal(int signal, const std::string& exec_id, bool all) {
  agent::v1::SignalProcessRequest request;
  request.set_container_id(id_);
  request.set_exec_id(exec_id);
  request.set_signal(static_cast<uint32_t>(signal));
  request.set_all(all);
  return vm_.Call(kSignalProcess, request).status();
}

absl::Status TestContainer::Delete(const std::string& exec_id) {
  return vm_.Call(kDeleteProcess, Request(exec_id)).status();
}

TestContainer::Result TestContainer::Exec(const std::vector<std::string>& args, const std::string& input) {
  Result result;
  const std::string exec_id = fmt::format("e{}", ++execs_);
  agent::v1::ExecCreateRequest request;
  request.set_container_id(id_);
  request.set_exec_id(exec_id);
  request.set_process_json(ProcessJson(args));
  request.set_stdout_stream(vm_.NewStream());
  request.set_stderr_stream(vm_.NewStream());
  if (!input.empty()) request.set_stdin_stream(vm_.NewStream());
  Capture out(vm_, request.stdout_stream()), err(vm_, request.stderr_stream());
  result.status = vm_.Call(kExecCreate, request).status();
  if (result.status.ok()) result.status = Start(exec_id);
  if (result.status.ok()) {
    if (!input.empty()) SendInput(vm_, request.stdin_stream(), input, true);
    result.exit_status = Wait(exec_id).exit_status();
    result.out = out.ToEnd();
    result.err = err.ToEnd();
  }
  const absl::Status deleted = Delete(exec_id);
  EXPECT_OK(deleted);
  return result;
}

void SendInput(GuestVm& vm, uint32_t stream, const std::string& text, bool end) {
  int fds[2];
  ASSERT_EQ(pipe2(fds, O_CLOEXEC), 0);
  const absl::Status attached = vm.mux().AttachSource(stream, UniqueFd(fds[0]), nullptr);
  ASSERT_OK(attached);
  UniqueFd writer(fds[1]);
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = write(writer.get(), text.data() + done, text.size() - done);
    ASSERT_GT(n, 0);
    done += static_cast<size_t>(n);
  }
  if (!end) writer.release();  // stays open until the program ends
}

}  // namespace lamina::guest

#include "guest/agent/run.h"

#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <memory>
#include <optional>
#include <string_view>
#include <thread>

#include "base/log.h"
#include "base/status.h"
#include "base/ttrpc/server.h"
#include "base/ttrpc/thread.h"
#include "base/unique_fd.h"
#include "base/unix_socket.h"
#include "guest/agent/agent.h"
#include "guest/agent/boot.h"
#include "guest/agent/devices.h"
#include "guest/agent/files.h"
#include "guest/agent/modules.h"
#include "guest/agent/processes.h"
#include "guest/agent/system.h"
#include "guest/protocol/contract.h"

namespace lamina::guest {
namespace {

using std::chrono::steady_clock;

constexpr char kModules[] = "/lib/modules";
constexpr auto kPortTimeout = std::chrono::seconds(30);
// The whole shutdown; then the machine is powered off whatever still hangs.
constexpr auto kShutdownTimeout = std::chrono::seconds(20);
constexpr int kShutdownSignal = SIGUSR1, kTornDownSignal = SIGUSR2;

// Signals are taken by the main thread only, with sigtimedwait: blocked here, before there are other threads.
sigset_t BlockSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGCHLD, SIGTERM, SIGINT, SIGPWR, kShutdownSignal, kTornDownSignal}) {
    sigaddset(&set, signal);
    // PID 1 does not get signals that have no handler.
    ::signal(signal, [](int) {});
  }
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  return set;
}

absl::Status Boot() {
  RETURN_IF_ERROR(EscapeInitramfs());
  RETURN_IF_ERROR(MountBaseFileSystems());
  const int log = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
  if (log >= 0) SetLogTarget(log, LogLevel::kInfo);
  RaiseLimits();
  return EnableCgroupControllers("/sys/fs/cgroup");
}

absl::StatusOr<std::vector<ModuleEntry>> ReadModuleOrder() {
  ASSIGN_OR_RETURN(const std::string text, ReadKernelFile(std::string(kModules) + "/order"));
  return ParseModuleOrder(text);
}

absl::StatusOr<UniqueFd> OpenPort(DeviceMonitor& monitor, const char* name,
                                  std::chrono::milliseconds timeout) {
  auto device = monitor.WaitFor([name] { return Sysfs().FindSerialPort(name); }, timeout);
  if (!device.ok()) return device.status();
  const std::string node = "/dev/" + *device;
  UniqueFd fd(open(node.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, fmt::format("open {} ({})", node, name));
  return fd;
}

absl::StatusOr<UniqueFd> AcceptOne(const std::string& path) {
  ASSIGN_OR_RETURN(const UniqueFd listener, ListenUnix(path, 1));
  UniqueFd stream(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  unlink(path.c_str());
  if (!stream) return ErrnoStatus(errno, "accept on " + path);
  return stream;
}

void LoadOrLog(ModuleLoader& modules, const std::string& group) {
  const absl::Status status = modules.Load(group);
  if (!status.ok()) LogError("{}", Message(status));
}

// What every pod will need, while the host still works on its next call: the network first.
void LoadInBackground(ModuleLoader& modules) {
  const auto load = [&modules] {
    const std::vector<std::string> present = Sysfs().VirtioModaliases();
    std::set<std::string> groups;
    for (const std::string& alias : present) groups.insert(ModuleGroupOfModalias(alias));
    for (const char* first : {"virtio-1", "virtio-27"}) {
      if (groups.erase(first) > 0) LoadOrLog(modules, first);
    }
    for (const char* always : {"dm", "erofs", "overlay"}) LoadOrLog(modules, always);
    for (const std::string& group : groups) LoadOrLog(modules, group);
  };
  absl::StatusOr<std::thread> thread = ttrpc::NewThread(load);
  if (thread.ok()) return thread->detach();
  LogWarning("load modules in the background: {}", Message(thread.status()));
  load();
}

// Reaps until `until` says so. True: it did; false: `deadline` passed first.
template <typename Until>
bool ServeSignals(const sigset_t& set, ProcessTable& processes,
                  std::optional<steady_clock::time_point> deadline, Until until) {
  for (;;) {
    timespec wait{3600, 0};
    if (deadline) {
      const auto left =
          std::chrono::duration_cast<std::chrono::milliseconds>(*deadline - steady_clock::now()).count();
      if (left <= 0) return false;
      wait = {static_cast<time_t>(left / 1000), static_cast<long>(left % 1000) * 1'000'000};
    }
    const int signal = sigtimedwait(&set, nullptr, &wait);
    processes.Reap();
    if (signal > 0 && until(signal)) return true;
  }
}

absl::Status Serve(const RunOptions& options, const sigset_t& signals, double started) {
  std::vector<ModuleEntry> order;
  if (options.boot) {
    ASSIGN_OR_RETURN(order, ReadModuleOrder());
  }
  // These live until the process ends: detached threads use them.
  auto& modules = *new ModuleLoader(kModules, std::move(order));
  auto& processes = *new ProcessTable();
  RETURN_IF_ERROR(modules.Load("boot"));
  ASSIGN_OR_RETURN(auto monitor,
                   DeviceMonitor::Start([&modules, boot = options.boot](const std::string& modalias) {
                     if (boot) LoadOrLog(modules, ModuleGroupOfModalias(modalias));
                   }));
  AgentOptions agent_options;
  agent_options.root = options.root;
  agent_options.owns_machine = options.boot;
  agent_options.started_boot_seconds = started;
  UniqueFd rpc, stdio;
  if (options.boot) {
    ASSIGN_OR_RETURN(rpc, OpenPort(*monitor, kRpcPort, kPortTimeout));
    ASSIGN_OR_RETURN(stdio, OpenPort(*monitor, kStdioPort, kPortTimeout));
  } else {
    if (prctl(PR_SET_CHILD_SUBREAPER, 1) != 0) return ErrnoStatus(errno, "become a subreaper");
    ASSIGN_OR_RETURN(stdio, AcceptOne(options.stdio_socket));
  }
  const pid_t self = getpid();
  ASSIGN_OR_RETURN(auto agent, Agent::Create(agent_options, std::move(stdio), options.boot, modules, *monitor,
                                             processes, [self] { kill(self, kShutdownSignal); }));
  ttrpc::Server server;
  agent->Register(server);
  RETURN_IF_ERROR(options.boot ? server.ServeFd(std::move(rpc), /*persistent=*/true)
                               : server.Listen(options.rpc_socket));
  if (options.boot) LoadInBackground(modules);

  ServeSignals(signals, processes, std::nullopt,
               [](int signal) { return signal != SIGCHLD && signal != kTornDownSignal; });
  LogInfo("shutting down");
  // The containers' ends must be reaped meanwhile, so another thread tears down.
  const auto tear_down = [&agent, self, boot = options.boot] {
    agent->TearDown();
    if (boot) {
      kill(-1, SIGKILL);
      sync();
    }
    kill(self, kTornDownSignal);
  };
  absl::StatusOr<std::thread> thread = ttrpc::NewThread(tear_down);
  if (!thread.ok()) {
    LogError("shut down: {}; the ends of containers are not awaited", Message(thread.status()));
    tear_down();
  }
  const bool done = ServeSignals(signals, processes, steady_clock::now() + kShutdownTimeout,
                                 [](int signal) { return signal == kTornDownSignal; });
  if (options.boot) PowerOff();
  if (!done) _exit(1);
  if (thread.ok()) thread->join();
  server.Stop();
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<RunOptions> ParseArguments(int argc, char** argv) {
  RunOptions options;
  // The kernel passes words of its command line that it does not know to init: PID 1 ignores them.
  if (getpid() == 1) return options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    std::string* value = name == "--rpc-socket"     ? &options.rpc_socket
                         : name == "--stdio-socket" ? &options.stdio_socket
                         : name == "--root"         ? &options.root
                                                    : nullptr;
    if (name == "--no-boot") {
      options.boot = false;
    } else if (value == nullptr) {
      return InvalidArgument("unknown option {}", name);
    } else if (++i == argc) {
      return InvalidArgument("{} wants a value", name);
    } else {
      *value = argv[i];
    }
  }
  if (options.boot)
    return absl::InvalidArgumentError("only PID 1 can boot: give --no-boot, --rpc-socket, --stdio-socket");
  if (options.rpc_socket.empty() || options.stdio_socket.empty() || options.root.empty() ||
      options.root[0] != '/') {
    return absl::InvalidArgumentError("--no-boot wants --rpc-socket, --stdio-socket and an absolute --root");
  }
  return options;
}

absl::Status RunAgent(const RunOptions& options) {
  const double started = BootSeconds();
  // One heap: the agent's threads are many, short-lived and idle.
  mallopt(M_ARENA_MAX, 1);
  const sigset_t signals = BlockSignals();
  if (!options.boot) return Serve(options, signals, started);
  PowerOffWhenDying();
  absl::Status status = Boot();
  if (status.ok()) status = Serve(options, signals, started);
  LogError("cannot serve: {}", Message(status));
  PowerOff();
}

}  // namespace lamina::guest

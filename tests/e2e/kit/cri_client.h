// What the kubelet does with containerd, in short calls: the CRI over a unix socket.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/e2e/kit/stream.h"

namespace lamina::e2e {

// Zero means not set. CPU times in microseconds, memory in bytes.
struct Resources {
  int64_t cpu_quota = 0;
  int64_t cpu_period = 0;  // 100000 when only a quota is given
  int64_t cpu_shares = 0;
  int64_t memory = 0;
  int64_t oom_score_adj = 0;
  std::map<std::string, uint64_t> hugepages;  // "2MB" -> bytes
};

struct PodSpec {
  std::string name = "pod";
  std::string namespace_name = "e2e";
  std::string handler;   // empty: the client's default
  std::string hostname;  // empty: the name
  Resources resources;   // what the kubelet says about the whole pod
  std::map<std::string, std::string> annotations;
  std::map<std::string, std::string> sysctls;
  std::vector<std::string> dns_servers, dns_searches, dns_options;
  std::map<int, int> host_ports;  // TCP: on the host -> in the pod
  bool host_network = false;
  bool privileged = false;       // privileged containers are allowed
  bool share_processes = false;  // one PID namespace for the pod's containers
  bool less_confined =
      false;  // Options::check_pod is not asked: its programs are such that cannot be confined
};

struct MountSpec {
  std::string container_path;
  std::string host_path;
  bool readonly = false;
};

enum class Seccomp { kRuntimeDefault, kUnconfined };

struct ContainerSpec {
  std::string name = "main";
  std::string image = "localhost/lamina/busybox:1";
  std::vector<std::string> command;
  std::vector<std::string> args;
  std::string working_dir;
  std::vector<std::pair<std::string, std::string>> env;
  std::vector<MountSpec> mounts;
  std::vector<std::string> devices;   // host paths, same path in the container
  std::string device_access = "rwm";  // to all of them
  Resources resources;
  std::optional<int64_t> user, group;
  std::vector<int64_t> supplemental_groups;
  std::vector<std::string> add_capabilities, drop_capabilities;
  bool readonly_root = false;
  bool no_new_privileges = false;
  bool privileged = false;
  Seccomp seccomp = Seccomp::kRuntimeDefault;
  std::vector<std::string> extra_masked_paths, extra_readonly_paths;  // besides the kubelet's usual ones
  bool tty = false;
  bool std_in = false;
  bool stdin_once = false;
};

struct PodInfo {
  bool ready = false;
  std::string ip;
  std::string info;  // containerd's verbose JSON
};

enum class ContainerState { kCreated, kRunning, kExited, kUnknown };
struct ContainerInfo {
  ContainerState state = ContainerState::kUnknown;
  int exit_code = 0;
  std::string reason, message;
  int64_t started_at = 0, finished_at = 0;  // nanoseconds since 1970
  std::string log_path;
  std::string info;  // containerd's verbose JSON
};

struct ContainerUsage {
  uint64_t cpu_nanos = 0;
  uint64_t memory_working_set = 0;  // bytes
  uint64_t memory_usage = 0;
  uint64_t memory_rss = 0;
  uint64_t writable_layer = 0;  // of a container; containerd looks every ten seconds
};

struct LogLine {
  std::string stream;  // "stdout", "stderr"
  std::string text;    // without the newline; partial lines are joined
  bool whole = true;   // false: the log ends within this line
};

// Thread-safe; every call has a deadline. Errors carry the gRPC code and message.
class CriClient {
 public:
  struct Options {
    std::string socket;
    std::string default_handler;
    std::string log_root;       // pods' log directories are made below it
    std::string cgroup_parent;  // "/lamina-x": pods' cgroups are made below it, as the kubelet would
    // Asked of each pod that runs; on error the pod is removed, and RunPod fails with it.
    std::function<absl::Status(const std::string& pod)> check_pod;
  };
  static std::unique_ptr<CriClient> Create(Options options);
  ~CriClient();

  // Until containerd answers and says that runtime and network are ready.
  absl::Status WaitReady(Deadline deadline);
  absl::StatusOr<std::string> RuntimeVersion();

  absl::StatusOr<std::string> RunPod(const PodSpec& spec,
                                     std::chrono::seconds timeout = std::chrono::seconds(90));
  absl::Status StopPod(const std::string& pod);
  // Stops too; removes the pod's log directory and cgroup, as the kubelet would. An unknown pod is no error.
  absl::Status RemovePod(const std::string& pod);
  absl::StatusOr<PodInfo> PodStatus(const std::string& pod);
  absl::StatusOr<std::vector<std::string>> ListPods();

  absl::StatusOr<std::string> CreateContainer(const std::string& pod, const ContainerSpec& spec);
  absl::Status StartContainer(const std::string& container);
  // Create and start.
  absl::StatusOr<std::string> RunContainer(const std::string& pod, const ContainerSpec& spec);
  absl::Status StopContainer(const std::string& container, int64_t grace_seconds);
  absl::Status RemoveContainer(const std::string& container);
  absl::StatusOr<std::vector<std::string>> ListContainers(const std::string& pod);
  absl::StatusOr<ContainerInfo> Status(const std::string& container);
  // Polls until the container has exited.
  absl::StatusOr<ContainerInfo> WaitForExit(const std::string& container, Deadline deadline);
  absl::Status UpdateResources(const std::string& container, const Resources& resources);

  // A non-zero exit code is no error.
  absl::StatusOr<ExecResult> ExecSync(const std::string& container, const std::vector<std::string>& command,
                                      int64_t timeout_seconds = 30);
  absl::StatusOr<std::unique_ptr<Stream>> Exec(const std::string& container,
                                               const std::vector<std::string>& command, bool tty,
                                               bool std_in);
  absl::StatusOr<std::unique_ptr<Stream>> Attach(const std::string& container, bool tty, bool std_in);

  absl::StatusOr<ContainerUsage> Usage(const std::string& container);
  absl::StatusOr<std::vector<ContainerUsage>> AllUsage(const std::string& pod);
  absl::StatusOr<ContainerUsage> PodUsage(const std::string& pod);

  absl::StatusOr<std::vector<LogLine>> ReadLog(const std::string& container);
  // The text of one stream, lines ended with \n.
  absl::StatusOr<std::string> LogText(const std::string& container, const std::string& stream = "stdout");
  absl::Status ReopenLog(const std::string& container);

  absl::StatusOr<std::vector<std::string>> ListImages();
  absl::Status RemoveImage(const std::string& image);

  // Every pod's and container's id that this client was ever given.
  std::vector<std::string> KnownIds();
  // Cgroups' folders made for pods which still exist.
  std::vector<std::string> PodCgroups();
  const Options& options() const;

 private:
  struct Impl;
  explicit CriClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Lines of a log file in the CRI's format: "<time> <stdout|stderr> <F|P> <text>".
absl::StatusOr<std::vector<LogLine>> ParseCriLog(const std::string& text);

}  // namespace lamina::e2e

#include "tests/e2e/kit/cri_client.h"

#include <grpcpp/grpcpp.h>
#include <sys/stat.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "base/mutex.h"
#include "base/status.h"
#include "proto/cri/runtime.grpc.pb.h"
#include "tests/e2e/kit/kubelet_cgroup.h"

namespace lamina::e2e {
namespace {

namespace fs = std::filesystem;
namespace cri = runtime::v1;
using std::chrono::seconds;

// The kubelet's defaults for a container that is not privileged.
constexpr const char* kMaskedPaths[] = {"/proc/acpi",          "/proc/kcore",      "/proc/keys",
                                        "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
                                        "/proc/sched_debug",   "/proc/scsi",       "/sys/firmware"};
constexpr const char* kReadonlyPaths[] = {"/proc/asound", "/proc/bus", "/proc/fs",
                                          "/proc/irq",    "/proc/sys", "/proc/sysrq-trigger"};

void Fill(const Resources& from, cri::LinuxContainerResources& to) {
  to.set_cpu_quota(from.cpu_quota);
  to.set_cpu_period(from.cpu_period != 0 || from.cpu_quota == 0 ? from.cpu_period : 100'000);
  to.set_cpu_shares(from.cpu_shares);
  to.set_memory_limit_in_bytes(from.memory);
  to.set_oom_score_adj(from.oom_score_adj);
  for (const auto& [size, limit] : from.hugepages) {
    auto& hugepage = *to.add_hugepage_limits();
    hugepage.set_page_size(size);
    hugepage.set_limit(limit);
  }
}

bool Any(const Resources& r) {
  return r.cpu_quota != 0 || r.cpu_period != 0 || r.cpu_shares != 0 || r.memory != 0 || !r.hugepages.empty();
}

ContainerUsage UsageOf(const cri::CpuUsage& cpu, const cri::MemoryUsage& memory,
                       uint64_t writable_layer = 0) {
  return {cpu.usage_core_nano_seconds().value(), memory.working_set_bytes().value(),
          memory.usage_bytes().value(), memory.rss_bytes().value(), writable_layer};
}

}  // namespace

struct CriClient::Impl {
  Options options;
  std::unique_ptr<cri::RuntimeService::Stub> runtime;
  std::unique_ptr<cri::ImageService::Stub> images;
  std::atomic<int> next_uid{1}, next_log{0};
  Mutex mutex;
  std::map<std::string, cri::PodSandboxConfig> pods GUARDED_BY(mutex);
  std::set<std::string> ids GUARDED_BY(mutex);

  template <typename Stub, typename Request, typename Response>
  absl::StatusOr<Response> Call(Stub& stub,
                                grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                const Request& request, seconds timeout = seconds(30)) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + timeout);
    Response response;
    const grpc::Status status = (stub.*method)(&context, request, &response);
    if (!status.ok())
      return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
    return response;
  }
  template <typename Request, typename Response>
  absl::StatusOr<Response> Runtime(grpc::Status (cri::RuntimeService::Stub::*method)(grpc::ClientContext*,
                                                                                     const Request&,
                                                                                     Response*),
                                   const Request& request, seconds timeout = seconds(30)) {
    return Call(*runtime, method, request, timeout);
  }
};

using Runtime = cri::RuntimeService::Stub;

std::unique_ptr<CriClient> CriClient::Create(Options options) {
  auto impl = std::make_unique<Impl>();
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(64 * 1024 * 1024);
  // Nodes of one program must not share a connection; a restarted containerd is found again at once.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 200);
  const auto channel =
      grpc::CreateCustomChannel("unix:" + options.socket, grpc::InsecureChannelCredentials(), arguments);
  impl->runtime = cri::RuntimeService::NewStub(channel);
  impl->images = cri::ImageService::NewStub(channel);
  impl->options = std::move(options);
  return std::unique_ptr<CriClient>(new CriClient(std::move(impl)));
}

CriClient::CriClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
CriClient::~CriClient() = default;
const CriClient::Options& CriClient::options() const { return impl_->options; }

absl::Status CriClient::WaitReady(Deadline deadline) {
  return Eventually(deadline, [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const auto response, impl_->Runtime(&Runtime::Status, cri::StatusRequest(), seconds(2)));
    for (const auto& condition : response.status().conditions()) {
      if (!condition.status())
        return MakeStatus(absl::StatusCode::kUnavailable, "{}: {}", condition.type(), condition.message());
    }
    return absl::OkStatus();
  });
}

absl::StatusOr<std::string> CriClient::RuntimeVersion() {
  ASSIGN_OR_RETURN(const auto response, impl_->Runtime(&Runtime::Version, cri::VersionRequest()));
  return response.runtime_name() + " " + response.runtime_version();
}

absl::StatusOr<std::string> CriClient::RunPod(const PodSpec& spec, seconds timeout) {
  const int number = impl_->next_uid++;
  cri::RunPodSandboxRequest request;
  request.set_runtime_handler(spec.handler.empty() ? impl_->options.default_handler : spec.handler);
  auto& config = *request.mutable_config();
  auto& metadata = *config.mutable_metadata();
  metadata.set_name(spec.name);
  metadata.set_namespace_(spec.namespace_name);
  metadata.set_uid(fmt::format("00000000-0000-4000-8000-{:012d}", number));
  if (!spec.host_network) config.set_hostname(spec.hostname.empty() ? spec.name : spec.hostname);
  config.set_log_directory(
      fmt::format("{}/{}_{}_{}", impl_->options.log_root, spec.namespace_name, spec.name, metadata.uid()));
  for (const auto& [key, value] : spec.annotations) (*config.mutable_annotations())[key] = value;
  for (const auto& server : spec.dns_servers) config.mutable_dns_config()->add_servers(server);
  for (const auto& search : spec.dns_searches) config.mutable_dns_config()->add_searches(search);
  for (const auto& option : spec.dns_options) config.mutable_dns_config()->add_options(option);
  for (const auto& [host, pod] : spec.host_ports) {
    auto& mapping = *config.add_port_mappings();
    mapping.set_host_port(host);
    mapping.set_container_port(pod);
  }
  auto& linux_config = *config.mutable_linux();
  linux_config.set_cgroup_parent(fmt::format("{}/pod{}", impl_->options.cgroup_parent, metadata.uid()));
  for (const auto& [key, value] : spec.sysctls) (*linux_config.mutable_sysctls())[key] = value;
  auto& security = *linux_config.mutable_security_context();
  security.mutable_namespace_options()->set_network(spec.host_network ? cri::NODE : cri::POD);
  security.mutable_namespace_options()->set_pid(spec.share_processes ? cri::POD : cri::CONTAINER);
  security.set_privileged(spec.privileged);
  security.mutable_seccomp()->set_profile_type(cri::SecurityProfile::RuntimeDefault);
  if (Any(spec.resources)) Fill(spec.resources, *linux_config.mutable_resources());

  std::error_code error;
  fs::create_directories(config.log_directory(), error);
  RETURN_IF_ERROR(MakeCgroup(linux_config.cgroup_parent()));
  auto response = impl_->Runtime(&Runtime::RunPodSandbox, request, timeout);
  if (!response.ok()) {
    fs::remove_all(config.log_directory(), error);
    // What a failed start still has in the cgroup shows up when the node looks for leftovers.
    RemoveCgroup(linux_config.cgroup_parent()).IgnoreError();
    return response.status();
  }
  const std::string& id = response->pod_sandbox_id();
  {
    MutexLock lock(impl_->mutex);
    impl_->pods[id] = config;
    impl_->ids.insert(id);
  }
  const bool checks = impl_->options.check_pod && !spec.less_confined;
  const absl::Status checked = checks ? impl_->options.check_pod(id) : absl::OkStatus();
  if (!checked.ok()) {
    RemovePod(id).IgnoreError();
    return checked;
  }
  return id;
}

absl::Status CriClient::StopPod(const std::string& pod) {
  cri::StopPodSandboxRequest request;
  request.set_pod_sandbox_id(pod);
  return impl_->Runtime(&Runtime::StopPodSandbox, request, seconds(60)).status();
}

absl::Status CriClient::RemovePod(const std::string& pod) {
  const absl::Status stopped = StopPod(pod);
  if (!stopped.ok() && stopped.code() != absl::StatusCode::kNotFound) return stopped;
  cri::RemovePodSandboxRequest request;
  request.set_pod_sandbox_id(pod);
  RETURN_IF_ERROR(impl_->Runtime(&Runtime::RemovePodSandbox, request, seconds(60)).status());
  cri::PodSandboxConfig config;
  {
    MutexLock lock(impl_->mutex);
    const auto it = impl_->pods.find(pod);
    if (it == impl_->pods.end()) return absl::OkStatus();
    config = it->second;
    impl_->pods.erase(it);
  }
  std::error_code error;
  fs::remove_all(config.log_directory(), error);
  // The last process may leave a moment after the answer.
  return Eventually(In(seconds(5)), [&] { return RemoveCgroup(config.linux().cgroup_parent()); });
}

absl::StatusOr<PodInfo> CriClient::PodStatus(const std::string& pod) {
  cri::PodSandboxStatusRequest request;
  request.set_pod_sandbox_id(pod);
  request.set_verbose(true);
  ASSIGN_OR_RETURN(const auto response, impl_->Runtime(&Runtime::PodSandboxStatus, request));
  const auto info = response.info().find("info");
  return PodInfo{response.status().state() == cri::SANDBOX_READY, response.status().network().ip(),
                 info == response.info().end() ? "" : info->second};
}

absl::StatusOr<std::vector<std::string>> CriClient::ListPods() {
  ASSIGN_OR_RETURN(const auto response,
                   impl_->Runtime(&Runtime::ListPodSandbox, cri::ListPodSandboxRequest()));
  std::vector<std::string> ids;
  for (const auto& item : response.items()) ids.push_back(item.id());
  return ids;
}

absl::StatusOr<std::string> CriClient::CreateContainer(const std::string& pod, const ContainerSpec& spec) {
  cri::CreateContainerRequest request;
  request.set_pod_sandbox_id(pod);
  {
    MutexLock lock(impl_->mutex);
    const auto it = impl_->pods.find(pod);
    if (it == impl_->pods.end())
      return MakeStatus(absl::StatusCode::kNotFound, "no pod {} of this client", pod);
    *request.mutable_sandbox_config() = it->second;
  }
  auto& config = *request.mutable_config();
  config.mutable_metadata()->set_name(spec.name);
  config.mutable_image()->set_image(spec.image);
  for (const auto& word : spec.command) config.add_command(word);
  for (const auto& word : spec.args) config.add_args(word);
  config.set_working_dir(spec.working_dir);
  for (const auto& [key, value] : spec.env) {
    auto& env = *config.add_envs();
    env.set_key(key);
    env.set_value(value);
  }
  for (const MountSpec& from : spec.mounts) {
    auto& mount = *config.add_mounts();
    mount.set_container_path(from.container_path);
    mount.set_host_path(from.host_path);
    mount.set_readonly(from.readonly);
  }
  for (const std::string& path : spec.devices) {
    auto& device = *config.add_devices();
    device.set_host_path(path);
    device.set_container_path(path);
    device.set_permissions(spec.device_access);
  }
  config.set_log_path(fmt::format("{}/{}.log", spec.name, impl_->next_log++));
  std::error_code error;
  fs::create_directories(request.sandbox_config().log_directory() + "/" + spec.name, error);
  config.set_stdin(spec.std_in);
  config.set_stdin_once(spec.stdin_once);
  config.set_tty(spec.tty);
  Fill(spec.resources, *config.mutable_linux()->mutable_resources());
  auto& security = *config.mutable_linux()->mutable_security_context();
  const auto& of_pod = request.sandbox_config().linux().security_context().namespace_options();
  security.mutable_namespace_options()->set_network(of_pod.network());
  security.mutable_namespace_options()->set_pid(of_pod.pid());
  security.set_privileged(spec.privileged);
  if (spec.user) security.mutable_run_as_user()->set_value(*spec.user);
  if (spec.group) security.mutable_run_as_group()->set_value(*spec.group);
  for (int64_t group : spec.supplemental_groups) security.add_supplemental_groups(group);
  for (const auto& name : spec.add_capabilities) security.mutable_capabilities()->add_add_capabilities(name);
  for (const auto& name : spec.drop_capabilities)
    security.mutable_capabilities()->add_drop_capabilities(name);
  security.set_readonly_rootfs(spec.readonly_root);
  security.set_no_new_privs(spec.no_new_privileges);
  if (!spec.privileged) {
    for (const char* path : kMaskedPaths) security.add_masked_paths(path);
    for (const char* path : kReadonlyPaths) security.add_readonly_paths(path);
    for (const auto& path : spec.extra_masked_paths) security.add_masked_paths(path);
    for (const auto& path : spec.extra_readonly_paths) security.add_readonly_paths(path);
  }
  security.mutable_seccomp()->set_profile_type(spec.seccomp == Seccomp::kUnconfined
                                                   ? cri::SecurityProfile::Unconfined
                                                   : cri::SecurityProfile::RuntimeDefault);
  ASSIGN_OR_RETURN(const auto response, impl_->Runtime(&Runtime::CreateContainer, request, seconds(120)));
  MutexLock lock(impl_->mutex);
  impl_->ids.insert(response.container_id());
  return response.container_id();
}

absl::Status CriClient::StartContainer(const std::string& container) {
  cri::StartContainerRequest request;
  request.set_container_id(container);
  return impl_->Runtime(&Runtime::StartContainer, request, seconds(120)).status();
}

absl::StatusOr<std::string> CriClient::RunContainer(const std::string& pod, const ContainerSpec& spec) {
  ASSIGN_OR_RETURN(std::string id, CreateContainer(pod, spec));
  RETURN_IF_ERROR(StartContainer(id));
  return id;
}

absl::Status CriClient::StopContainer(const std::string& container, int64_t grace_seconds) {
  cri::StopContainerRequest request;
  request.set_container_id(container);
  request.set_timeout(grace_seconds);
  return impl_->Runtime(&Runtime::StopContainer, request, seconds(grace_seconds + 30)).status();
}

absl::Status CriClient::RemoveContainer(const std::string& container) {
  cri::RemoveContainerRequest request;
  request.set_container_id(container);
  return impl_->Runtime(&Runtime::RemoveContainer, request, seconds(60)).status();
}

absl::StatusOr<std::vector<std::string>> CriClient::ListContainers(const std::string& pod) {
  cri::ListContainersRequest request;
  request.mutable_filter()->set_pod_sandbox_id(pod);
  ASSIGN_OR_RETURN(const auto response, impl_->Runtime(&Runtime::ListContainers, request));
  std::vector<std::string> ids;
  for (const auto& container : response.containers()) ids.push_back(container.id());
  return ids;
}

absl::StatusOr<ContainerInfo> CriClient::Status(const std::string& container) {
  cri::ContainerStatusRequest request;
  request.set_container_id(container);
  request.set_verbose(true);
  ASSIGN_OR_RETURN(const auto response, impl_->Runtime(&Runtime::ContainerStatus, request));
  const auto& status = response.status();
  ContainerInfo result;
  switch (status.state()) {
    case cri::CONTAINER_CREATED:
      result.state = ContainerState::kCreated;
      break;
    case cri::CONTAINER_RUNNING:
      result.state = ContainerState::kRunning;
      break;
    case cri::CONTAINER_EXITED:
      result.state = ContainerState::kExited;
      break;
    default:
      break;
  }
  result.exit_code = status.exit_code();
  result.reason = status.reason();
  result.message = status.message();
  result.started_at = status.started_at();
  result.finished_at = status.finished_at();
  result.log_path = status.log_path();
  if (const auto info = response.info().find("info"); info != response.info().end())
    result.info = info->second;
  return result;
}

absl::StatusOr<ContainerInfo> CriClient::WaitForExit(const std::string& container, Deadline deadline) {
  ContainerInfo info;
  RETURN_IF_ERROR(Eventually(deadline, [&]() -> absl::Status {
    ASSIGN_OR_RETURN(info, Status(container));
    if (info.state == ContainerState::kExited) return absl::OkStatus();
    return MakeStatus(absl::StatusCode::kDeadlineExceeded, "container {} has not exited", container);
  }));
  return info;
}

absl::Status CriClient::UpdateResources(const std::string& container, const Resources& resources) {
  cri::UpdateContainerResourcesRequest request;
  request.set_container_id(container);
  Fill(resources, *request.mutable_linux());
  return impl_->Runtime(&Runtime::UpdateContainerResources, request).status();
}

absl::StatusOr<ExecResult> CriClient::ExecSync(const std::string& container,
                                               const std::vector<std::string>& command,
                                               int64_t timeout_seconds) {
  cri::ExecSyncRequest request;
  request.set_container_id(container);
  for (const auto& word : command) request.add_cmd(word);
  request.set_timeout(timeout_seconds);
  ASSIGN_OR_RETURN(const auto response,
                   impl_->Runtime(&Runtime::ExecSync, request, seconds(timeout_seconds + 15)));
  return ExecResult{response.stdout(), response.stderr(), response.exit_code()};
}

absl::StatusOr<std::unique_ptr<Stream>> CriClient::Exec(const std::string& container,
                                                        const std::vector<std::string>& command, bool tty,
                                                        bool std_in) {
  cri::ExecRequest request;
  request.set_container_id(container);
  for (const auto& word : command) request.add_cmd(word);
  request.set_tty(tty);
  request.set_stdin(std_in);
  request.set_stdout(true);
  request.set_stderr(!tty);
  ASSIGN_OR_RETURN(const auto response, impl_->Runtime(&Runtime::Exec, request));
  return Stream::Open(response.url(), In(seconds(20)));
}

absl::StatusOr<std::unique_ptr<Stream>> CriClient::Attach(const std::string& container, bool tty,
                                                          bool std_in) {
  cri::AttachRequest request;
  request.set_container_id(container);
  request.set_tty(tty);
  request.set_stdin(std_in);
  request.set_stdout(true);
  request.set_stderr(!tty);
  ASSIGN_OR_RETURN(const auto response, impl_->Runtime(&Runtime::Attach, request));
  return Stream::Open(response.url(), In(seconds(20)));
}

absl::StatusOr<ContainerUsage> CriClient::Usage(const std::string& container) {
  cri::ContainerStatsRequest request;
  request.set_container_id(container);
  ASSIGN_OR_RETURN(const auto response, impl_->Runtime(&Runtime::ContainerStats, request));
  return UsageOf(response.stats().cpu(), response.stats().memory(),
                 response.stats().writable_layer().used_bytes().value());
}

absl::StatusOr<std::vector<ContainerUsage>> CriClient::AllUsage(const std::string& pod) {
  cri::ListContainerStatsRequest request;
  request.mutable_filter()->set_pod_sandbox_id(pod);
  ASSIGN_OR_RETURN(const auto response, impl_->Runtime(&Runtime::ListContainerStats, request));
  std::vector<ContainerUsage> usage;
  for (const auto& stats : response.stats())
    usage.push_back(UsageOf(stats.cpu(), stats.memory(), stats.writable_layer().used_bytes().value()));
  return usage;
}

absl::StatusOr<ContainerUsage> CriClient::PodUsage(const std::string& pod) {
  cri::PodSandboxStatsRequest request;
  request.set_pod_sandbox_id(pod);
  ASSIGN_OR_RETURN(const auto response, impl_->Runtime(&Runtime::PodSandboxStats, request));
  return UsageOf(response.stats().linux().cpu(), response.stats().linux().memory());
}

absl::StatusOr<std::vector<LogLine>> ParseCriLog(const std::string& text) {
  std::vector<LogLine> lines;
  std::map<std::string, std::string> partial;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    const size_t first = line.find(' ');
    const size_t second = line.find(' ', first + 1);
    const size_t third = line.find(' ', second + 1);
    const std::string stream = first == std::string::npos ? "" : line.substr(first + 1, second - first - 1);
    if (third == std::string::npos || third != second + 2 || (stream != "stdout" && stream != "stderr") ||
        (line[second + 1] != 'F' && line[second + 1] != 'P')) {
      return InvalidArgument("not a line of a container's log: \"{}\"", line);
    }
    partial[stream] += line.substr(third + 1);
    if (line[second + 1] == 'P') continue;
    lines.push_back({stream, std::move(partial[stream])});
    partial.erase(stream);
  }
  for (auto& [stream, rest] : partial) lines.push_back({stream, std::move(rest), false});
  return lines;
}

absl::StatusOr<std::vector<LogLine>> CriClient::ReadLog(const std::string& container) {
  ASSIGN_OR_RETURN(const ContainerInfo info, Status(container));
  std::ifstream in(info.log_path);
  if (!in) return MakeStatus(absl::StatusCode::kNotFound, "no log file {}", info.log_path);
  std::stringstream text;
  text << in.rdbuf();
  return ParseCriLog(text.str());
}

absl::StatusOr<std::string> CriClient::LogText(const std::string& container, const std::string& stream) {
  ASSIGN_OR_RETURN(const auto lines, ReadLog(container));
  std::string text;
  for (const LogLine& line : lines) {
    if (line.stream == stream) text += line.text + (line.whole ? "\n" : "");
  }
  return text;
}

absl::Status CriClient::ReopenLog(const std::string& container) {
  cri::ReopenContainerLogRequest request;
  request.set_container_id(container);
  return impl_->Runtime(&Runtime::ReopenContainerLog, request).status();
}

absl::StatusOr<std::vector<std::string>> CriClient::ListImages() {
  ASSIGN_OR_RETURN(const auto response, impl_->Call(*impl_->images, &cri::ImageService::Stub::ListImages,
                                                    cri::ListImagesRequest()));
  std::vector<std::string> names;
  for (const auto& image : response.images()) {
    for (const auto& tag : image.repo_tags()) names.push_back(tag);
  }
  return names;
}

absl::Status CriClient::RemoveImage(const std::string& image) {
  cri::RemoveImageRequest request;
  request.mutable_image()->set_image(image);
  return impl_->Call(*impl_->images, &cri::ImageService::Stub::RemoveImage, request).status();
}

std::vector<std::string> CriClient::KnownIds() {
  MutexLock lock(impl_->mutex);
  return {impl_->ids.begin(), impl_->ids.end()};
}

std::vector<std::string> CriClient::PodCgroups() {
  MutexLock lock(impl_->mutex);
  std::vector<std::string> groups;
  for (const auto& [id, config] : impl_->pods) groups.push_back(config.linux().cgroup_parent());
  return groups;
}

}  // namespace lamina::e2e

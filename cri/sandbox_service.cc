#include "cri/sandbox_service.h"

#include "base/clock.h"
#include "base/mutex.h"
#include "base/safe_id.h"
#include "base/status.h"
#include "cri/messages.h"
#include "sizing/annotations.h"

namespace lamina::cri {
namespace {

using containerd::Nothing;
using containerd::SandboxRequest;

// As containerd's CRI plugin writes into a sandbox's config.json, which there is none of here.
constexpr int kSandboxOomScoreAdj = -998;
constexpr char kService[] = "containerd.runtime.sandbox.v1.Sandbox";
constexpr char kConfigType[] = "runtime.v1.PodSandboxConfig";

absl::StatusOr<sizing::Limits> ToLimits(const containerd::PodResources& resources, const std::string& name) {
  sizing::CriResources cri{resources.cpu_period(),
                           resources.cpu_quota(),
                           resources.cpu_shares(),
                           resources.memory_limit_in_bytes(),
                           {}};
  for (const auto& hugepages : resources.hugepage_limits()) cri.hugepage_bytes.push_back(hugepages.limit());
  return sizing::LimitsFromCri(cri, name);
}

class SandboxService {
 public:
  SandboxService(Sandbox& sandbox, std::function<void()> shut_down)
      : sandbox_(sandbox), shut_down_(std::move(shut_down)) {}

  absl::StatusOr<Nothing> Create(const containerd::CreateSandboxRequest& request) {
    ASSIGN_OR_RETURN(BundleSpec spec, SpecFromPodConfig(request));
    MutexLock lock(mutex_);
    if (!id_.empty() && id_ != request.sandbox_id()) {
      return MakeStatus(absl::StatusCode::kAlreadyExists, "this shim serves sandbox {}, not {}", id_,
                        request.sandbox_id());
    }
    id_ = request.sandbox_id();
    bundle_ = request.bundle_path();
    spec_ = std::move(spec);
    return Nothing();
  }

  absl::StatusOr<containerd::StartSandboxResponse> Start(const ttrpc::CallContext& context,
                                                         const SandboxRequest& request) {
    RETURN_IF_ERROR(Known(request.sandbox_id()));
    std::string bundle;
    BundleSpec spec;
    {
      MutexLock lock(mutex_);
      bundle = bundle_;
      spec = spec_;
    }
    // A repeated call waits for the first one's end, and finds the pod.
    const absl::Status started = sandbox_.StartPod(request.sandbox_id(), bundle, spec, context.deadline);
    if (!started.ok() && !absl::IsAlreadyExists(started)) return started;
    containerd::StartSandboxResponse response;
    response.set_pid(sandbox_.vmm_pid());
    MutexLock lock(mutex_);
    if (const std::shared_ptr<Process> vm = sandbox_.process(); started.ok() && vm != nullptr) {
      vm->SetRunning(vm->pid());
      created_nanos_ = UnixNanos(Clock::Real().Wall());
    }
    *response.mutable_created_at() = ToTimestamp(created_nanos_);
    return response;
  }

  absl::StatusOr<containerd::PlatformResponse> Platform(const SandboxRequest& request) {
    RETURN_IF_ERROR(Known(request.sandbox_id()));
    containerd::PlatformResponse response;
    response.mutable_platform()->set_os("linux");
    response.mutable_platform()->set_architecture("amd64");
    return response;
  }

  // The VM's end, seen; OK when there is none.
  absl::StatusOr<Nothing> Stop(const ttrpc::CallContext& context,
                               const containerd::StopSandboxRequest& request) {
    RETURN_IF_ERROR(Known(request.sandbox_id()));
    RETURN_IF_ERROR(sandbox_.Stop(context.deadline));
    if (const std::shared_ptr<Process> vm = sandbox_.process()) vm->WaitExit();
    return Nothing();
  }

  absl::StatusOr<containerd::WaitSandboxResponse> Wait(const SandboxRequest& request) {
    RETURN_IF_ERROR(Known(request.sandbox_id()));
    const std::shared_ptr<Process> vm = sandbox_.process();
    if (vm == nullptr)
      return MakeStatus(absl::StatusCode::kNotFound, "sandbox {}: it does not run", request.sandbox_id());
    const ExitInfo exit = vm->WaitExit();
    containerd::WaitSandboxResponse response;
    response.set_exit_status(exit.status);
    *response.mutable_exited_at() = ToTimestamp(exit.unix_nanos);
    return response;
  }

  absl::StatusOr<containerd::SandboxStatusResponse> Status(const containerd::SandboxStatusRequest& request) {
    RETURN_IF_ERROR(Known(request.sandbox_id()));
    containerd::SandboxStatusResponse response;
    response.set_sandbox_id(request.sandbox_id());
    response.set_state("SANDBOX_NOTREADY");
    {
      MutexLock lock(mutex_);
      *response.mutable_created_at() = ToTimestamp(created_nanos_);
    }
    // Not started yet, or shut down already: there is no VM to speak of.
    const std::shared_ptr<Process> vm = sandbox_.process();
    if (vm == nullptr) return response;
    response.set_pid(vm->pid());
    if (const auto exit = vm->exit()) {
      *response.mutable_exited_at() = ToTimestamp(exit->unix_nanos);
    } else {
      response.set_state("SANDBOX_READY");
    }
    if (request.verbose()) {
      for (const auto& [key, value] : sandbox_.Info()) (*response.mutable_info())[key] = value;
    }
    return response;
  }

  absl::StatusOr<containerd::SandboxMetricsResponse> Metrics(const SandboxRequest& request) {
    RETURN_IF_ERROR(Known(request.sandbox_id()));
    if (sandbox_.process() == nullptr)
      return MakeStatus(absl::StatusCode::kNotFound, "sandbox {}: it does not run", request.sandbox_id());
    containerd::SandboxMetricsResponse response;
    containerd::Metric& metric = *response.mutable_metrics();
    *metric.mutable_timestamp() = ToTimestamp(UnixNanos(Clock::Real().Wall()));
    metric.set_id(request.sandbox_id());
    *metric.mutable_data() = MetricsOf(sandbox_.Stats());
    return response;
  }

  absl::StatusOr<Nothing> Ping(const SandboxRequest& request) {
    RETURN_IF_ERROR(Known(request.sandbox_id()));
    return Nothing();
  }

  absl::StatusOr<Nothing> Shutdown(const ttrpc::CallContext& context, const SandboxRequest& request) {
    RETURN_IF_ERROR(Known(request.sandbox_id()));
    const absl::Status deleted = sandbox_.Delete(context.deadline).status();
    if (!deleted.ok() && !absl::IsNotFound(deleted)) return deleted;
    *context.after_answer = shut_down_;
    return Nothing();
  }

 private:
  absl::Status Known(const std::string& id) {
    MutexLock lock(mutex_);
    if (!id_.empty() && id == id_) return absl::OkStatus();
    return MakeStatus(absl::StatusCode::kNotFound, "sandbox {}: not found", id);
  }

  Sandbox& sandbox_;
  const std::function<void()> shut_down_;
  Mutex mutex_;
  std::string id_ GUARDED_BY(mutex_), bundle_ GUARDED_BY(mutex_);
  BundleSpec spec_ GUARDED_BY(mutex_);
  int64_t created_nanos_ GUARDED_BY(mutex_) = 0;
};

}  // namespace

absl::StatusOr<BundleSpec> SpecFromPodConfig(const containerd::CreateSandboxRequest& request) {
  if (!IsSafeId(request.sandbox_id()))
    return InvalidArgument("sandbox id \"{}\" is not safe as a file name", request.sandbox_id());
  const std::string& url = request.options().type_url();
  const std::string type = url.substr(url.rfind('/') == std::string::npos ? 0 : url.rfind('/') + 1);
  containerd::PodConfig config;
  if (type != kConfigType || !config.ParseFromString(request.options().value())) {
    return InvalidArgument("sandbox {}: its options are of type \"{}\", expected a {}", request.sandbox_id(),
                           url, kConfigType);
  }
  BundleSpec spec;
  spec.annotations = {config.annotations().begin(), config.annotations().end()};
  // A pod's author may have written these names, too.
  spec.annotations["io.kubernetes.cri.container-type"] = "sandbox";
  spec.annotations["io.kubernetes.cri.sandbox-id"] = request.sandbox_id();
  spec.annotations["io.kubernetes.cri.sandbox-name"] = config.metadata().name();
  spec.annotations["io.kubernetes.cri.sandbox-namespace"] = config.metadata().namespace_();
  spec.annotations["io.kubernetes.cri.sandbox-uid"] = config.metadata().uid();
  spec.oom_score_adj = kSandboxOomScoreAdj;
  spec.hostname = config.hostname();
  const containerd::DnsConfig& dns = config.dns_config();
  spec.files = PodFiles{config.hostname(),
                        {dns.servers().begin(), dns.servers().end()},
                        {dns.searches().begin(), dns.searches().end()},
                        {dns.options().begin(), dns.options().end()}};
  spec.netns_path = request.netns_path();
  spec.has_network_namespace = !request.netns_path().empty();
  spec.sysctls = {config.linux().sysctls().begin(), config.linux().sysctls().end()};
  // As containerd builds linux.cgroupsPath of a container: systemd's form for a slice.
  if (const std::string& parent = config.linux().cgroup_parent(); !parent.empty()) {
    const std::string slice =
        parent.substr(parent.rfind('/') == std::string::npos ? 0 : parent.rfind('/') + 1);
    const bool systemd = slice.size() > 6 && slice.compare(slice.size() - 6, 6, ".slice") == 0;
    spec.cgroups_path =
        systemd ? slice + ":cri-containerd:" + request.sandbox_id() : parent + "/" + request.sandbox_id();
  }
  ASSIGN_OR_RETURN(spec.pod_limits, ToLimits(config.linux().resources(), "sandbox"));
  if (config.linux().has_overhead()) {
    ASSIGN_OR_RETURN(spec.pod_overhead, ToLimits(config.linux().overhead(), "overhead"));
  }
  return spec;
}

void RegisterSandboxService(ttrpc::Server& server, Sandbox& sandbox, std::function<void()> shut_down) {
  const auto service = std::make_shared<SandboxService>(sandbox, std::move(shut_down));
  server.Handle<containerd::CreateSandboxRequest, Nothing>(
      kService, "CreateSandbox", [service](auto&, auto& r) { return service->Create(r); });
  server.Handle<SandboxRequest, containerd::StartSandboxResponse>(
      kService, "StartSandbox", [service](auto& c, auto& r) { return service->Start(c, r); });
  server.Handle<SandboxRequest, containerd::PlatformResponse>(
      kService, "Platform", [service](auto&, auto& r) { return service->Platform(r); });
  server.Handle<containerd::StopSandboxRequest, Nothing>(
      kService, "StopSandbox", [service](auto& c, auto& r) { return service->Stop(c, r); });
  server.Handle<SandboxRequest, containerd::WaitSandboxResponse>(
      kService, "WaitSandbox", [service](auto&, auto& r) { return service->Wait(r); });
  server.Handle<containerd::SandboxStatusRequest, containerd::SandboxStatusResponse>(
      kService, "SandboxStatus", [service](auto&, auto& r) { return service->Status(r); });
  server.Handle<SandboxRequest, containerd::SandboxMetricsResponse>(
      kService, "SandboxMetrics", [service](auto&, auto& r) { return service->Metrics(r); });
  server.Handle<SandboxRequest, Nothing>(kService, "PingSandbox",
                                         [service](auto&, auto& r) { return service->Ping(r); });
  server.Handle<SandboxRequest, Nothing>(kService, "ShutdownSandbox", [service](auto& context, auto& r) {
    return service->Shutdown(context, r);
  });
}

}  // namespace lamina::cri

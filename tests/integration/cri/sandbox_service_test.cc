// A pod's life as containerd 2.x leads it with sandboxer = "shim": no config.json, no pause image.
#include "cri/sandbox_service.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/file_system.h"
#include "base/subprocess.h"
#include "base/ttrpc/client.h"
#include "base/units.h"
#include "persist/state_store.h"
#include "proto/containerd/cgroups.pb.h"
#include "tests/integration/node/node_kit.h"
#include "tests/testing/status_matchers.h"

namespace lamina::cri {
namespace {

namespace fs = std::filesystem;
using lamina::testing::HasStatus;
using node::Eventually;
using std::chrono::seconds;
using ::testing::HasSubstr;

constexpr char kService[] = "containerd.runtime.sandbox.v1.Sandbox";
constexpr char kTasks[] = "containerd.task.v3.Task";
constexpr char kId[] = "5a5a5a5a5a5a";

containerd::PodConfig Pod() {
  containerd::PodConfig pod;
  pod.mutable_metadata()->set_name("web");
  pod.mutable_metadata()->set_namespace_("shop");
  pod.mutable_metadata()->set_uid("1234");
  pod.set_hostname("web");
  auto* resources = pod.mutable_linux()->mutable_resources();
  resources->set_cpu_quota(25'000);
  resources->set_cpu_period(100'000);
  resources->set_memory_limit_in_bytes(128 << 20);
  auto* overhead = pod.mutable_linux()->mutable_overhead();
  overhead->set_cpu_quota(50'000);
  overhead->set_cpu_period(100'000);
  overhead->set_memory_limit_in_bytes(128 << 20);
  return pod;
}

containerd::CreateSandboxRequest CreateOf(const containerd::PodConfig& pod, const std::string& bundle = "/b",
                                          const std::string& netns = "/run/netns/x") {
  containerd::CreateSandboxRequest request;
  request.set_sandbox_id(kId);
  request.set_bundle_path(bundle);
  request.set_netns_path(netns);
  request.mutable_options()->set_type_url("runtime.v1.PodSandboxConfig");
  pod.SerializeToString(request.mutable_options()->mutable_value());
  return request;
}

TEST(PodConfig, BecomesWhatAConfigJsonWouldSay) {
  containerd::PodConfig pod = Pod();
  (*pod.mutable_annotations())["lamina.io/default-cpu"] = "2";
  (*pod.mutable_annotations())["io.kubernetes.cri.sandbox-name"] = "another pod's";
  (*pod.mutable_linux()->mutable_sysctls())["net.core.somaxconn"] = "99";
  pod.mutable_linux()->set_cgroup_parent("/kubepods/pod1234");
  const auto spec = SpecFromPodConfig(CreateOf(pod));
  ASSERT_OK(spec);
  EXPECT_EQ(spec->Annotation("sandbox-name"), "web");
  EXPECT_EQ(spec->Annotation("sandbox-namespace"), "shop");
  EXPECT_EQ(spec->annotations.at("lamina.io/default-cpu"), "2");
  EXPECT_EQ(spec->sysctls.at("net.core.somaxconn"), "99");
  EXPECT_EQ(spec->cgroups_path, std::string("/kubepods/pod1234/") + kId);
  EXPECT_EQ(spec->pod_limits->cpu.quota, 25'000);
  EXPECT_EQ(spec->pod_overhead->memory_bytes, 128 << 20);
  pod.mutable_linux()->set_cgroup_parent("/kubepods.slice/kubepods-pod1234.slice");
  EXPECT_EQ(SpecFromPodConfig(CreateOf(pod))->cgroups_path,
            std::string("kubepods-pod1234.slice:cri-containerd:") + kId);
  EXPECT_FALSE(SpecFromPodConfig(CreateOf(pod, "/b", ""))->has_network_namespace) << "the host's network";

  containerd::CreateSandboxRequest bad = CreateOf(pod);
  bad.mutable_options()->set_type_url("some.other.Type");
  EXPECT_THAT(SpecFromPodConfig(bad), HasStatus(absl::StatusCode::kInvalidArgument, "some.other.Type"));
  bad = CreateOf(pod);
  bad.mutable_options()->set_value("\xff\xff");
  EXPECT_NOT_OK(SpecFromPodConfig(bad));
  bad = CreateOf(pod);
  bad.set_sandbox_id("../x");
  EXPECT_THAT(SpecFromPodConfig(bad), HasStatus(absl::StatusCode::kInvalidArgument, "../x"));
  pod.mutable_linux()->mutable_resources()->set_cpu_quota(-5);
  EXPECT_THAT(SpecFromPodConfig(CreateOf(pod)), HasStatus(absl::StatusCode::kInvalidArgument, "-5"));
}

class SandboxServiceTest : public ::testing::Test {
 protected:
  SandboxServiceTest()
      : laminad_(
            "[sizing]\noverhead_cpu = \"0.5\"\noverhead_memory = \"96MiB\"\n[hypervisor]\naccel = \"tcg\"\n"
            "[memory]\ncapacity = \"4GiB\"\nreserve = 0\nmin_available = 0\n",
            fmt::format("guest_dir = \"{}\"\n", LAMINA_GUEST_IMAGE)) {}
  void SetUp() override {
    ASSERT_OK(laminad_.Start());
    bundle_ = laminad_.directory() + "/bundle";
    fs::create_directory(bundle_);
    netns_ = fmt::format("lamina-cri-{}", getpid());
    ASSERT_OK(RunChecked({"ip", "netns", "add", netns_}, seconds(20)));
    ASSERT_EQ(setenv("LAMINA_CONFIG", laminad_.config_path().c_str(), 1), 0);
    StartShim();
  }
  void TearDown() override {
    // What a failed test left; after a clean end there is nothing to do.
    RunShim("delete");
    RunChecked({"ip", "netns", "delete", netns_}, seconds(20)).IgnoreError();
  }
  std::string RunShim(const std::string& action) {
    const auto result =
        RunCommand({"sh", "-c", "cd \"$1\" && exec \"$2\" -namespace k8s.io -id \"$3\" -bundle \"$1\" \"$4\"",
                    "sh", bundle_, LAMINA_BIN_DIR "/containerd-shim-lamina-v2", kId, action},
                   seconds(60));
    EXPECT_OK(result);
    if (!result.ok()) return "";
    EXPECT_EQ(result->exit_code, 0) << result->output;
    return result->output;
  }
  void StartShim() {
    const std::string answer = RunShim("start");
    ASSERT_THAT(answer, ::testing::StartsWith("unix://"));
    socket_ = answer.substr(7);
    auto client = ttrpc::Client::Dial(socket_, "the shim");
    ASSERT_OK(client);
    client_ = std::move(*client);
  }
  template <typename Response = containerd::Nothing, typename Request>
  absl::StatusOr<Response> Call(const char* service, const char* method, const Request& request) {
    Response response;
    const absl::Status status = client_->Call(service, method, request, &response, seconds(90));
    if (!status.ok()) return status;
    return response;
  }
  containerd::SandboxRequest Named(const std::string& id = kId) {
    containerd::SandboxRequest request;
    request.set_sandbox_id(id);
    return request;
  }
  std::string State(std::map<std::string, std::string>* info = nullptr) {
    containerd::SandboxStatusRequest request;
    request.set_sandbox_id(kId);
    request.set_verbose(info != nullptr);
    const auto status = Call<containerd::SandboxStatusResponse>(kService, "SandboxStatus", request);
    if (!status.ok()) return status.status().ToString();
    EXPECT_EQ(status->sandbox_id(), kId);
    if (info != nullptr) *info = {status->info().begin(), status->info().end()};
    return status->state();
  }

  node::Laminad laminad_;
  std::string bundle_, netns_, socket_;
  std::unique_ptr<ttrpc::Client> client_;
};

TEST_F(SandboxServiceTest, APodsLife) {
  EXPECT_THAT(Call<containerd::StartSandboxResponse>(kService, "StartSandbox", Named()),
              HasStatus(absl::StatusCode::kNotFound, kId));
  const auto create = CreateOf(Pod(), bundle_, "/run/netns/" + netns_);
  ASSERT_OK(Call(kService, "CreateSandbox", create));
  ASSERT_OK(Call(kService, "CreateSandbox", create)) << "repeated";
  EXPECT_EQ(State(), "SANDBOX_NOTREADY");
  const auto started = Call<containerd::StartSandboxResponse>(kService, "StartSandbox", Named());
  ASSERT_OK(started);
  EXPECT_GT(started->created_at().seconds(), 0);
  const std::string exe = fs::read_symlink(fmt::format("/proc/{}/exe", started->pid()));
  EXPECT_THAT(exe, HasSubstr("qemu"));
  EXPECT_EQ(Call<containerd::StartSandboxResponse>(kService, "StartSandbox", Named())->pid(), started->pid());
  std::map<std::string, std::string> info;
  EXPECT_EQ(State(&info), "SANDBOX_READY");
  EXPECT_EQ(info["vcpus"], "1") << "0.5 + 0.25";
  EXPECT_EQ(info["memory"], "224MiB");
  EXPECT_THAT(info["reasons"], HasSubstr("overhead.podFixed is 128MiB"));
  const auto platform = Call<containerd::PlatformResponse>(kService, "Platform", Named());
  ASSERT_OK(platform);
  EXPECT_EQ(platform->platform().os() + "/" + platform->platform().architecture(), "linux/amd64");
  EXPECT_OK(Call(kService, "PingSandbox", Named()));
  const auto sampled = Call<containerd::SandboxMetricsResponse>(kService, "SandboxMetrics", Named());
  ASSERT_OK(sampled);
  EXPECT_EQ(sampled->metrics().id(), kId);
  EXPECT_GT(sampled->metrics().timestamp().seconds(), 0);
  EXPECT_EQ(sampled->metrics().data().type_url(), "io.containerd.cgroups.v2.Metrics");
  containerd::cgroups::Metrics metrics;
  ASSERT_TRUE(metrics.ParseFromString(sampled->metrics().data().value()));
  EXPECT_EQ(metrics.pids().current(), 2u) << "QEMU and virtiofsd";
  EXPECT_GT(metrics.cpu().usage_usec(), 100'000u) << "it has booted";
  EXPECT_EQ(metrics.cpu().usage_usec(), metrics.cpu().user_usec() + metrics.cpu().system_usec());
  EXPECT_GT(metrics.memory().usage(), 32u << 20);
  EXPECT_LT(metrics.memory().usage(), metrics.memory().usage_limit());
  EXPECT_EQ(metrics.memory().usage_limit(), (224u + 96u) << 20) << "its claim";
  EXPECT_THAT(Call<containerd::SandboxMetricsResponse>(kService, "SandboxMetrics", Named("another")),
              HasStatus(absl::StatusCode::kNotFound, "another"));
  EXPECT_THAT(Call(kService, "PingSandbox", Named("another")),
              HasStatus(absl::StatusCode::kNotFound, "another"));
  // What the CRI's Task calls say of the sandbox agrees.
  containerd::TaskRequest task;
  task.set_id(kId);
  const auto state = Call<containerd::StateResponse>(kTasks, "State", task);
  ASSERT_OK(state);
  EXPECT_EQ(state->status(), containerd::RUNNING);
  EXPECT_EQ(state->pid(), started->pid());
  const auto text =
      FileSystem::Real().Read(laminad_.directory() + "/state/sandboxes/" + kId + "/state.json", 1 << 20);
  ASSERT_OK(text);
  const auto saved = persist::DecodeState(*text, "state");
  ASSERT_OK(saved);
  EXPECT_EQ(saved->life_cycle, persist::LifeCycle::kReady);
  EXPECT_EQ(saved->pod_name, "web");
  EXPECT_EQ(saved->pod_limits.quota, 25'000);

  absl::StatusOr<containerd::WaitSandboxResponse> waited = absl::UnknownError("still waiting");
  std::thread wait([&] {
    auto own = ttrpc::Client::Dial(socket_, "the shim");
    ASSERT_OK(own);
    containerd::WaitSandboxResponse response;
    const absl::Status status = (*own)->Call(kService, "WaitSandbox", Named(), &response, seconds(90));
    waited = status.ok() ? absl::StatusOr<containerd::WaitSandboxResponse>(response) : status;
  });
  containerd::StopSandboxRequest stop;
  stop.set_sandbox_id(kId);
  EXPECT_OK(Call(kService, "StopSandbox", stop));
  wait.join();
  ASSERT_OK(waited);
  EXPECT_EQ(waited->exit_status(), 0u);
  EXPECT_OK(Call(kService, "StopSandbox", stop)) << "repeated";
  EXPECT_EQ(State(), "SANDBOX_NOTREADY");
  EXPECT_FALSE(fs::exists(fmt::format("/proc/{}", started->pid())));
  EXPECT_OK(Call(kService, "ShutdownSandbox", Named()));
  EXPECT_TRUE(Eventually([&] { return !fs::exists(socket_); })) << "the shim has ended";
  EXPECT_FALSE(fs::exists(laminad_.directory() + "/state/sandboxes/" + kId));
  EXPECT_THAT(laminad_.Http("/v1/claims").body, HasSubstr("\"claimed_bytes\": 0"));
}

// hostname, hosts and resolv.conf lie in the guest, and filling them takes nothing of the host's /run.
TEST_F(SandboxServiceTest, ThePodsFilesAreTheGuests) {
  const std::string busybox = LAMINA_GUEST_CACHE "/busybox/bin/busybox";
  if (!fs::exists(busybox)) GTEST_SKIP() << "no " << busybox << ": the guest's integration tests fetch it";
  const std::string layer = laminad_.directory() + "/layer", container = laminad_.directory() + "/container";
  for (const char* name : {"/etc", "/proc", "/dev", "/tmp"}) fs::create_directories(layer + name);
  fs::copy_file(busybox, layer + "/busybox");
  fs::create_directory(container);
  containerd::PodConfig pod = Pod();
  pod.mutable_dns_config()->add_servers("10.96.0.10");
  ASSERT_OK(Call(kService, "CreateSandbox", CreateOf(pod, bundle_, "/run/netns/" + netns_)));
  ASSERT_OK(Call<containerd::StartSandboxResponse>(kService, "StartSandbox", Named()));

  const std::string script =
      "b=/busybox; [ $($b cat /etc/hostname) = web ] || exit 2; "
      "[ \"$($b cat /etc/resolv.conf)\" = 'nameserver 10.96.0.10' ] || exit 3; [ -s /etc/hosts ] || exit 4; "
      "$b dd if=/dev/zero of=/etc/hosts bs=64k count=1000 && exit 5; "
      "[ $($b stat -c %s /etc/hosts) -lt 4194304 ] || exit 6; $b rm /etc/hosts && exit 7; "
      "$b grep -q ' /etc/hosts tmpfs ' /proc/mounts || exit 8; exit 42";
  nlohmann::json spec = {{"ociVersion", "1.0.2"},
                         {"root", {{"path", "rootfs"}}},
                         {"annotations", {{"io.kubernetes.cri.container-type", "container"}}},
                         {"process",
                          {{"args", {"/busybox", "sh", "-c", script}},
                           {"cwd", "/"},
                           {"env", nlohmann::json::array()},
                           {"user", {{"uid", 0}, {"gid", 0}}}}},
                         {"linux", {{"namespaces", {{{"type", "pid"}}, {{"type", "mount"}}}}}}};
  spec["mounts"] = {{{"destination", "/dev"}, {"type", "tmpfs"}, {"source", "tmpfs"}},
                    {{"destination", "/proc"}, {"type", "proc"}, {"source", "proc"}}};
  std::ofstream(container + "/config.json") << spec.dump();
  containerd::CreateTaskRequest create;
  create.set_id("c1");
  create.set_bundle(container);
  containerd::Mount& rootfs = *create.add_rootfs();
  rootfs.set_type("bind");
  rootfs.set_source(layer);
  ASSERT_OK(Call<containerd::CreateTaskResponse>(kTasks, "Create", create));
  containerd::TaskRequest task;
  task.set_id("c1");
  ASSERT_OK(Call<containerd::StartResponse>(kTasks, "Start", task));
  const auto waited = Call<containerd::WaitResponse>(kTasks, "Wait", task);
  ASSERT_OK(waited);
  EXPECT_EQ(waited->exit_status(), 42u);
  // On the host there are sockets, logs, and the place for volumes, which is empty.
  const auto text =
      FileSystem::Real().Read(laminad_.directory() + "/state/sandboxes/" + kId + "/state.json", 1 << 20);
  ASSERT_OK(text);
  const auto state = persist::DecodeState(*text, "state");
  ASSERT_OK(state);
  EXPECT_TRUE(state->has_pod_files) << "for one who goes on with it";
  EXPECT_FALSE(fs::exists(state->runtime_dir + "/etc"));
  EXPECT_TRUE(fs::is_empty(state->runtime_dir + "/shared"));
  EXPECT_OK(Call<containerd::DeleteResponse>(kTasks, "Delete", task));
  containerd::StopSandboxRequest stop;
  stop.set_sandbox_id(kId);
  EXPECT_OK(Call(kService, "StopSandbox", stop));
  EXPECT_OK(Call(kService, "ShutdownSandbox", Named()));
  EXPECT_TRUE(Eventually([&] { return !fs::exists(socket_); }));
}

TEST_F(SandboxServiceTest, APodThatDoesNotFitIsRefusedAndTheShimServesTheNextTry) {
  containerd::PodConfig pod = Pod();
  pod.mutable_linux()->mutable_resources()->set_memory_limit_in_bytes(int64_t{8} << 30);
  ASSERT_OK(Call(kService, "CreateSandbox", CreateOf(pod, bundle_, "/run/netns/" + netns_)));
  EXPECT_THAT(Call<containerd::StartSandboxResponse>(kService, "StartSandbox", Named()),
              HasStatus(absl::StatusCode::kResourceExhausted, "do not fit"));
  // The same sandbox with another description, as after a corrected pod.
  ASSERT_OK(Call(kService, "CreateSandbox", CreateOf(Pod(), bundle_, "")));
  EXPECT_THAT(Call<containerd::StartSandboxResponse>(kService, "StartSandbox", Named()),
              HasStatus(absl::StatusCode::kFailedPrecondition, "hostNetwork"));
  EXPECT_OK(Call(kService, "ShutdownSandbox", Named()));
  EXPECT_TRUE(Eventually([&] { return !fs::exists(socket_); }));
}

}  // namespace
}  // namespace lamina::cri

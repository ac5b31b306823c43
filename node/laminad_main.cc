// laminad: what the node's pods share. Stays in the foreground; SIGTERM ends it, the pods go on.
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <latch>
#include <memory>
#include <system_error>
#include <thread>
#include <vector>

#include "base/log.h"
#include "base/printable.h"
#include "base/status.h"
#include "base/version.h"
#include "node/engine.h"
#include "node/grpc_door.h"
#include "node/rest_routes.h"
#include "node/rest_server.h"
#include "node/services.h"
#include "vmm/hypervisor.h"

namespace lamina::node {
namespace {

constexpr timespec kReconcileEvery{5, 0};
constexpr rlim_t kDescriptors = 65536;

// gRPC ends the process where it does not get its threads (eight on two cores): they are asked for before.
absl::Status CheckThreads() {
  const size_t count = 8 + 2 * size_t{std::thread::hardware_concurrency()};
  std::latch end(1);
  std::vector<std::jthread> threads;
  absl::Status status;
  try {
    while (threads.size() < count) threads.emplace_back([&] { end.wait(); });
  } catch (const std::system_error& error) {
    status =
        MakeStatus(absl::StatusCode::kResourceExhausted, "gRPC needs {} threads, only {} could be made: {}",
                   count, threads.size(), error.what());
  }
  end.count_down();
  return status;
}

// REST and gRPC are bounded far below it: the rest is the shims', of which there are hundreds.
void RaiseDescriptors() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = std::max(limit.rlim_cur, std::min<rlim_t>(limit.rlim_max, kDescriptors));
  setrlimit(RLIMIT_NOFILE, &limit);
}

RestOptions RestOptionsOf(const Config& config) {
  const Config::Laminad& laminad = config.laminad;
  return {laminad.rest_address,
          {laminad.rest_tls_certificate, laminad.rest_tls_key, laminad.rest_token_file},
          RestProbes(),
          {}};
}

// spdlog's as base/log.h's: what is logged may have others' words in it.
class EscapedMessage : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&, spdlog::memory_buf_t& line) override {
    const std::string text = Printable({message.payload.data(), message.payload.size()}, kMaxLogBytes);
    line.append(text.data(), text.data() + text.size());
  }
  std::unique_ptr<spdlog::custom_flag_formatter> clone() const override {
    return std::make_unique<EscapedMessage>();
  }
};

void SetLog() {
  spdlog::set_default_logger(spdlog::stderr_logger_mt("laminad"));
  auto formatter = std::make_unique<spdlog::pattern_formatter>(spdlog::pattern_time_type::utc);
  formatter->add_flag<EscapedMessage>('*').set_pattern("%Y-%m-%dT%H:%M:%S.%fZ %l %*");
  spdlog::set_formatter(std::move(formatter));
}

absl::Status Run(const Config& config) {
  FileSystem& fs = FileSystem::Real();
  RETURN_IF_ERROR(fs.MakeDirectories(config.paths.run_dir, 0700));
  const UniqueFd lock(
      open((config.paths.run_dir + "/laminad.lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock) return ErrnoStatus(errno, "open " + config.paths.run_dir + "/laminad.lock");
  if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    return MakeStatus(absl::StatusCode::kAlreadyExists, "another laminad runs on {}", config.paths.run_dir);
  }
  // Signals are taken by sigtimedwait below, in no other thread.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, number);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  RaiseDescriptors();

  char cgroup_namespace[64] = "";
  if (readlink("/proc/self/ns/cgroup", cgroup_namespace, sizeof cgroup_namespace - 1) < 0)
    cgroup_namespace[0] = '\0';
  if (const std::string hidden = HiddenCgroups(cgroup_namespace, "/sys/fs/cgroup"); !hidden.empty())
    spdlog::warn("{}", hidden);
  if (config.hypervisor.users.empty())
    spdlog::warn("hypervisor.users is empty: QEMU runs as root, and a guest that takes it over has the node");
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                   Engine::Open(config, fs, Host::Real(), Clock::Real()));
  ASSIGN_OR_RETURN(const std::unique_ptr<RestServer> rest,
                   RestServer::Listen(RestOptionsOf(config), [&](const std::string& path) {
                     return AnswerRest(engine->views(), path);
                   }));
  ttrpc::Server shims;
  RegisterShimService(shims, engine->claims(), engine->layers());
  RETURN_IF_ERROR(shims.Listen(config.shim_socket()));

  RETURN_IF_ERROR(CheckThreads());
  GrpcService service(engine->views(), engine->layers());
  grpc::ServerBuilder builder;
  grpc::ResourceQuota quota("laminad");
  quota.SetMaxThreads(4);
  builder.SetResourceQuota(quota);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::SyncServerOption::MAX_POLLERS, 1);
  umask(0077);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 60'000);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> grpc = builder.BuildAndStart();
  if (grpc == nullptr)
    return MakeStatus(absl::StatusCode::kUnavailable, "gRPC at {}: cannot serve", config.grpc_socket());
  ASSIGN_OR_RETURN(std::unique_ptr<GrpcDoor> door, GrpcDoor::Open(config.grpc_socket(), *grpc));

  // First: pods that run wait for their ledger. The trial boot may take seconds, and a shim that is asked for
  // a pod meanwhile waits for it; a host that cannot boot a VM yet still has its REST and its ledger.
  const auto reconcile = [&] {
    if (const absl::Status status = engine->Reconcile(); !status.ok())
      spdlog::warn("reconcile: {}", Message(status));
  };
  reconcile();
  const absl::StatusOr<vmm::Accel> accel = vmm::Hypervisor::Qemu().ChooseAccel(config);
  if (accel.ok()) {
    spdlog::info("VMs run on {}", vmm::AccelName(*accel));
  } else {
    spdlog::warn("choice of acceleration: {}", Message(accel.status()));
  }
  spdlog::info("ready: shims at {}, gRPC at {}, REST at {}://{}", config.shim_socket(), config.grpc_socket(),
               config.laminad.rest_tls_certificate.empty() ? "http" : "https", config.laminad.rest_address);
  for (;;) {
    const int number = sigtimedwait(&signals, nullptr, &kReconcileEvery);
    if (number == SIGTERM || number == SIGINT) break;
    if (number < 0) reconcile();
  }
  spdlog::info("ends; the pods go on");
  door.reset();
  grpc->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  shims.Stop();
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  mallopt(M_ARENA_MAX, 1);
  std::string path;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--config" && i + 1 < argc) {
      path = argv[++i];
    } else if (word == "--version") {
      printf("laminad %s\n", Version());
      return 0;
    } else {
      fprintf(stderr, "usage: laminad [--config FILE] [--version]\n");
      return word == "--help" ? 0 : 2;
    }
  }
  const absl::StatusOr<Config> config = path.empty() ? LoadDefaultConfig() : LoadConfig(path);
  SetLog();
  if (!config.ok()) {
    spdlog::error("{}", Message(config.status()));
    return 2;
  }
  spdlog::set_level(spdlog::level::from_str(config->laminad.log_level));
  const absl::Status status = Run(*config);
  if (status.ok()) return 0;
  spdlog::error("{}", Message(status));
  return 1;
}

}  // namespace
}  // namespace lamina::node

int main(int argc, char** argv) { return lamina::node::Main(argc, argv); }

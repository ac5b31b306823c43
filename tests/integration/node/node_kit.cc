#include "tests/integration/node/node_kit.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "base/file_system.h"
#include "base/process.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/unique_fd.h"

namespace lamina::node {
namespace {

constexpr std::chrono::seconds kTimeout{60};
constexpr char kService[] = "lamina.laminad.v1.Laminad";

int Reap(pid_t pid) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

Sleeper::Sleeper() {
  SpawnOptions options;
  options.argv = {"sleep", "600"};
  pid_ = Spawn(options).value_or(0);
  start_time_ = ProcessStartTime(pid_).value_or(0);
}

void Sleeper::End() {
  if (pid_ == 0) return;
  kill(pid_, SIGKILL);
  Reap(pid_);
  pid_ = 0;
}

int FreePort() {
  const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (bind(fd.get(), reinterpret_cast<sockaddr*>(&address), length) != 0) return 0;
  if (getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) return 0;
  return ntohs(address.sin_port);
}

bool Eventually(const std::function<bool()>& holds, std::chrono::seconds timeout) {
  const auto deadline = std::chrono::steady_clock::now() + timeout;
  for (int wait_ms = 5; !holds(); wait_ms = std::min(wait_ms * 2, 200)) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    poll(nullptr, 0, wait_ms);
  }
  return true;
}

void WriteFile(const std::string& path, const std::string& content) {
  const absl::Status status = FileSystem::Real().WriteAndSync(path, content, 0600);
  if (!status.ok()) abort();
}

Laminad::Laminad(const std::string& extra, const std::string& paths, const std::string& parent) {
  directory_ = parent + "/lamina-node-XXXXXX";
  if (mkdtemp(directory_.data()) == nullptr) abort();
  rest_address_ = fmt::format("127.0.0.1:{}", FreePort());
  WriteFile(config_path(), fmt::format("[paths]\nrun_dir = \"{0}/run\"\nstate_dir = "
                                       "\"{0}/state\"\n{3}[laminad]\nrest_address = \"{1}\"\n{2}",
                                       directory_, rest_address_, extra, paths));
}

Laminad::~Laminad() {
  if (pid_ != 0) Stop(SIGKILL);
  FileSystem::Real().RemoveTree(directory_).IgnoreError();
}

absl::Status Laminad::Start(const std::vector<std::string>& wrapper) {
  SpawnOptions options;
  options.argv = wrapper;
  for (const std::string& word :
       {std::string(LAMINA_BIN_DIR "/laminad"), std::string("--config"), config_path()})
    options.argv.push_back(word);
  options.log_path = directory_ + "/laminad.log";
  ASSIGN_OR_RETURN(pid_, Spawn(options));
  const bool ready = Eventually([this] {
    siginfo_t ended{};  // it stays to be reaped by Stop
    return (waitid(P_PID, static_cast<id_t>(pid_), &ended, WEXITED | WNOHANG | WNOWAIT) == 0 &&
            ended.si_pid != 0) ||
           Http("/readyz").status == 200;
  });
  return ready && Http("/readyz").status == 200 ? absl::OkStatus()
                                                : absl::InternalError("laminad is not ready: " + Log());
}

int Laminad::Stop(int signal) {
  kill(pid_, signal);
  const int code = Reap(pid_);
  pid_ = 0;
  return code;
}

std::string Laminad::Log() const {
  return FileSystem::Real().Read(directory_ + "/laminad.log", 1 << 20).value_or("");
}

std::unique_ptr<ttrpc::Client> Laminad::Connect() const {
  auto client = ttrpc::Client::Dial(directory_ + "/run/shim.sock", "laminad");
  return client.ok() ? std::move(*client) : nullptr;
}

absl::Status Laminad::Call(const char* method, const google::protobuf::MessageLite& request,
                           google::protobuf::MessageLite* response) const {
  const std::unique_ptr<ttrpc::Client> client = Connect();
  if (client == nullptr) return absl::UnavailableError("cannot connect");
  return client->Call(kService, method, request, response, kTimeout);
}

laminad::v1::ClaimRequest Laminad::ClaimOf(const std::string& id, uint64_t bytes) const {
  laminad::v1::ClaimRequest request;
  request.set_sandbox_id(id);
  request.set_pod_namespace("shop");
  request.set_pod_name("pod-" + id);
  request.set_pod_uid("uid-" + id);
  request.set_bytes(bytes);
  request.set_shim_pid(getpid());
  request.set_shim_start_time(ProcessStartTime(getpid()).value_or(0));
  laminad::v1::SizingReport& sizing = *request.mutable_sizing();
  sizing.set_vcpus(1);
  sizing.set_vcpus_exact("0.75");
  sizing.set_vcpus_if_rounded_per_container(2);
  sizing.set_memory_bytes(bytes);
  sizing.set_limit_nano_cpus(250'000'000);
  sizing.set_limit_memory_bytes(128 << 20);
  sizing.set_overhead_nano_cpus(500'000'000);
  sizing.set_overhead_memory_bytes(64 << 20);
  sizing.add_reasons("overhead of 0.5 and a limit of 0.25 are 0.75 CPUs, rounded up once to 1");
  return request;
}

absl::StatusOr<laminad::v1::ClaimResponse> Laminad::Claim(const std::string& id, uint64_t bytes) const {
  laminad::v1::ClaimResponse response;
  RETURN_IF_ERROR(Call("Claim", ClaimOf(id, bytes), &response));
  return response;
}

absl::Status Laminad::Started(const std::string& id, uint64_t generation, const Sleeper& vmm) const {
  laminad::v1::StartedRequest request;
  request.set_sandbox_id(id);
  request.set_generation(generation);
  request.set_vmm_pid(vmm.pid());
  request.set_vmm_start_time(vmm.start_time());
  laminad::v1::Empty empty;
  return Call("Started", request, &empty);
}

absl::Status Laminad::Release(const std::string& id, uint64_t generation) const {
  laminad::v1::ReleaseRequest request;
  request.set_sandbox_id(id);
  request.set_generation(generation);
  laminad::v1::Empty empty;
  return Call("Release", request, &empty);
}

absl::StatusOr<laminad::v1::PlaceLayersResponse> Laminad::Place(
    const std::string& id, uint64_t generation, const std::vector<std::string>& sources, uint32_t free_slots,
    const std::vector<std::string>& attached) const {
  laminad::v1::PlaceLayersRequest request;
  request.set_sandbox_id(id);
  request.set_generation(generation);
  for (const std::string& source : sources) request.add_sources(source);
  for (const std::string& arena : attached) {
    request.add_attached()->set_id(arena);
    request.mutable_attached(request.attached_size() - 1)->set_bytes(uint64_t{1} << 40);  // all of it
  }
  request.set_free_arena_slots(free_slots);
  laminad::v1::PlaceLayersResponse response;
  RETURN_IF_ERROR(Call("PlaceLayers", request, &response));
  return response;
}

HttpAnswer Laminad::Http(const std::string& path, const std::vector<std::string>& curl_arguments) const {
  const std::string headers = directory_ + "/http.headers", body = directory_ + "/http.body";
  FileSystem& fs = FileSystem::Real();
  fs.Remove(headers).IgnoreError();
  fs.Remove(body).IgnoreError();
  std::vector<std::string> argv = {"curl",  "-s", "--max-time", "10", "-D",
                                   headers, "-o", body,         "-w", "%{http_code}"};
  argv.insert(argv.end(), curl_arguments.begin(), curl_arguments.end());
  argv.push_back("http://" + rest_address_ + path);
  const absl::StatusOr<CommandResult> result = RunCommand(argv, kTimeout);
  if (!result.ok()) return {};
  return {atoi(result->output.c_str()), fs.Read(headers, 1 << 20).value_or(""),
          fs.Read(body, 64 << 20).value_or("")};
}

CliAnswer RunLamina(const std::vector<std::string>& arguments, const Laminad* laminad) {
  std::vector<std::string> argv = {LAMINA_BIN_DIR "/lamina"};
  if (laminad != nullptr) argv.insert(argv.end(), {"--config", laminad->config_path()});
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  const absl::StatusOr<CommandResult> result = RunCommand(argv, kTimeout);
  return result.ok() ? CliAnswer{result->exit_code, result->output} : CliAnswer{-1, Message(result.status())};
}

}  // namespace lamina::node

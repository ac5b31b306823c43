// containerd-shim-lamina-v2: `start` answers with the pod's socket, `delete` cleans up after a dead shim,
// `serve` is the server that start leaves behind.
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/clock.h"
#include "base/config.h"
#include "base/file_system.h"
#include "base/log.h"
#include "base/process.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "cri/cleanup.h"
#include "cri/command_line.h"
#include "cri/oci_spec.h"
#include "cri/sandbox.h"
#include "cri/sandbox_service.h"
#include "cri/task_service.h"

namespace lamina::cri {
namespace {

constexpr int kListenFd = 3;

absl::Status Address(const std::string& path, sockaddr_un& address) {
  address = {};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return InvalidArgument("socket path {} is too long; shorten paths.run_dir", path);
  memcpy(address.sun_path, path.data(), path.size());
  return absl::OkStatus();
}

bool Answers(const std::string& path) {
  sockaddr_un address;
  if (!Address(path, address).ok()) return false;
  const UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  return connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
}

absl::StatusOr<UniqueFd> ListenAt(const std::string& path) {
  sockaddr_un address;
  RETURN_IF_ERROR(Address(path, address));
  unlink(path.c_str());
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) return ErrnoStatus(errno, "socket");
  fchmod(fd.get(), 0600);
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return ErrnoStatus(errno, "bind " + path);
  if (listen(fd.get(), 64) != 0) return ErrnoStatus(errno, "listen at " + path);
  return fd;
}

void Answer(const std::string& text) {
  [[maybe_unused]] const ssize_t n = write(STDOUT_FILENO, text.data(), text.size());
}

absl::Status Start(const CommandLine& line, const Config& config) {
  char cwd[4096];
  if (getcwd(cwd, sizeof cwd) == nullptr) return ErrnoStatus(errno, "getcwd");
  const std::string bundle = cwd;
  std::string sandbox_id = line.id;
  // With containerd's Sandbox service a pod has no config.json: its description comes in CreateSandbox.
  if (FileSystem::Real().Exists(bundle + "/config.json")) {
    ASSIGN_OR_RETURN(const BundleSpec spec, ReadSpec(bundle));
    sandbox_id = spec.sandbox_id(line.id);
  }
  if (!persist::IsSafeId(sandbox_id))
    return InvalidArgument("sandbox id \"{}\" is not safe as a file name", sandbox_id);
  const std::string path = ShimSocket(config.paths.run_dir, line.ns, sandbox_id);
  const std::string answer = "unix://" + path;
  if (!Answers(path)) {
    if (sandbox_id != line.id) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition,
                        "container {}: the shim of its sandbox {} does not run", line.id, sandbox_id);
    }
    RETURN_IF_ERROR(FileSystem::Real().MakeDirectories(config.paths.run_dir + "/shim", 0700));
    ASSIGN_OR_RETURN(const UniqueFd listener, ListenAt(path));
    char self[4096];
    const ssize_t length = readlink("/proc/self/exe", self, sizeof self);
    if (length <= 0) return ErrnoStatus(errno, "readlink /proc/self/exe");
    SpawnOptions options;
    options.argv = {std::string(self, static_cast<size_t>(length)),
                    "-namespace",
                    line.ns,
                    "-address",
                    line.address,
                    "-id",
                    sandbox_id};
    if (line.debug) options.argv.push_back("-debug");
    options.argv.push_back("serve");
    options.fds = {{listener.get(), kListenFd}};
    options.working_directory = bundle;
    // The server comes last: nothing that fails after it would leave it without an owner.
    absl::Status status = WriteFileAtomically(FileSystem::Real(), bundle + "/address", answer, 0600);
    if (status.ok()) status = Spawn(options).status();
    if (!status.ok()) {
      unlink(path.c_str());
      return status;
    }
  } else {
    RETURN_IF_ERROR(WriteFileAtomically(FileSystem::Real(), bundle + "/address", answer, 0600));
  }
  Answer(answer);
  return absl::OkStatus();
}

absl::Status Delete(const CommandLine& line, const Config& config) {
  containerd::DeleteResponse response;
  response.set_exit_status(137);
  const int64_t nanos = UnixNanos(Clock::Real().Wall());
  response.mutable_exited_at()->set_seconds(nanos / 1'000'000'000);
  response.mutable_exited_at()->set_nanos(static_cast<int32_t>(nanos % 1'000'000'000));
  const std::string path = ShimSocket(config.paths.run_dir, line.ns, line.id);
  persist::StateStore store(FileSystem::Real(), config.paths.state_dir);
  const absl::StatusOr<persist::SandboxState> state = store.Load(line.id);
  // A container's id has no state of its own; a sandbox whose shim lives is none of our business.
  if (state.ok() && !ProcessAlive(static_cast<pid_t>(state->shim.pid), state->shim.start_time)) {
    response.set_pid(static_cast<uint32_t>(state->vmm.pid));
    LaminadClient laminad(config.shim_socket());
    RETURN_IF_ERROR(CleanUpSandbox(config, laminad, *state));
    unlink(path.c_str());
  } else if (state.status().code() == absl::StatusCode::kDataLoss ||
             state.status().code() == absl::StatusCode::kFailedPrecondition) {
    return state.status();
  } else if (!state.ok() && !Answers(path)) {
    unlink(path.c_str());
  }
  Answer(response.SerializeAsString());
  return absl::OkStatus();
}

absl::Status Serve(const CommandLine& line, const Config& config) {
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_TRIM_THRESHOLD, 64 * 1024);
  signal(SIGPIPE, SIG_IGN);
  for (const int number : {SIGHUP, SIGINT, SIGTERM}) signal(number, SIG_IGN);
  // containerd reads this FIFO; read-write and non-blocking, so that its absence disturbs nobody.
  const int log = open("log", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (log >= 0) SetLogTarget(log, line.debug ? LogLevel::kDebug : LogLevel::kInfo);
  const char* ttrpc_address = getenv("TTRPC_ADDRESS");
  EventPublisher events(ttrpc_address != nullptr ? ttrpc_address : "", line.ns);
  Sandbox sandbox(config, events);
  ttrpc::ServerOptions options;
  options.idle_threads = 1;
  ttrpc::Server server(options);
  UniqueFd done_read, done_write;
  int pipe_fds[2];
  if (pipe2(pipe_fds, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  done_read.reset(pipe_fds[0]);
  done_write.reset(pipe_fds[1]);
  const auto shut_down = [&] { [[maybe_unused]] const ssize_t n = write(done_write.get(), "x", 1); };
  RegisterTaskService(server, sandbox, events, shut_down);
  RegisterSandboxService(server, sandbox, shut_down);
  RETURN_IF_ERROR(server.ListenFd(UniqueFd(kListenFd)));
  char byte;
  while (read(done_read.get(), &byte, 1) < 0 && errno == EINTR) {
  }
  events.Flush(std::chrono::seconds(2));
  unlink(ShimSocket(config.paths.run_dir, line.ns, line.id).c_str());
  _exit(0);  // handlers that still wait (Wait of a gone task) end with the process
}

int Main(int argc, char** argv) {
  SetLogTarget(STDERR_FILENO, LogLevel::kError);
  const absl::StatusOr<CommandLine> line = ParseCommandLine({argv + 1, argv + argc});
  absl::Status status = line.status();
  if (line.ok()) {
    if (line->info) return 0;
    if (line->version) {
      Answer("containerd-shim-lamina-v2 0.1.0\n");
      return 0;
    }
    const absl::StatusOr<Config> config = LoadDefaultConfig();
    status = config.status();
    if (config.ok()) {
      if (line->action == "start") {
        status = Start(*line, *config);
      } else if (line->action == "delete") {
        status = Delete(*line, *config);
      } else if (line->action == "serve") {
        status = Serve(*line, *config);
      } else {
        status = InvalidArgument("action \"{}\": containerd calls this program with start or delete",
                                 line->action);
      }
    }
  }
  if (status.ok()) return 0;
  // containerd shows this text as the reason.
  const std::string text = "lamina: " + Message(status) + "\n";
  [[maybe_unused]] const ssize_t n = write(STDERR_FILENO, text.data(), text.size());
  return 1;
}

}  // namespace
}  // namespace lamina::cri

int main(int argc, char** argv) { return lamina::cri::Main(argc, argv); }

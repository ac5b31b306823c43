// containerd-shim-lamina-v2: `start` answers with the pod's socket, `delete` cleans up after a dead shim,
// `serve` is the server that start leaves behind.
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>

#include "base/config.h"
#include "base/log.h"
#include "base/status.h"
#include "base/version.h"
#include "cri/command_line.h"
#include "cri/delete_action.h"
#include "cri/sandbox.h"
#include "cri/sandbox_service.h"
#include "cri/start_action.h"
#include "cri/task_service.h"

namespace lamina::cri {
namespace {

void Answer(const std::string& text) {
  [[maybe_unused]] const ssize_t n = write(STDOUT_FILENO, text.data(), text.size());
}

// A container with many execs needs many: the soft limit that a service gets is for programs that use
// select(2).
void RaiseDescriptorLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

absl::Status Serve(const CommandLine& line, const Config& config) {
  mallopt(M_ARENA_MAX, 1);
  mallopt(M_TRIM_THRESHOLD, 64 * 1024);
  RaiseDescriptorLimit();
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
      Answer(fmt::format("containerd-shim-lamina-v2 {}\n", Version()));
      return 0;
    }
    const absl::StatusOr<Config> config = LoadDefaultConfig();
    status = config.status();
    if (config.ok()) {
      if (line->action == "start") {
        const absl::StatusOr<std::string> address = StartShim(*line, *config);
        status = address.status();
        if (address.ok()) Answer(*address);
      } else if (line->action == "delete") {
        const absl::StatusOr<containerd::DeleteResponse> deleted = DeleteLost(*line, *config);
        status = deleted.status();
        if (deleted.ok()) Answer(deleted->SerializeAsString());
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

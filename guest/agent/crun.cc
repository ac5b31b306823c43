#include "guest/agent/crun.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/status.h"
#include "base/unix_socket.h"
#include "guest/agent/files.h"

namespace lamina::guest {
namespace {

using std::chrono::steady_clock;

constexpr auto kRunTimeout = std::chrono::seconds(60);
constexpr auto kKillTimeout = std::chrono::seconds(5);
constexpr size_t kMaxMessageBytes = 2048;

// crun's log lines begin with a time: "2024-05-01T10:00:00.000000000Z: message".
std::string_view WithoutTime(std::string_view line) {
  const size_t end = line.find("Z: ");
  if (end == std::string_view::npos || end < 19 || end > 32 || line[4] != '-' || line[10] != 'T') return line;
  return line.substr(end + 3);
}

}  // namespace

absl::Status CrunError(std::string_view command, int exit_code, std::string_view log) {
  std::string text;
  while (!log.empty()) {
    const size_t newline = log.find('\n');
    const std::string_view line = WithoutTime(log.substr(0, newline));
    log = newline == std::string_view::npos ? std::string_view() : log.substr(newline + 1);
    if (line.empty()) continue;
    if (!text.empty()) text += "; ";
    text += line;
  }
  if (text.size() > kMaxMessageBytes) text.erase(0, text.size() - kMaxMessageBytes);
  if (text.empty()) text = fmt::format("exit code {}", exit_code);
  const auto has = [&](std::string_view part) { return text.find(part) != std::string::npos; };
  absl::StatusCode code = absl::StatusCode::kInternal;
  if (has("ermission denied")) {
    code = absl::StatusCode::kPermissionDenied;
  } else if (has("executable file") || has("open executable")) {
    code = absl::StatusCode::kNotFound;
  }
  return MakeStatus(code, "crun {}: {}", command, text);
}

std::string Crun::TemporaryPath(std::string_view suffix) {
  return fmt::format("{}/log/{}.{}", root_, counter_.fetch_add(1), suffix);
}

absl::Status Crun::Run(const std::vector<std::string>& arguments, const CrunStdio& stdio,
                       std::optional<int> oom_score_adj) {
  const std::string log_path = TemporaryPath("log");
  SpawnOptions options;
  options.argv = {program_, "--root", root_ + "/crun", "--cgroup-manager=cgroupfs", "--log", log_path};
  options.argv.insert(options.argv.end(), arguments.begin(), arguments.end());
  options.oom_score_adj = oom_score_adj;
  options.core_files = true;  // a container's own limits decide
  if (stdio.in >= 0) options.fds.emplace_back(stdio.in, 0);
  if (stdio.out >= 0) options.fds.emplace_back(stdio.out, 1);
  if (stdio.err >= 0) options.fds.emplace_back(stdio.err, 2);
  ASSIGN_OR_RETURN(const ProcessRef process, processes_.Start(options));
  const auto exit = processes_.Wait(process, steady_clock::now() + kRunTimeout);
  if (!exit) {
    processes_.SignalGroup(process, SIGKILL).IgnoreError();
    processes_.Wait(process, steady_clock::now() + kKillTimeout);
  }
  const auto log = ReadKernelFile(log_path);
  unlink(log_path.c_str());
  if (!exit) {
    return MakeStatus(absl::StatusCode::kDeadlineExceeded, "crun {}: not finished after {} s", arguments[0],
                      kRunTimeout.count());
  }
  if (exit->status == 0) return absl::OkStatus();
  return CrunError(arguments[0], exit->status, log.ok() ? *log : "");
}

absl::StatusOr<pid_t> ReadPidFile(const std::string& path) {
  const auto text = ReadKernelFile(path);
  unlink(path.c_str());
  if (!text.ok()) return text.status();
  const auto pid = ParseCount(*text);
  if (!pid.ok() || *pid < 2 || *pid > 4194304)
    return MakeStatus(absl::StatusCode::kInternal, "{}: no pid in it", path);
  return static_cast<pid_t>(*pid);
}

absl::StatusOr<ConsoleSocket> ConsoleSocket::Listen(std::string path) {
  ASSIGN_OR_RETURN(UniqueFd fd, ListenUnix(path, 1));
  return ConsoleSocket(std::move(path), std::move(fd));
}

ConsoleSocket::~ConsoleSocket() {
  if (fd_) unlink(path_.c_str());
}

absl::StatusOr<UniqueFd> ConsoleSocket::ReceiveMaster() {
  pollfd ready{fd_.get(), POLLIN, 0};
  if (poll(&ready, 1, 5000) <= 0) return absl::InternalError("crun has sent no terminal");
  UniqueFd connection(accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!connection) return ErrnoStatus(errno, "accept on the console socket");
  ready = {connection.get(), POLLIN, 0};
  if (poll(&ready, 1, 5000) <= 0) return absl::InternalError("crun has sent no terminal");
  char data[256];
  iovec buffer{data, sizeof data};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * 4)];
  msghdr message{};
  message.msg_iov = &buffer;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  if (recvmsg(connection.get(), &message, MSG_CMSG_CLOEXEC) < 0)
    return ErrnoStatus(errno, "receive the terminal");
  UniqueFd master;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
      master.reset(fd);
    }
  }
  if (!master) return absl::InternalError("crun's message holds no terminal");
  return master;
}

}  // namespace lamina::guest

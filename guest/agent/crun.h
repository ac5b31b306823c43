// Runs crun(1) and turns its complaints into a Status.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "guest/agent/processes.h"

namespace lamina::guest {

// The code that crun's text stands for (a missing executable: NotFound; one that may not be run:
// PermissionDenied; otherwise Internal), with the text without time stamps, at most 2 KiB of its end.
absl::Status CrunError(std::string_view command, int exit_code, std::string_view log);

struct CrunStdio {
  int in = -1, out = -1, err = -1;  // -1: /dev/null
};

// Thread-safe: runs may overlap.
class Crun {
 public:
  // State below <root>/crun, logs of runs below <root>/log (both must exist).
  Crun(ProcessTable& processes, std::string program, std::string root)
      : processes_(processes), program_(std::move(program)), root_(std::move(root)) {}

  // crun <global options> <arguments>. DeadlineExceeded after 60 s, when it is killed. `oom_score_adj`: for
  // crun and what it starts (`crun exec` passes over the one in the process).
  absl::Status Run(const std::vector<std::string>& arguments, const CrunStdio& stdio = {},
                   std::optional<int> oom_score_adj = std::nullopt);

  // A name for a file that only this run uses: <root>/log/<number>.<suffix>.
  std::string TemporaryPath(std::string_view suffix);

 private:
  ProcessTable& processes_;
  const std::string program_, root_;
  std::atomic<uint64_t> counter_{0};
};

// The pid that crun left in `path`.
absl::StatusOr<pid_t> ReadPidFile(const std::string& path);

// The socket to which crun sends the master of a new terminal (--console-socket).
class ConsoleSocket {
 public:
  static absl::StatusOr<ConsoleSocket> Listen(std::string path);
  ConsoleSocket(ConsoleSocket&& other) noexcept = default;
  ConsoleSocket& operator=(ConsoleSocket&& other) noexcept = default;
  ~ConsoleSocket();
  const std::string& path() const { return path_; }
  // What crun, which has ended, has sent; waits at most 5 s.
  absl::StatusOr<UniqueFd> ReceiveMaster();

 private:
  ConsoleSocket(std::string path, UniqueFd fd) : path_(std::move(path)), fd_(std::move(fd)) {}
  std::string path_;
  UniqueFd fd_;
};

}  // namespace lamina::guest

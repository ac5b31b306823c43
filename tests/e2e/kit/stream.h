// The streaming half of exec and attach: containerd serves it on loopback as a websocket that carries
// numbered channels (subprotocol v4.channel.k8s.io: 0 stdin, 1 stdout, 2 stderr, 3 result, 4 resize).
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "tests/e2e/kit/net.h"

namespace lamina::e2e {

struct ExecResult {
  std::string out;
  std::string err;
  int exit_code = 0;
};

// One exec or attach session. Not thread-safe. Destroying it drops the connection (and with it the process'
// standard input).
class Stream {
 public:
  // `url` as the CRI's Exec or Attach answers it: http://127.0.0.1:port/path.
  static absl::StatusOr<std::unique_ptr<Stream>> Open(const std::string& url, Deadline deadline);

  absl::Status Write(std::string_view data, Deadline deadline);  // to standard input
  absl::Status Resize(int width, int height, Deadline deadline);
  // Reads until standard output (all of it so far) contains `text`; DeadlineExceeded shows what it has.
  absl::Status ReadUntil(std::string_view text, Deadline deadline);
  // Reads until the server ends the session; exit_code is the process' (0 for attach).
  absl::StatusOr<ExecResult> Finish(Deadline deadline);

  const std::string& out() const { return out_; }
  const std::string& err() const { return err_; }

 private:
  explicit Stream(UniqueFd fd) : fd_(std::move(fd)) {}
  absl::Status SendFrame(uint8_t opcode, std::string_view payload, Deadline deadline);
  // Reads and dispatches one frame. False: the server closed.
  absl::StatusOr<bool> ReadFrame(Deadline deadline);
  absl::StatusOr<bool> Fill(size_t bytes, Deadline deadline);

  UniqueFd fd_;
  std::string buffer_, message_, out_, err_, result_;
};

}  // namespace lamina::e2e

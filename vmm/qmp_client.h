// QEMU's control protocol: JSON lines. Written here because no C++ library offers it.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "base/unique_fd.h"

namespace lamina::vmm {

// QEMU may be its guest's: what it sends is bounded here. The longest line of an honest one lists its vCPUs,
// some 200 bytes each.
inline constexpr size_t kQmpMaxLineBytes = 256 << 10;

// `text`, whatever its bytes, as a JSON string for a command's arguments.
std::string JsonText(const std::string& text);

struct QmpEvent {
  std::string name;    // DEVICE_DELETED
  std::string device;  // data.device where present
};

// One parsed line from QEMU.
struct QmpMessage {
  enum Kind { kGreeting, kReturn, kError, kEvent } kind = kEvent;
  uint64_t id = 0;                      // kReturn, kError
  std::string return_json;              // kReturn
  std::string error_class, error_text;  // at most 512 bytes, printable
  QmpEvent event;
};
// InvalidArgument for anything that is not QMP, or is nested deeper than 64. Pure; fuzzed.
absl::StatusOr<QmpMessage> ParseQmpLine(std::string_view line);

// Thread-safe; one command at a time, and who waits for his turn waits no longer than he would for his
// answer.
class QmpClient {
 public:
  // Waits for the socket to appear, for QEMU's greeting, and negotiates, all until `deadline`. `alive` is
  // asked while waiting: its error ends the wait. Cancelled as soon as `cancel_fd` (-1: none) is readable.
  static absl::StatusOr<std::unique_ptr<QmpClient>> Connect(const std::string& path,
                                                            std::chrono::steady_clock::time_point deadline,
                                                            const std::function<absl::Status()>& alive,
                                                            int cancel_fd = -1);
  static absl::StatusOr<std::unique_ptr<QmpClient>> FromFd(UniqueFd fd,
                                                           std::chrono::steady_clock::time_point deadline,
                                                           int cancel_fd = -1);

  // Runs `command` with `arguments` (a JSON object, or empty). Gives the JSON of "return". QEMU's error
  // classes: DeviceNotFound -> NotFound, others -> Internal with QEMU's words. DeadlineExceeded: no answer in
  // time; it is dropped when it comes later. Unavailable when QEMU is gone, and ever after a command that
  // QEMU took only in part. `fd`, where there is one, is sent along (add-fd), and stays ours.
  absl::StatusOr<std::string> Execute(const std::string& command, const std::string& arguments,
                                      std::chrono::milliseconds timeout, int fd = -1);
  // Forgets DEVICE_DELETED of `device` seen so far: ids are used again, and an old event must not answer for
  // a new device. Called before device_del.
  void ForgetDeleted(const std::string& device);
  // Waits for DEVICE_DELETED of `device`; events that came before are remembered. DeadlineExceeded. Commands
  // of others go on meanwhile.
  absl::Status WaitDeviceDeleted(const std::string& device, std::chrono::milliseconds timeout);

 private:
  class Turn;
  using Deadline = std::chrono::steady_clock::time_point;

  QmpClient(UniqueFd fd, int cancel_fd) : fd_(std::move(fd)), cancel_fd_(cancel_fd) {}
  // The three are for who has the turn.
  absl::StatusOr<QmpMessage> ReadMessage(Deadline deadline);
  absl::Status Send(const std::string& line, Deadline deadline, int fd);
  absl::StatusOr<std::string> Run(const std::string& command, const std::string& arguments, Deadline deadline,
                                  int fd = -1) EXCLUDES(mutex_);
  void Remember(const QmpEvent& event) EXCLUDES(mutex_);
  bool TakeDeleted(const std::string& device) REQUIRES(mutex_);

  const UniqueFd fd_;
  // Whoever has the turn alone reads and writes the socket, and these three.
  std::string buffer_;
  uint64_t next_id_ = 1;
  int cancel_fd_;  // until it is connected

  Mutex mutex_;
  CondVar turns_;
  bool taken_ GUARDED_BY(mutex_) = false;
  int waiting_ GUARDED_BY(mutex_) = 0;
  std::deque<std::string> deleted_ GUARDED_BY(mutex_);  // devices of DEVICE_DELETED that nobody waited for
};

}  // namespace lamina::vmm

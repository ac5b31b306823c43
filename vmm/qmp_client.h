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

inline constexpr size_t kQmpMaxLineBytes = 1 << 20;

// `text`, whatever its bytes, as a JSON string for a command's arguments.
std::string JsonText(const std::string& text);

struct QmpEvent {
  std::string name;          // DEVICE_DELETED
  std::string device, path;  // data.device, data.path where present
};

// One parsed line from QEMU.
struct QmpMessage {
  enum Kind { kGreeting, kReturn, kError, kEvent } kind = kEvent;
  uint64_t id = 0;          // kReturn, kError
  std::string return_json;  // kReturn
  std::string error_class, error_text;
  QmpEvent event;
};
// InvalidArgument for anything that is not QMP, or is nested deeper than 64. Pure; fuzzed.
absl::StatusOr<QmpMessage> ParseQmpLine(std::string_view line);

// Thread-safe; one command at a time.
class QmpClient {
 public:
  // Waits for the socket to appear, for QEMU's greeting, and negotiates, all until `deadline`. `alive` is
  // asked while waiting: its error ends the wait.
  static absl::StatusOr<std::unique_ptr<QmpClient>> Connect(const std::string& path,
                                                            std::chrono::steady_clock::time_point deadline,
                                                            const std::function<absl::Status()>& alive);
  static absl::StatusOr<std::unique_ptr<QmpClient>> FromFd(UniqueFd fd,
                                                           std::chrono::steady_clock::time_point deadline);

  // Runs `command` with `arguments` (a JSON object, or empty). Gives the JSON of "return". QEMU's error
  // classes: DeviceNotFound -> NotFound, others -> Internal with QEMU's words. DeadlineExceeded: no answer in
  // time; it is dropped when it comes later. Unavailable when QEMU is gone, and ever after a command that
  // QEMU took only in part.
  absl::StatusOr<std::string> Execute(const std::string& command, const std::string& arguments,
                                      std::chrono::milliseconds timeout);
  // Forgets DEVICE_DELETED of `device` seen so far: ids are used again, and an old event must not answer for
  // a new device. Called before device_del.
  void ForgetDeleted(const std::string& device);
  // Waits for DEVICE_DELETED of `device`; events that came before are remembered. DeadlineExceeded.
  absl::Status WaitDeviceDeleted(const std::string& device, std::chrono::milliseconds timeout);

 private:
  explicit QmpClient(UniqueFd fd) : fd_(std::move(fd)) {}
  absl::StatusOr<QmpMessage> ReadMessage(std::chrono::steady_clock::time_point deadline) REQUIRES(mutex_);
  absl::Status Send(const std::string& line, std::chrono::steady_clock::time_point deadline) REQUIRES(mutex_);

  UniqueFd fd_;
  Mutex mutex_;
  std::string buffer_ GUARDED_BY(mutex_);
  uint64_t next_id_ GUARDED_BY(mutex_) = 1;
  std::deque<QmpEvent> events_ GUARDED_BY(mutex_);
};

}  // namespace lamina::vmm

// laminad's way to a VM's balloon: two calls that the pod's shim answers, at balloon.sock in the pod's
// runtime directory. QEMU's own control socket is the shim's alone.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/ttrpc/server.h"
#include "vmm/balloon.h"

namespace lamina::vmm {

inline std::string BalloonSocket(const std::string& runtime_dir) { return runtime_dir + "/balloon.sock"; }

// The shim's side.
class BalloonDoor {
 public:
  // Serves `balloon`, which must outlive it, from threads of its own until its end; the socket's file stays.
  // ResourceExhausted: no thread can be had.
  static absl::StatusOr<std::unique_ptr<BalloonDoor>> Open(const std::string& runtime_dir, Balloon& balloon);

 private:
  BalloonDoor();
  ttrpc::Server server_;
};

// laminad's side. A call fails with DeadlineExceeded after `timeout`. Unavailable: no shim listens there, or
// none accepts within `timeout`.
absl::StatusOr<std::unique_ptr<Balloon>> ConnectBalloon(const std::string& runtime_dir,
                                                        std::chrono::milliseconds timeout);

}  // namespace lamina::vmm

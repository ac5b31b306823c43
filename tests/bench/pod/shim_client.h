// A second client of a pod's shim, beside containerd: what the shim itself can do, without containerd's
// share.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/ttrpc/client.h"

namespace lamina::bench {

class ShimClient {
 public:
  // `bundle`: the sandbox's, where the shim's address is written.
  static absl::StatusOr<ShimClient> Connect(const std::string& bundle);

  struct Output {
    uint64_t bytes = 0;
    double seconds = 0;  // from the first byte to the last
  };
  // Runs `command` in the container with its output in a FIFO at `fifo` (made, and removed), and reads that
  // to its end.
  absl::StatusOr<Output> ExecAndRead(const std::string& container, const std::vector<std::string>& command,
                                     const std::string& fifo);
  // Runs `command` without output; seconds from the first call to the answer to Wait.
  absl::StatusOr<double> Exec(const std::string& container, const std::vector<std::string>& command);

 private:
  explicit ShimClient(std::unique_ptr<ttrpc::Client> client) : client_(std::move(client)) {}
  absl::StatusOr<std::string> Start(const std::string& container, const std::vector<std::string>& command,
                                    const std::string& fifo);
  absl::Status Finish(const std::string& container, const std::string& exec);

  std::unique_ptr<ttrpc::Client> client_;
  int execs_ = 0;
};

}  // namespace lamina::bench

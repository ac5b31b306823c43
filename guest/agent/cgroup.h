// cgroup v2 of a container: statistics, OOM kills, killing all of it. Thread-safe: nothing but files.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina::agent::v1 {
class ContainerStats;
}

namespace lamina::guest {

class Cgroup {
 public:
  // `path` as seen from the cgroup root: "/lamina/<container id>".
  Cgroup(std::string mount_point, const std::string& path) : directory_(std::move(mount_point) + path) {}

  // A file that the kernel does not have leaves its field at 0. NotFound when the cgroup is gone.
  absl::StatusOr<agent::v1::ContainerStats> Stats() const;
  // The count of processes that the OOM killer ended. NotFound when the cgroup is gone.
  absl::StatusOr<uint64_t> OomKills() const;
  // Every process in it and below it.
  absl::StatusOr<std::vector<uint32_t>> Pids() const;
  // SIGKILL to all of them at once; OK when the cgroup is gone.
  absl::Status KillAll() const;
  absl::Status Freeze(bool frozen) const;

  const std::string& directory() const { return directory_; }

 private:
  std::string directory_;
};

}  // namespace lamina::guest

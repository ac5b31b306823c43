// The device nodes that a privileged container gets: the guest's own, where on a node it would get the
// node's.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace lamina::guest {

struct OwnDevice {
  std::string path;  // "/dev/vda", whatever folder it was found in
  bool block = false;
  uint32_t major = 0, minor = 0, mode = 0, uid = 0, gid = 0;
};

// Of the folder `dev`, sorted by path, at most 1024. Left out is what every container has of its own: pts,
// shm, mqueue, fd, the console; links are not followed, and no other file system is entered.
absl::StatusOr<std::vector<OwnDevice>> OwnDevices(const std::string& dev = "/dev");

}  // namespace lamina::guest

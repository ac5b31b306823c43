// The one way in which QEMU gets a file of the node: we open it, and hand it the descriptor.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/unique_fd.h"
#include "vmm/qmp_client.h"
#include "vmm/scsi.h"
#include "vmm/vm_spec.h"

namespace lamina::vmm {

struct OpenedDisk {
  UniqueFd fd;
  bool block_device = false;
  uint32_t logical_block_bytes = 512, physical_block_bytes = 512;
};

// For what is named by its path alone, Internal where it is not there: laminad said that it is. Else the
// errors of `disk.open`. InvalidArgument for what is neither file nor block device.
absl::StatusOr<OpenedDisk> OpenDisk(const DiskFile& disk);
// An arena; InvalidArgument where the file is shorter than it says. QEMU's user opens it anew, so it becomes
// readable for all (0644); its directory keeps others out.
absl::StatusOr<UniqueFd> OpenArena(const ArenaDevice& arena);

// A file in a running QEMU, under two names there.
struct HandedFile {
  uint64_t set = 0;
  uint64_t number = 0;

  // For block devices, which ask for a duplicate.
  std::string set_path() const { return "/dev/fdset/" + std::to_string(set); }
  // For what calls open(2): memory backends.
  std::string open_path() const { return "/proc/self/fd/" + std::to_string(number); }
};

// `fd` stays ours. Errors as QmpClient::Execute's; Internal for an answer that makes no sense.
absl::StatusOr<HandedFile> HandFile(QmpClient& qmp, int fd);
// What was opened by its names stays open; the descriptor itself goes.
absl::Status TakeFileBack(QmpClient& qmp, const HandedFile& file);

}  // namespace lamina::vmm

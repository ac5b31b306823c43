// Small volumes of the host that the guest keeps in its own memory: ConfigMaps, Secrets, the pod's hosts.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/mutex.h"
#include "guest/protocol/contract.h"

namespace lamina::agent::v1 {
class FileEntry;
class PutFilesRequest;
class ReadFileResponse;
}  // namespace lamina::agent::v1

namespace lamina::guest {

// OK for an entry that can be made in a volume: a path of at most kMaxKeptDepth parts, none of them empty,
// "." or "..", none over 255 bytes, without a NUL; a mode of at most 07777; content and offset as the kind
// has them. InvalidArgument says what is wrong, with the path.
absl::Status CheckFileEntry(const agent::v1::FileEntry& entry);

// Each volume is a tmpfs at <directory>/<volume> (nosuid,nodev) with the volume itself in it as
// kKeptFilesName, and beside it what is to become of it. No link in a volume is ever followed, whatever a
// container that may write there has made of it. Thread-safe; one call at a time.
class KeptFiles {
 public:
  struct Options {
    std::string directory = kVolumesDirectory;  // is made
    bool mount = true;                          // false, in tests: a plain folder
    // From the swap of a folder to the removal of the old one: for who has followed the link to it, and is
    // about to open a file in it.
    std::chrono::milliseconds grace{100};
  };
  explicit KeptFiles(Options options) : options_(std::move(options)) {}

  // As proto/agent.proto says. InvalidArgument: an entry that cannot be; ResourceExhausted: over
  // kMaxKeptBytes, kMaxKeptFiles, kMaxKeptEntries or, with the others, kMaxKeptTotalBytes, or no memory;
  // FailedPrecondition: a request that is not the first without the ones before it, or a folder that was a
  // file.
  absl::Status Put(const agent::v1::PutFilesRequest& request);
  absl::StatusOr<agent::v1::ReadFileResponse> Read(const std::string& volume);
  // Unmounts and removes the volume; one that was not put here: OK. Containers that have it mounted keep it
  // until their end.
  absl::Status Remove(const std::string& volume);
  void RemoveAll();

 private:
  struct Staged {
    uint64_t bytes = 0;
    size_t files = 0, entries = 0;
  };
  std::string PathOf(const std::string& volume) const { return options_.directory + "/" + volume; }
  absl::Status Begin(const std::string& volume) REQUIRES(mutex_);
  static absl::Status Stage(int volume, const agent::v1::FileEntry& entry, Staged& staged);
  absl::Status RoomFor(const std::string& volume, uint64_t bytes) const REQUIRES(mutex_);
  absl::Status PutLocked(const agent::v1::PutFilesRequest& request) REQUIRES(mutex_);
  absl::Status RemoveLocked(const std::string& volume) REQUIRES(mutex_);

  const Options options_;
  Mutex mutex_;
  std::map<std::string, uint64_t> known_ GUARDED_BY(mutex_);  // volume -> bytes of content
  std::map<std::string, Staged> staged_ GUARDED_BY(mutex_);   // begun and not finished
};

}  // namespace lamina::guest

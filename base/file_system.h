// The seam for everything that must survive a crash. Faults are injected here.
#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace lamina {

// Thread-safe. Errors name the path.
class FileSystem {
 public:
  virtual ~FileSystem() = default;

  // Creates or truncates `path` with `mode`, writes all of `data`, fsyncs, closes.
  virtual absl::Status WriteAndSync(const std::string& path, std::string_view data, int mode) = 0;
  // Appends all of `data` to `path` (created with 0600) and fdatasyncs.
  virtual absl::Status AppendAndSync(const std::string& path, std::string_view data) = 0;
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  virtual absl::Status SyncDirectory(const std::string& path) = 0;
  virtual absl::StatusOr<std::string> Read(const std::string& path, size_t limit_bytes) = 0;
  // Not an error when the path does not exist.
  virtual absl::Status Remove(const std::string& path) = 0;
  virtual absl::Status RemoveTree(const std::string& path) = 0;
  // With parents; existing directories keep their mode.
  virtual absl::Status MakeDirectories(const std::string& path, int mode) = 0;
  // Names in the directory without "." and "..", sorted. NotFound when there is none.
  virtual absl::StatusOr<std::vector<std::string>> List(const std::string& path) = 0;
  virtual bool Exists(const std::string& path) = 0;

  static FileSystem& Real();
};

// `path` holds either its old content or all of `data` after a crash at any instant: temp file beside it,
// fsync, rename, fsync of the directory. On error the old content stays and the temp file is removed.
absl::Status WriteFileAtomically(FileSystem& fs, const std::string& path, std::string_view data, int mode);

// Passes everything on to `real` until the `fail_at`-th mutating call (0-based), which returns `error`
// without doing anything; `calls` counts the mutating calls seen. A negative fail_at never fails.
class FaultyFileSystem : public FileSystem {
 public:
  explicit FaultyFileSystem(FileSystem& real) : real_(real) {}
  std::atomic<int> fail_at{-1};
  std::atomic<int> calls{0};
  absl::Status error = absl::ResourceExhaustedError("injected: no space left on device");

  absl::Status WriteAndSync(const std::string& path, std::string_view data, int mode) override;
  absl::Status AppendAndSync(const std::string& path, std::string_view data) override;
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status SyncDirectory(const std::string& path) override;
  absl::StatusOr<std::string> Read(const std::string& path, size_t limit_bytes) override;
  absl::Status Remove(const std::string& path) override;
  absl::Status RemoveTree(const std::string& path) override;
  absl::Status MakeDirectories(const std::string& path, int mode) override;
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override;
  bool Exists(const std::string& path) override;

 private:
  absl::Status Next() { return calls++ == fail_at ? error : absl::OkStatus(); }
  FileSystem& real_;
};

}  // namespace lamina

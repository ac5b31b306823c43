// A machine that dies at one of its writes, and forgets at the loss of power what was not synced.
#pragma once

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/file_system.h"
#include "base/status.h"
#include "tests/testing/temp_dir.h"

namespace lamina::testing {

// The real file system until the mutating call `die_at` (0-based, counted by `calls`): of a write that call
// still does the first `part` of the data, of anything else nothing; from then on every call returns `error`.
// `fail_at` is FaultyFileSystem's. A name that appears, moves or goes is safe once its directory was synced:
// LosePower takes the others back. Not thread-safe.
class DyingFileSystem : public FaultyFileSystem {
 public:
  DyingFileSystem() : FaultyFileSystem(FileSystem::Real()) {}
  int die_at = -1;      // negative: never
  double part = 0;      // from 0 to 1
  std::string died_in;  // "write", "append", "rename", "sync", "remove" or "make"; "": it lives

  // The names as a disk has them after the power went; the machine is up again, and dies no more.
  void LosePower() {
    for (auto change = unsafe_.rbegin(); change != unsafe_.rend(); ++change) change->undo();
    unsafe_.clear();
    Revive();
  }
  // Up again with all that it had; it dies no more.
  void Revive() {
    die_at = -1;
    died_in.clear();
  }

  absl::Status WriteAndSync(const std::string& path, std::string_view data, int mode) override {
    const bool last = DiesNow();
    if (Dead("write") && !last) return error;
    Appears(path);
    if (!last) return FaultyFileSystem::WriteAndSync(path, data, mode);
    FileSystem::Real().WriteAndSync(path, Begun(data), mode).IgnoreError();
    return error;
  }
  absl::Status AppendAndSync(const std::string& path, std::string_view data) override {
    const bool last = DiesNow();
    if (Dead("append") && !last) return error;
    Appears(path);
    if (!last) return FaultyFileSystem::AppendAndSync(path, data);
    FileSystem::Real().AppendAndSync(path, Begun(data)).IgnoreError();
    return error;
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    if (Dead("rename")) return error;
    const std::string grave = Bury(to);
    const absl::Status status = FaultyFileSystem::Rename(from, to);
    if (!status.ok()) {
      Dig(grave, to);
      return status;
    }
    unsafe_.push_back({DirectoryOf(to),
                       [this, from, to, grave] {
                         if (std::filesystem::exists(to)) std::filesystem::rename(to, from);
                         Dig(grave, to);
                       },
                       ""});
    return status;
  }
  absl::Status SyncDirectory(const std::string& path) override {
    if (Dead("sync")) return error;
    RETURN_IF_ERROR(FaultyFileSystem::SyncDirectory(path));
    std::vector<Change> left;
    for (Change& change : unsafe_) {
      if (change.directory != path) {
        left.push_back(std::move(change));
      } else if (!change.gone.empty()) {
        // With a directory goes, for good, what was not yet safe in it.
        const std::string below = change.gone + "/";
        std::erase_if(left,
                      [&](const Change& inner) { return (inner.directory + "/").rfind(below, 0) == 0; });
      }
    }
    unsafe_ = std::move(left);
    return absl::OkStatus();
  }
  absl::Status Remove(const std::string& path) override {
    if (Dead("remove")) return error;
    return Gone(path, [&] { return FaultyFileSystem::Remove(path); });
  }
  absl::Status RemoveTree(const std::string& path) override {
    if (Dead("remove")) return error;
    return Gone(path, [&] { return FaultyFileSystem::RemoveTree(path); });
  }
  absl::Status MakeDirectories(const std::string& path, int mode) override {
    if (Dead("make")) return error;
    std::vector<std::string> missing;
    for (std::string at = path; !at.empty() && !std::filesystem::exists(at); at = DirectoryOf(at))
      missing.push_back(at);
    std::reverse(missing.begin(), missing.end());
    for (const std::string& directory : missing) Appears(directory);
    return FaultyFileSystem::MakeDirectories(path, mode);
  }
  absl::StatusOr<std::string> Read(const std::string& path, size_t limit_bytes) override {
    if (!died_in.empty()) return error;
    return FaultyFileSystem::Read(path, limit_bytes);
  }
  absl::StatusOr<std::vector<std::string>> List(const std::string& path) override {
    if (!died_in.empty()) return error;
    return FaultyFileSystem::List(path);
  }

 private:
  struct Change {
    std::string directory;  // whose sync makes it safe
    std::function<void()> undo;
    std::string gone;  // what is not there any more
  };
  static std::string DirectoryOf(const std::string& path) { return path.substr(0, path.rfind('/')); }
  bool DiesNow() const { return died_in.empty() && die_at >= 0 && calls >= die_at; }
  bool Dead(const char* step) {
    if (DiesNow()) died_in = step;
    return !died_in.empty();
  }
  std::string_view Begun(std::string_view data) const {
    return data.substr(0, static_cast<size_t>(static_cast<double>(data.size()) * part));
  }
  void Appears(const std::string& path) {
    if (std::filesystem::exists(path)) return;
    unsafe_.push_back({DirectoryOf(path), [path] { std::filesystem::remove_all(path); }, ""});
  }
  // A copy of what stands at `path`, kept aside; "" for nothing.
  std::string Bury(const std::string& path) {
    if (!std::filesystem::exists(path)) return "";
    if (!graves_) graves_ = std::make_unique<TempDir>();
    std::string grave = *graves_ / std::to_string(buried_++);
    std::filesystem::copy(path, grave, std::filesystem::copy_options::recursive);
    return grave;
  }
  static void Dig(const std::string& grave, const std::string& path) {
    if (grave.empty()) return;
    std::filesystem::remove_all(path);
    std::filesystem::copy(grave, path, std::filesystem::copy_options::recursive);
  }
  template <typename Remover>
  absl::Status Gone(const std::string& path, Remover remove) {
    const std::string grave = Bury(path);
    RETURN_IF_ERROR(remove());
    if (!grave.empty()) unsafe_.push_back({DirectoryOf(path), [grave, path] { Dig(grave, path); }, path});
    return absl::OkStatus();
  }

  std::unique_ptr<TempDir> graves_;
  int buried_ = 0;
  std::vector<Change> unsafe_;  // in the order in which they were made
};

}  // namespace lamina::testing

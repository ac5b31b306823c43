#include "layers/disk_room.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "base/status.h"
#include "base/units.h"

namespace lamina::layers {

absl::StatusOr<DiskFigures> MeasureDisk(const std::string& dir) {
  struct statvfs system {};
  if (statvfs(dir.c_str(), &system) != 0) return ErrnoStatus(errno, "measure " + dir);
  DiskFigures figures;
  figures.free_bytes = uint64_t{system.f_bavail} * system.f_frsize;
  figures.total_bytes = uint64_t{system.f_blocks} * system.f_frsize;
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(opendir(dir.c_str()), closedir);
  if (entries == nullptr) return ErrnoStatus(errno, "list " + dir);
  while (const dirent* entry = readdir(entries.get())) {
    struct stat info {};
    if (fstatat(dirfd(entries.get()), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) == 0 &&
        S_ISREG(info.st_mode))
      figures.used_bytes += static_cast<uint64_t>(info.st_blocks) * 512;
  }
  return figures;
}

absl::StatusOr<DiskRoom::Left> DiskRoom::LeftLocked() const {
  ASSIGN_OR_RETURN(const DiskFigures figures, measure_());
  const auto less = [](uint64_t all, uint64_t part) { return all - std::min(all, part); };
  const uint64_t reserve = limits_.reserve_bytes != 0
                               ? limits_.reserve_bytes
                               : std::min(figures.total_bytes / kReserveShare, kMostReserve);
  Left left{less(less(figures.free_bytes, reserve), taken_),
            fmt::format("{} are free at {}, layers.disk_reserve keeps {}", FormatBytes(figures.free_bytes),
                        dir_, FormatBytes(reserve))};
  if (limits_.budget_bytes != 0) {
    const uint64_t budget = less(less(limits_.budget_bytes, figures.used_bytes), taken_);
    if (budget < left.bytes) {
      left = {budget, fmt::format("{} holds {} of layers.disk_budget = {}", dir_,
                                  FormatBytes(figures.used_bytes), FormatBytes(limits_.budget_bytes))};
    }
  }
  if (taken_ != 0) left.why += fmt::format(", {} are being written", FormatBytes(taken_));
  return left;
}

absl::StatusOr<DiskRoom::Share> DiskRoom::Take(uint64_t bytes) {
  MutexLock lock(mutex_);
  ASSIGN_OR_RETURN(const Left left, LeftLocked());
  if (left.bytes < bytes) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "No space left for {} of layers: {}",
                      FormatBytes(bytes), left.why);
  }
  taken_ += bytes;
  return Share(*this, bytes);
}

absl::StatusOr<DiskRoom::Share> DiskRoom::TakeHalf(uint64_t most, uint64_t least) {
  MutexLock lock(mutex_);
  ASSIGN_OR_RETURN(const Left left, LeftLocked());
  const uint64_t bytes = std::min(most, left.bytes / 2);
  if (bytes < least) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "No space left for another layer: {}", left.why);
  }
  taken_ += bytes;
  return Share(*this, bytes);
}

absl::StatusOr<DiskRoom::Share> DiskRoom::TakeAll(uint64_t most) {
  MutexLock lock(mutex_);
  ASSIGN_OR_RETURN(const Left left, LeftLocked());
  if (taken_ != 0) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "No space left for another layer: {}", left.why);
  }
  const uint64_t bytes = std::min(most, left.bytes);
  taken_ += bytes;
  return Share(*this, bytes);
}

void DiskRoom::GiveBack(uint64_t bytes) {
  MutexLock lock(mutex_);
  taken_ -= bytes;
}

}  // namespace lamina::layers

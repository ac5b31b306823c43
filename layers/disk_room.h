// How much more of the disk the layer store may take: never more than its budget in all, never the last of
// its file system.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "base/mutex.h"

namespace lamina::layers {

struct DiskLimits {
  uint64_t budget_bytes = 0;   // of all that the store holds; 0: what the reserve leaves
  uint64_t reserve_bytes = 0;  // of the file system, free for all others; 0: kReserveShare of it
};

inline constexpr uint64_t kReserveShare = 20;         // a twentieth,
inline constexpr uint64_t kMostReserve = 4ULL << 30;  // at most

struct DiskFigures {
  uint64_t used_bytes = 0;  // blocks of the store's files
  uint64_t free_bytes = 0;  // of its file system
  uint64_t total_bytes = 0;
};

// Of the store whose files lie in `dir`. Files that go meanwhile count for nothing.
absl::StatusOr<DiskFigures> MeasureDisk(const std::string& dir);

// What is there is measured; only what is being written now is remembered. Thread-safe.
class DiskRoom {
 public:
  using Measure = std::function<absl::StatusOr<DiskFigures>()>;

  // Room that somebody has until the end of this object, when its file counts by itself.
  class Share {
   public:
    Share(DiskRoom& room, uint64_t bytes) : room_(&room), bytes_(bytes) {}
    Share(Share&& other) noexcept : room_(other.room_), bytes_(std::exchange(other.bytes_, 0)) {}
    Share& operator=(Share&&) = delete;
    ~Share() {
      if (bytes_ != 0) room_->GiveBack(bytes_);
    }
    uint64_t bytes() const { return bytes_; }

   private:
    DiskRoom* room_;
    uint64_t bytes_;
  };

  // `dir` stands in messages.
  DiskRoom(std::string dir, const DiskLimits& limits, Measure measure)
      : dir_(std::move(dir)), limits_(limits), measure_(std::move(measure)) {}

  // ResourceExhausted, with the figures: there is no such room.
  absl::StatusOr<Share> Take(uint64_t bytes);
  // For a file whose size nobody knows yet: `most`, but no more than half of what is left, so that whoever
  // comes next finds room too. ResourceExhausted: that is less than `least`.
  absl::StatusOr<Share> TakeHalf(uint64_t most, uint64_t least);
  // All that is left, at most `most`, for a file that half of it was too little for. ResourceExhausted:
  // others are writing.
  absl::StatusOr<Share> TakeAll(uint64_t most);

 private:
  void GiveBack(uint64_t bytes);
  // What is left, and in words why it is no more.
  struct Left {
    uint64_t bytes = 0;
    std::string why;
  };
  absl::StatusOr<Left> LeftLocked() const REQUIRES(mutex_);

  const std::string dir_;
  const DiskLimits limits_;
  const Measure measure_;
  mutable Mutex mutex_;
  uint64_t taken_ GUARDED_BY(mutex_) = 0;
};

}  // namespace lamina::layers

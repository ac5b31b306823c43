// What laminad must remember of the claims, on disk: an append-only journal, one append for all that changes
// at the same time. docs/laminad.md has the format.
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "base/file_system.h"
#include "base/mutex.h"
#include "proto/claims_journal.pb.h"

namespace lamina::node {

using ClaimRecords = std::map<std::string, laminad::v1::ClaimRecord>;  // by sandbox id

// Thread-safe.
class ClaimsJournal {
 public:
  // The changes that one append makes durable. Those who wait for it sleep on `word`, without a lock to queue
  // up for when all are woken at once.
  struct Batch {
    std::atomic<uint32_t> word{0};  // kDone; otherwise it moves when one who waits is to write it
    absl::Status status;            // once done
  };
  using Ticket = std::shared_ptr<Batch>;

  // Reads `path` (none: no claims) into `records`, and writes it anew. A last frame that a crash cut short is
  // dropped: nobody was told that it is durable. DataLoss: damaged elsewhere; FailedPrecondition: of a newer
  // version. The file is untouched then. It is written anew when it is larger than `rewrite_at` bytes and
  // four times what it says. That it cannot be written (the disk is full) is no error here: state() says so.
  static absl::StatusOr<std::unique_ptr<ClaimsJournal>> Open(FileSystem& fs, std::string path,
                                                             ClaimRecords& records,
                                                             size_t rewrite_at = 16 << 20);

  // Puts the record among the changes that are written next. Those of one sandbox become durable in the order
  // of these calls; whoever owns the records makes them under its lock.
  Ticket Add(const laminad::v1::ClaimRecord& record);
  // Returns when the change is durable, or could not be made so: then the owner takes it back, and the next
  // write replaces the whole file.
  absl::Status Wait(const Ticket& ticket);
  // Replaces the file if a write has failed since it was last whole.
  absl::Status Repair();
  // OK, or why the last write failed: then nothing is durable until Repair or a later write succeeds.
  absl::Status state() const;

 private:
  ClaimsJournal(FileSystem& fs, std::string path, size_t rewrite_at)
      : fs_(fs), path_(std::move(path)), rewrite_at_least_(rewrite_at) {}
  struct Change {
    std::string id, record;  // as in a ClaimBatch
    bool removed = false;
  };
  void WrittenLocked(const absl::Status& status) REQUIRES(mutex_);
  absl::Status Write(std::vector<Change> changes);
  absl::Status Rewrite();

  FileSystem& fs_;
  const std::string path_;
  const size_t rewrite_at_least_;
  mutable Mutex mutex_;
  CondVar written_;  // for Repair
  absl::Status state_ GUARDED_BY(mutex_);
  bool writing_ GUARDED_BY(mutex_) = false;
  std::vector<Change> pending_ GUARDED_BY(mutex_);
  Ticket next_ GUARDED_BY(mutex_) = std::make_shared<Batch>();
  // The writer's alone (writing_).
  std::map<std::string, std::string> live_;  // what the file says: id -> record, as in a ClaimBatch
  size_t size_ = 0, rewrite_at_ = 0;
  bool whole_ = true;
};

// The file's content for these records: frames (base/framing.h) of the kind "claims", and back. Pure.
std::string EncodeJournal(const ClaimRecords& records);
absl::StatusOr<ClaimRecords> DecodeJournal(std::string_view content, const std::string& what);

}  // namespace lamina::node

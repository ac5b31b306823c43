// What laminad must remember of the claims, on disk: an append-only journal, one append for all that changes
// at the same time. docs/laminad.md has the format.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "base/file_system.h"
#include "base/mutex.h"
#include "proto/claims_journal.pb.h"

namespace lamina::node {

using ClaimRecords = std::map<std::string, laminad::v1::ClaimRecord>;  // by sandbox id

// Thread-safe.
class ClaimsJournal {
 public:
  struct Batch {
    bool done = false;
    absl::Status status;
    CondVar changed;  // it is done, or one of those who wait for it is to write it
  };
  using Ticket = std::shared_ptr<Batch>;

  // Reads `path` (none: no claims) into `records`, and writes it anew. A last frame that a crash cut short is
  // dropped: nobody was told that it is durable. DataLoss: damaged elsewhere; FailedPrecondition: of a newer
  // version. The file is untouched then.
  static absl::StatusOr<std::unique_ptr<ClaimsJournal>> Open(FileSystem& fs, std::string path,
                                                             ClaimRecords& records);

  // Puts the record among the changes that are written next. Those of one sandbox become durable in the order
  // of these calls; whoever owns the records makes them under its lock.
  Ticket Add(const laminad::v1::ClaimRecord& record);
  // Returns when the change is durable, or could not be made so: then the owner takes it back, and the next
  // write replaces the whole file.
  absl::Status Wait(const Ticket& ticket);
  // Replaces the file if a write has failed since it was last whole.
  absl::Status Repair();

 private:
  ClaimsJournal(FileSystem& fs, std::string path) : fs_(fs), path_(std::move(path)) {}
  void WrittenLocked() REQUIRES(mutex_);
  absl::Status Write(const std::string& payload);
  absl::Status Rewrite();

  FileSystem& fs_;
  const std::string path_;
  Mutex mutex_;
  CondVar written_;  // for Repair
  bool writing_ GUARDED_BY(mutex_) = false;
  std::string pending_ GUARDED_BY(mutex_);  // a ClaimBatch
  Ticket next_ GUARDED_BY(mutex_) = std::make_shared<Batch>();
  // The writer's alone (writing_).
  std::map<std::string, std::string> live_;  // what the file says: id -> record
  size_t size_ = 0, rewrite_at_ = 0;
  bool whole_ = true;
};

// The file's text for these records, and back. Pure.
std::string EncodeJournal(const ClaimRecords& records);
std::string EncodeFrame(const std::string& payload);
absl::StatusOr<ClaimRecords> DecodeJournal(const std::string& content, const std::string& what);

}  // namespace lamina::node

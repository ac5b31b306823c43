#include "node/claims_journal.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "base/crc32.h"
#include "base/framing.h"
#include "base/log.h"
#include "base/status.h"
#include "base/units.h"

namespace lamina::node {
namespace {

using laminad::v1::ClaimBatch;
using laminad::v1::ClaimRecord;

constexpr FrameKind kKind{"claims", 2, 2};
constexpr uint32_t kDone = UINT32_MAX;
constexpr char kSave[] = "save the claims";
constexpr size_t kReadLimit = 256 * kMiB;

// Version 1 began with this line; its frames were the bytes LCfr, the payload's length, its CRC-32, the
// CRC-32 of these twelve bytes (32 bits each, little endian), and the payload.
constexpr std::string_view kOldHeader = "lamina-claims 1\n", kOldMagic = "LCfr";
constexpr size_t kOldFrameHeader = 16;

uint32_t Little(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= uint32_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  return value;
}

absl::StatusOr<Frame> NextOldFrame(std::string_view content, const FramedFile& file) {
  const std::string_view header = content.substr(0, kOldFrameHeader);
  if (header.size() == kOldFrameHeader && header.starts_with(kOldMagic) &&
      Crc32(header.substr(0, 12)) == Little(header.substr(12))) {
    const std::string_view payload = content.substr(kOldFrameHeader, Little(header.substr(4)));
    if (payload.size() == Little(header.substr(4)) && Crc32(payload) == Little(header.substr(8)))
      return Frame{1, payload, kOldFrameHeader + payload.size()};
  }
  return DamagedFile(file, "a frame is not whole");
}

std::optional<size_t> FindOldFrame(std::string_view content, size_t from) {
  for (size_t at = content.find(kOldMagic, from); at != std::string_view::npos;
       at = content.find(kOldMagic, at + 1)) {
    if (NextOldFrame(content.substr(at), {}).ok()) return at;
  }
  return std::nullopt;
}

// The field of a ClaimBatch that holds the record: fields put one after another are one batch.
std::string OneRecord(const ClaimRecord& record) {
  std::string one = "\x0A";  // field 1, of a length
  for (size_t left = record.ByteSizeLong();; left >>= 7) {
    one.push_back(static_cast<char>((left & 0x7F) | (left > 0x7F ? 0x80 : 0)));
    if (left <= 0x7F) break;
  }
  record.AppendToString(&one);
  return one;
}

}  // namespace

std::string EncodeJournal(const ClaimRecords& records) {
  std::string payload;
  for (const auto& [id, record] : records) payload += OneRecord(record);
  return EncodeFrame(kKind, payload);
}

absl::StatusOr<ClaimRecords> DecodeJournal(std::string_view content, const std::string& what) {
  const FramedFile file{what, "move it away when no Lamina pod runs on this node"};
  const bool old = content.starts_with(kOldHeader);
  ClaimRecords records;
  for (size_t at = old ? kOldHeader.size() : 0; at < content.size() || at == 0;) {
    const std::string_view rest = content.substr(at);
    const absl::StatusOr<Frame> frame = old ? NextOldFrame(rest, file) : NextFrame(kKind, rest, file);
    if (!frame.ok()) {
      // The first came with the file, as a whole. Each other was durable before the next was begun: only the
      // last can be cut short.
      if (at == 0 || absl::IsFailedPrecondition(frame.status())) return frame.status();
      const std::optional<size_t> next =
          old ? FindOldFrame(content, at + 1) : FindFrame(kKind, content, at + 1);
      if (!next) break;
      return DamagedFile(
          file, fmt::format("the frame at byte {} is not whole, and one follows it at byte {}", at, *next));
    }
    ClaimBatch batch;
    if (!batch.ParseFromArray(frame->payload.data(), static_cast<int>(frame->payload.size())))
      return DamagedFile(file, fmt::format("the frame at byte {} does not parse", at));
    for (const ClaimRecord& record : batch.records()) {
      if (record.removed()) {
        records.erase(record.claim().sandbox_id());
      } else {
        records[record.claim().sandbox_id()] = record;
      }
    }
    at += frame->size;
  }
  return records;
}

absl::StatusOr<std::unique_ptr<ClaimsJournal>> ClaimsJournal::Open(FileSystem& fs, std::string path,
                                                                   ClaimRecords& records, size_t rewrite_at) {
  std::unique_ptr<ClaimsJournal> journal(new ClaimsJournal(fs, std::move(path), rewrite_at));
  records.clear();
  if (fs.Exists(journal->path_)) {
    ASSIGN_OR_RETURN(const std::string content, fs.Read(journal->path_, kReadLimit));
    ASSIGN_OR_RETURN(records, DecodeJournal(content, journal->path_));
  }
  for (const auto& [id, record] : records) journal->live_[id] = OneRecord(record);
  const absl::Status written = Annotate(journal->Rewrite(), kSave);
  if (!written.ok()) LogWarning("{}; nothing is granted until that succeeds", Message(written));
  MutexLock lock(journal->mutex_);
  journal->state_ = written;
  return journal;
}

ClaimsJournal::Ticket ClaimsJournal::Add(const ClaimRecord& record) {
  Change change{record.claim().sandbox_id(), OneRecord(record), record.removed()};
  MutexLock lock(mutex_);
  pending_.push_back(std::move(change));
  return next_;
}

absl::Status ClaimsJournal::Wait(const Ticket& ticket) {
  for (;;) {
    const uint32_t seen = ticket->word.load();
    if (seen == kDone) return ticket->status;
    mutex_.Lock();
    if (writing_) {
      // Its end moves the word: what is seen moving before the wait begins is not slept over.
      mutex_.Unlock();
      ticket->word.wait(seen);
      continue;
    }
    if (ticket->word.load() == kDone) {
      mutex_.Unlock();
      continue;
    }
    // All that is pending now, this caller's change among it, is written in one go.
    writing_ = true;
    const Ticket mine = std::exchange(next_, std::make_shared<Batch>());
    std::vector<Change> changes = std::exchange(pending_, {});
    mutex_.Unlock();
    mine->status = Annotate(Write(std::move(changes)), kSave);
    mutex_.Lock();
    WrittenLocked(mine->status);
    mutex_.Unlock();
    mine->word = kDone;
    mine->word.notify_all();
  }
}

absl::Status ClaimsJournal::Repair() {
  MutexLock lock(mutex_);
  while (writing_) written_.Wait(mutex_);
  if (whole_) return absl::OkStatus();
  writing_ = true;
  mutex_.Unlock();
  const absl::Status status = Annotate(Rewrite(), kSave);
  mutex_.Lock();
  WrittenLocked(status);
  return status;
}

absl::Status ClaimsJournal::state() const {
  MutexLock lock(mutex_);
  return state_;
}

void ClaimsJournal::WrittenLocked(const absl::Status& status) {
  writing_ = false;
  state_ = status;
  written_.NotifyAll();
  // Of all who wait for the next batch one is woken: it writes for them.
  ++next_->word;
  next_->word.notify_one();
}

absl::Status ClaimsJournal::Write(std::vector<Change> changes) {
  std::string payload;
  std::vector<std::pair<std::string, std::string>> before;  // id -> record, "" for none
  for (Change& change : changes) {
    payload += change.record;
    const auto it = live_.find(change.id);
    before.emplace_back(change.id, it == live_.end() ? "" : std::move(it->second));
    if (!change.removed) {
      live_[change.id] = std::move(change.record);
    } else if (it != live_.end()) {
      live_.erase(it);
    }
  }
  absl::Status status;
  if (!whole_ || size_ > rewrite_at_) {
    status = Rewrite();
  } else {
    const std::string frame = EncodeFrame(kKind, payload);
    status = fs_.AppendAndSync(path_, frame);
    size_ += frame.size();
  }
  if (status.ok()) return status;
  whole_ = false;
  for (auto undo = before.rbegin(); undo != before.rend(); ++undo) {
    if (undo->second.empty()) {
      live_.erase(undo->first);
    } else {
      live_[undo->first] = std::move(undo->second);
    }
  }
  return status;
}

absl::Status ClaimsJournal::Rewrite() {
  std::string payload;
  for (const auto& [id, record] : live_) payload += record;
  const std::string content = EncodeFrame(kKind, payload);
  whole_ = false;
  RETURN_IF_ERROR(fs_.MakeDirectories(path_.substr(0, path_.rfind('/')), 0700));
  RETURN_IF_ERROR(WriteFileAtomically(fs_, path_, content, 0600));
  whole_ = true;
  size_ = content.size();
  rewrite_at_ = std::max(rewrite_at_least_, 4 * size_);
  return absl::OkStatus();
}

}  // namespace lamina::node

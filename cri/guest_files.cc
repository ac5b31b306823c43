#include "cri/guest_files.h"

#include <fcntl.h>
#include <malloc.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <string_view>
#include <utility>

#include "base/status.h"
#include "base/unique_fd.h"
#include "guest/protocol/contract.h"
#include "proto/agent.pb.h"

namespace lamina::cri {
namespace {

constexpr std::chrono::seconds kTimeout{10};     // for one request
constexpr std::chrono::seconds kReadTimeout{2};  // who waits for a container's end waits for it
constexpr size_t kRequestBytes = 256 * 1024, kEntryBytes = 64;

agent::v1::FileEntry::Kind KindOf(FileEntry::Kind kind) {
  switch (kind) {
    case FileEntry::Kind::kFolder:
      return agent::v1::FileEntry::FOLDER;
    case FileEntry::Kind::kFile:
      return agent::v1::FileEntry::FILE;
    case FileEntry::Kind::kLink:
      break;
  }
  return agent::v1::FileEntry::LINK;
}

// Cuts a tree into requests.
class Sender {
 public:
  Sender(ttrpc::Caller& agent, const std::string& volume) : agent_(agent), volume_(volume) { Begin(true); }

  absl::Status Add(const FileEntry& entry) {
    uint64_t offset = 0;
    do {
      if (bytes_ >= kRequestBytes) RETURN_IF_ERROR(Send(false));
      agent::v1::FileEntry& piece = *request_.add_entries();
      piece.set_path(entry.path);
      piece.set_kind(KindOf(entry.kind));
      piece.set_uid(entry.uid);
      piece.set_gid(entry.gid);
      piece.set_mode(entry.mode);
      piece.set_modified_unix_nanos(entry.modified_unix_nanos);
      const std::string_view rest = std::string_view(entry.content).substr(offset);
      // Only a file can be cut.
      const size_t size =
          entry.kind == FileEntry::Kind::kFile ? std::min(rest.size(), kRequestBytes - bytes_) : rest.size();
      piece.set_content(rest.data(), size);
      piece.set_offset(offset);
      offset += size;
      bytes_ += size + entry.path.size() + kEntryBytes;
    } while (offset < entry.content.size());
    return absl::OkStatus();
  }

  absl::Status Send(bool last) {
    request_.set_last(last);
    RETURN_IF_ERROR(ttrpc::Call(agent_, guest::kPutFiles, request_, kTimeout).status());
    Begin(false);
    return absl::OkStatus();
  }

 private:
  void Begin(bool first) {
    agent::v1::PutFilesRequest().Swap(&request_);  // Clear would keep the memory
    request_.set_volume(volume_);
    request_.set_first(first);
    bytes_ = 0;
  }

  ttrpc::Caller& agent_;
  const std::string& volume_;
  agent::v1::PutFilesRequest request_;
  size_t bytes_ = 0;
};

absl::Status PutOnce(ttrpc::Caller& agent, const std::string& volume, const FileTree& tree) {
  Sender sender(agent, volume);
  for (const FileEntry& entry : tree.entries) RETURN_IF_ERROR(sender.Add(entry));
  return sender.Send(true);
}

}  // namespace

std::string KeptFilesPath(const std::string& volume) {
  return fmt::format("{}/{}/{}", guest::kVolumesDirectory, volume, guest::kKeptFilesName);
}

absl::Status PutFiles(ttrpc::Caller& agent, const std::string& volume, const FileTree& tree) {
  absl::Status status = PutOnce(agent, volume, tree);
  // A connection that was lost is another one now, which heard nothing of the requests before.
  if (absl::IsUnavailable(status) && agent.connected()) status = PutOnce(agent, volume, tree);
  return Annotate(status, "files of volume " + volume);
}

absl::Status PushFiles(ttrpc::Caller& agent, const std::string& volume, const std::string& source) {
  uint64_t bytes = 0;
  absl::Status status;
  {
    ASSIGN_OR_RETURN(const FileTree tree, ReadFileTree(source));
    bytes = tree.bytes;
    status = PutFiles(agent, volume, tree);
  }
  // A shim is small for most of its life, and is to be so again.
  if (bytes > kRequestBytes) malloc_trim(0);
  return status;
}

absl::Status BringFile(ttrpc::Caller& agent, const std::string& volume, const std::string& path) {
  agent::v1::ReadFileRequest request;
  request.set_volume(volume);
  ASSIGN_OR_RETURN(const agent::v1::ReadFileResponse answer,
                   ttrpc::Call(agent, guest::kReadFile, request, kReadTimeout));
  std::string_view content = answer.content();
  if (content.size() > guest::kMaxReadFileBytes)
    content.remove_prefix(content.size() - guest::kMaxReadFileBytes);
  const UniqueFd file(open(path.c_str(), O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!file) return ErrnoStatus(errno, "open " + path);
  struct stat info {};
  if (fstat(file.get(), &info) != 0) return ErrnoStatus(errno, "stat " + path);
  if (!S_ISREG(info.st_mode))
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "{} is not a file", path);
  if (ftruncate(file.get(), 0) != 0) return ErrnoStatus(errno, "truncate " + path);
  while (!content.empty()) {
    const ssize_t n = write(file.get(), content.data(), content.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "write " + path);
    content.remove_prefix(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

}  // namespace lamina::cri

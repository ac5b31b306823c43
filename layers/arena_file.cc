#include "layers/arena_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/positioned_io.h"
#include "base/status.h"
#include "layers/digest.h"

namespace lamina::layers {
namespace {

absl::Status CopyBytes(const CopySource& from, const CopySource& to, uint64_t bytes,
                       const Patience& patience) {
  std::vector<char> buffer(1 << 20);
  for (uint64_t done = 0; done < bytes;) {
    RETURN_IF_ERROR(patience.Check("copy " + from.path));
    const uint64_t part = std::min<uint64_t>(buffer.size(), bytes - done);
    RETURN_IF_ERROR(ReadAt(from.fd, from.path, from.offset + done, buffer.data(), part));
    RETURN_IF_ERROR(WriteAt(to.fd, to.path, to.offset + done, buffer.data(), part));
    done += part;
  }
  RETURN_IF_ERROR(patience.Check("sync " + to.path));
  if (fsync(to.fd) != 0) return ErrnoStatus(errno, "fsync " + to.path);
  return absl::OkStatus();
}

class RealArenaFiles : public ArenaFiles {
 public:
  absl::Status Create(const std::string& path, uint64_t bytes) override {
    UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!fd) return ErrnoStatus(errno, "create arena " + path);
    if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) {
      const absl::Status status = ErrnoStatus(errno, "size arena " + path);
      unlink(path.c_str());
      return status;
    }
    return absl::OkStatus();
  }

  absl::Status CopyIn(const CopySource& from, const ArenaRange& to, const std::string& digest,
                      const Patience& patience) override {
    UniqueFd arena(open(to.path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!arena) return ErrnoStatus(errno, "open arena " + to.path);
    RETURN_IF_ERROR(CopyBytes(from, {arena.get(), to.path, to.offset}, to.bytes, patience));
    ASSIGN_OR_RETURN(const std::string found, DigestOf(to.path, to.offset, to.bytes, patience));
    if (found == digest) return absl::OkStatus();
    return MakeStatus(absl::StatusCode::kDataLoss, "arena {} at {}: read back {}, wrote {}", to.path,
                      to.offset, found, digest);
  }

  absl::Status CopyOut(const ArenaRange& from, const std::string& to, const Patience& patience) override {
    ASSIGN_OR_RETURN(const UniqueFd arena, OpenToRead(from.path));
    UniqueFd out(open(to.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!out) return ErrnoStatus(errno, "create " + to);
    const absl::Status status =
        CopyBytes({arena.get(), from.path, from.offset}, {out.get(), to, 0}, from.bytes, patience);
    if (!status.ok()) unlink(to.c_str());
    return status;
  }

  absl::Status Punch(const ArenaRange& range) override {
    UniqueFd fd(open(range.path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!fd) return ErrnoStatus(errno, "open arena " + range.path);
    if (fallocate(fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(range.offset),
                  static_cast<off_t>(range.bytes)) != 0) {
      return ErrnoStatus(errno, "punch arena " + range.path);
    }
    return absl::OkStatus();
  }
};

}  // namespace

ArenaFiles& ArenaFiles::Real() {
  static RealArenaFiles files;
  return files;
}

absl::StatusOr<UniqueFd> OpenToRead(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open " + path);
  return fd;
}

}  // namespace lamina::layers

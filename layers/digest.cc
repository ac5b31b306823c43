#include "layers/digest.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/positioned_io.h"
#include "base/sha256.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace lamina::layers {

absl::StatusOr<std::string> DigestOf(const std::string& path, uint64_t offset, uint64_t bytes,
                                     const Patience& patience) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open " + path);
  Sha256Hasher hasher;
  std::vector<char> buffer(1 << 20);
  for (uint64_t done = 0; done < bytes;) {
    RETURN_IF_ERROR(patience.Check("read " + path));
    const uint64_t part = std::min<uint64_t>(buffer.size(), bytes - done);
    RETURN_IF_ERROR(ReadAt(fd.get(), path, offset + done, buffer.data(), part));
    hasher.Update(buffer.data(), part);
    done += part;
  }
  return Hex(hasher.Finish());
}

}  // namespace lamina::layers

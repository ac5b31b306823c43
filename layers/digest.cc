#include "layers/digest.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/positioned_io.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace lamina::layers {

absl::StatusOr<Sha256Hasher> Sha256Hasher::Create() {
  Context context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  if (context == nullptr || EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1) {
    return absl::InternalError("sha256 is not available");
  }
  return Sha256Hasher(std::move(context));
}

void Sha256Hasher::Update(const void* data, size_t bytes) { EVP_DigestUpdate(context_.get(), data, bytes); }

Sha256Bytes Sha256Hasher::Finish() {
  Sha256Bytes digest{};
  EVP_DigestFinal_ex(context_.get(), digest.data(), nullptr);
  EVP_DigestInit_ex(context_.get(), nullptr, nullptr);
  return digest;
}

std::string Hex(const Sha256Bytes& digest) {
  std::string hex;
  for (const unsigned char byte : digest) hex += fmt::format("{:02x}", byte);
  return hex;
}

absl::StatusOr<std::string> Sha256(std::string_view data) {
  ASSIGN_OR_RETURN(Sha256Hasher hasher, Sha256Hasher::Create());
  hasher.Update(data.data(), data.size());
  return Hex(hasher.Finish());
}

absl::StatusOr<std::string> DigestOf(const std::string& path, uint64_t offset, uint64_t bytes,
                                     const Patience& patience) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open " + path);
  ASSIGN_OR_RETURN(Sha256Hasher hasher, Sha256Hasher::Create());
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

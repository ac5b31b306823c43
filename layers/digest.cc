#include "layers/digest.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace lamina::layers {
namespace {

using Context = std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)>;

absl::StatusOr<Context> Begin() {
  Context context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  if (context == nullptr || EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1) {
    return absl::InternalError("sha256 is not available");
  }
  return context;
}

std::string End(Context& context) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  EVP_DigestFinal_ex(context.get(), digest, &length);
  std::string hex;
  for (unsigned i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

}  // namespace

absl::StatusOr<std::string> Sha256(std::string_view data) {
  ASSIGN_OR_RETURN(Context context, Begin());
  EVP_DigestUpdate(context.get(), data.data(), data.size());
  return End(context);
}

absl::StatusOr<std::string> DigestOf(const std::string& path, uint64_t offset, uint64_t bytes) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open " + path);
  ASSIGN_OR_RETURN(Context context, Begin());
  std::vector<char> buffer(1 << 20);
  while (bytes > 0) {
    const ssize_t n =
        pread(fd.get(), buffer.data(), std::min<uint64_t>(buffer.size(), bytes), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "read " + path);
    if (n == 0) return MakeStatus(absl::StatusCode::kDataLoss, "{}: ends {} bytes too early", path, bytes);
    EVP_DigestUpdate(context.get(), buffer.data(), static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
    bytes -= static_cast<uint64_t>(n);
  }
  return End(context);
}

}  // namespace lamina::layers

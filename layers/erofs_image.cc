#include "layers/erofs_image.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <vector>

#include "base/status.h"
#include "base/subprocess.h"
#include "base/unique_fd.h"

namespace lamina::layers {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint32_t kErofsMagic = 0xE0F5E1E2;
constexpr off_t kSuperblockOffset = 1024;
// One UUID for all: the digest is what names an image.
constexpr char kUuid[] = "00000000-0000-4000-8000-6c616d696e61";

absl::StatusOr<uint64_t> SizeOf(int fd, const std::string& path) {
  struct stat info {};
  if (fstat(fd, &info) != 0) return ErrnoStatus(errno, "stat " + path);
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{}: not a regular file", path);
  return static_cast<uint64_t>(info.st_size);
}

}  // namespace

absl::StatusOr<std::string> DigestOf(const std::string& path, uint64_t offset, uint64_t bytes) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open " + path);
  const std::unique_ptr<EVP_MD_CTX, void (*)(EVP_MD_CTX*)> context(EVP_MD_CTX_new(), EVP_MD_CTX_free);
  if (context == nullptr || EVP_DigestInit_ex(context.get(), EVP_sha256(), nullptr) != 1) {
    return absl::InternalError("sha256 is not available");
  }
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
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned length = 0;
  EVP_DigestFinal_ex(context.get(), digest, &length);
  std::string hex;
  for (unsigned i = 0; i < length; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

absl::StatusOr<Image> ExamineErofsImage(const std::string& path) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd) return ErrnoStatus(errno, "open layer image " + path);
  ASSIGN_OR_RETURN(const uint64_t size, SizeOf(fd.get(), path));
  uint32_t magic = 0;
  if (pread(fd.get(), &magic, sizeof magic, kSuperblockOffset) != sizeof magic || magic != kErofsMagic) {
    return InvalidArgument("{}: not an EROFS image", path);
  }
  if (size % kPage != 0) return InvalidArgument("{}: {} bytes are no multiple of {}", path, size, kPage);
  ASSIGN_OR_RETURN(std::string digest, DigestOf(path, 0, size));
  return Image{path, std::move(digest), size};
}

absl::StatusOr<Image> MakeErofsImage(const std::string& directory, const std::string& image_path,
                                     std::chrono::milliseconds timeout) {
  struct stat info {};
  if (stat(directory.c_str(), &info) != 0) return ErrnoStatus(errno, "layer directory " + directory);
  if (!S_ISDIR(info.st_mode)) return InvalidArgument("layer {}: not a directory", directory);
  struct Undo {
    const std::string& path;
    bool keep = false;
    ~Undo() {
      if (!keep) unlink(path.c_str());
    }
  } undo{image_path};
  // A fixed build time and extended inodes with their own mtimes: equal directories give equal images.
  absl::Status made = RunChecked({"mkfs.erofs", "--quiet", "-T1", "--preserve-mtime", "-U", kUuid, "-E",
                                  "force-inode-extended,noinline_data", image_path, directory},
                                 timeout);
  RETURN_IF_ERROR(Annotate(made, "convert layer " + directory));
  UniqueFd fd(open(image_path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open " + image_path);
  ASSIGN_OR_RETURN(const uint64_t size, SizeOf(fd.get(), image_path));
  const uint64_t rounded = (size + kPage - 1) / kPage * kPage;
  if (rounded != size && ftruncate(fd.get(), static_cast<off_t>(rounded)) != 0)
    return ErrnoStatus(errno, "extend " + image_path);
  fd.reset();
  ASSIGN_OR_RETURN(Image image, ExamineErofsImage(image_path));
  undo.keep = true;
  return image;
}

}  // namespace lamina::layers

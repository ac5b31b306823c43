#include "layers/erofs_image.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <filesystem>

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

// mkfs.erofs 1.5 cannot take a name as long as the kernel allows, and says of it no more than that a file
// does not exist. The first such path below `directory`, or nothing.
std::string TooLongNameBelow(const std::string& directory) {
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().filename().native().size() >= NAME_MAX) return it->path().native();
  }
  return "";
}

absl::StatusOr<uint64_t> SizeOf(int fd, const std::string& path) {
  struct stat info {};
  if (fstat(fd, &info) != 0) return ErrnoStatus(errno, "stat " + path);
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{}: not a regular file", path);
  return static_cast<uint64_t>(info.st_size);
}

}  // namespace

absl::StatusOr<Image> ExamineErofsImage(const std::string& path, const Patience& patience) {
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd) return ErrnoStatus(errno, "open layer image " + path);
  ASSIGN_OR_RETURN(const uint64_t size, SizeOf(fd.get(), path));
  uint32_t magic = 0;
  if (pread(fd.get(), &magic, sizeof magic, kSuperblockOffset) != sizeof magic || magic != kErofsMagic) {
    return InvalidArgument("{}: not an EROFS image", path);
  }
  if (size % kPage != 0) return InvalidArgument("{}: {} bytes are no multiple of {}", path, size, kPage);
  ASSIGN_OR_RETURN(std::string digest, DigestOf(path, 0, size, patience));
  return Image{path, std::move(digest), size};
}

absl::StatusOr<Image> MakeErofsImage(const std::string& directory, const std::string& image_path,
                                     std::chrono::milliseconds timeout, const std::stop_token& stop) {
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
  // A fixed build time and extended inodes with their own mtimes: equal directories give equal images. -T
  // would give every file that one time; SOURCE_DATE_EPOCH only clamps later ones (the year 9999).
  absl::Status made = RunChecked({"env", "SOURCE_DATE_EPOCH=253402300799", "mkfs.erofs", "--quiet", "-U",
                                  kUuid, "-E", "force-inode-extended,noinline_data", image_path, directory},
                                 timeout, stop);
  if (made.message().find("No space left on device") != absl::string_view::npos)
    made = absl::ResourceExhaustedError(made.message());
  if (made.message().find("No such file or directory") != absl::string_view::npos) {
    if (const std::string path = TooLongNameBelow(directory); !path.empty()) {
      return InvalidArgument("convert layer {}: mkfs.erofs cannot store a name of {} bytes: {}", directory,
                             NAME_MAX, path);
    }
  }
  RETURN_IF_ERROR(Annotate(made, "convert layer " + directory));
  UniqueFd fd(open(image_path.c_str(), O_RDWR | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open " + image_path);
  ASSIGN_OR_RETURN(const uint64_t size, SizeOf(fd.get(), image_path));
  const uint64_t rounded = (size + kPage - 1) / kPage * kPage;
  if (rounded != size && ftruncate(fd.get(), static_cast<off_t>(rounded)) != 0)
    return ErrnoStatus(errno, "extend " + image_path);
  if (fchmod(fd.get(), 0600) != 0 || fsync(fd.get()) != 0) return ErrnoStatus(errno, "fsync " + image_path);
  fd.reset();
  ASSIGN_OR_RETURN(Image image, ExamineErofsImage(image_path, {.stop = stop}));
  undo.keep = true;
  return image;
}

}  // namespace lamina::layers

#include "vmm/guest_image.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <sstream>
#include <vector>

#include "base/clock.h"
#include "base/file_system.h"
#include "base/log.h"
#include "base/printable.h"
#include "base/sha256.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace lamina::vmm {
namespace {

constexpr size_t kListLimit = 4096;

std::string Name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

// Another after any change of the file: nobody can set the time of its inode's change.
absl::StatusOr<std::string> FileKey(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return ErrnoStatus(errno, "guest image: " + path);
  return fmt::format("{}:{}:{}:{}.{:09}", info.st_dev, info.st_ino, info.st_size, info.st_ctim.tv_sec,
                     info.st_ctim.tv_nsec);
}

absl::StatusOr<std::string> KeyOf(const std::vector<std::string>& paths) {
  std::string key = BootId();
  for (const std::string& path : paths) {
    ASSIGN_OR_RETURN(const std::string file, FileKey(path));
    key += " " + file;
  }
  return key + "\n";
}

absl::StatusOr<std::map<std::string, std::string>> ReadDigests(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, FileSystem::Real().Read(path, kListLimit));
  std::map<std::string, std::string> digests;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const std::string digest = line.substr(0, 64);
    if (line.size() < 67 || digest.find_first_not_of("0123456789abcdef") != std::string::npos ||
        line.compare(64, 2, "  ") != 0) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition,
                        "guest image: {}: \"{}\" is not a sha256 in hexadecimal, two spaces and a name", path,
                        Printable(line, 100));
    }
    digests[line.substr(66)] = digest;
  }
  return digests;
}

absl::StatusOr<std::string> DigestOf(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "guest image: " + path);
  Sha256Hasher hasher;
  std::vector<char> buffer(256 << 10);
  for (;;) {
    const ssize_t n = read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoStatus(errno, "guest image: read " + path);
    if (n == 0) return Hex(hasher.Finish());
    hasher.Update(buffer.data(), static_cast<size_t>(n));
  }
}

}  // namespace

absl::Status CheckGuestImage(const Config& config) {
  const std::vector<std::string> image = {config.kernel(), config.initramfs()};
  std::vector<std::string> all = image;
  all.push_back(GuestDigests(config));
  ASSIGN_OR_RETURN(const std::string key, KeyOf(all));
  FileSystem& fs = FileSystem::Real();
  const std::string known = config.paths.run_dir + "/guest-image";
  if (fs.Read(known, kListLimit).value_or("") == key) return absl::OkStatus();

  ASSIGN_OR_RETURN(const auto digests, ReadDigests(GuestDigests(config)));
  for (const std::string& path : image) {
    const auto said = digests.find(Name(path));
    if (said == digests.end()) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition, "guest image: {} does not name {}",
                        GuestDigests(config), Name(path));
    }
    ASSIGN_OR_RETURN(const std::string digest, DigestOf(path));
    if (digest == said->second) continue;
    return MakeStatus(
        absl::StatusCode::kFailedPrecondition,
        "guest image: {} is not what its build wrote: its sha256 is {}, {} says {}; install the "
        "image anew",
        path, digest, GuestDigests(config), said->second);
  }
  ASSIGN_OR_RETURN(const std::string now, KeyOf(all));
  if (now != key) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "guest image: {} is being replaced: try again",
                      config.paths.guest_dir);
  }
  // Whoever asks next reads the files again.
  absl::Status kept = fs.MakeDirectories(config.paths.run_dir, 0700);
  if (kept.ok()) kept = WriteFileAtomically(fs, known, key, 0600);
  if (!kept.ok()) LogWarning("guest image: {}", Message(kept));
  return absl::OkStatus();
}

}  // namespace lamina::vmm

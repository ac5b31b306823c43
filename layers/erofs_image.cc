#include "layers/erofs_image.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/stat.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <utility>

#include "base/log.h"
#include "base/printable.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/unique_fd.h"
#include "base/units.h"
#include "layers/digest.h"

namespace lamina::layers {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint32_t kErofsMagic = 0xE0F5E1E2;
constexpr off_t kSuperblockOffset = 1024;
constexpr size_t kLongestPath = 1024;  // in messages
// One UUID for all: the digest is what names an image.
constexpr char kUuid[] = "00000000-0000-4000-8000-6c616d696e61";

// mkfs.erofs 1.5 cannot take a name as long as the kernel allows, and says of it no more than that a file
// does not exist. The first such path below `directory`, or nothing. The layer's author decides how large and
// how deep it is: the search is short.
std::string TooLongNameBelow(const std::string& directory, const std::stop_token& stop) {
  constexpr int kDeepest = 64;  // each level is an open directory
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  std::error_code error;
  for (std::filesystem::recursive_directory_iterator it(directory, error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().filename().native().size() >= NAME_MAX) return it->path().native();
    if (it.depth() >= kDeepest) it.disable_recursion_pending();
    if (stop.stop_requested() || std::chrono::steady_clock::now() > deadline) break;
  }
  return "";
}

absl::StatusOr<uint64_t> SizeOf(int fd, const std::string& path) {
  struct stat info {};
  if (fstat(fd, &info) != 0) return ErrnoStatus(errno, "stat " + path);
  if (!S_ISREG(info.st_mode)) return InvalidArgument("{}: not a regular file", path);
  return static_cast<uint64_t>(info.st_size);
}

bool Says(const CommandResult& result, std::string_view words) {
  return result.output.find(words) != std::string::npos;
}

// What it means that mkfs.erofs ended so.
absl::Status CheckMkfs(const ConvertLimits& limits, const std::string& size_bound,
                       const CommandResult& result, const std::string& directory,
                       const std::string& image_path, const std::stop_token& stop) {
  absl::Status status = CheckExit("mkfs.erofs", result);
  if (status.ok()) return status;
  // It knows its output by another name.
  struct stat image {};
  // Of a write that ends at a limit it is told only how much was written.
  const bool cut = Says(result, "was truncated");
  const bool full = cut && stat(image_path.c_str(), &image) == 0 &&
                    static_cast<uint64_t>(image.st_size) + kPage > limits.image_bytes;
  if (Says(result, "No space left on device") || (cut && !full)) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "No space left on device: write {}: {}",
                      image_path, Message(status));
  }
  if (full || Says(result, "File too large") || result.exit_code == 128 + SIGXFSZ) {
    return MakeStatus(absl::StatusCode::kResourceExhausted, "its image would be larger than {} ({}): {}",
                      FormatBytes(limits.image_bytes), size_bound, Message(status));
  }
  // mkfs.erofs 1.5 does not look at every allocation: it may find no memory by a fault.
  if (Says(result, "Cannot allocate memory") || result.exit_code == 128 + SIGSEGV) {
    return MakeStatus(absl::StatusCode::kResourceExhausted,
                      "it takes more than {} (layers.convert_memory), or mkfs.erofs is at fault: {}",
                      FormatBytes(limits.memory_bytes), Message(status));
  }
  if (result.exit_code == 128 + SIGKILL) {
    return MakeStatus(
        absl::StatusCode::kResourceExhausted,
        "it takes more than {} s of CPU (layers.convert_timeout_seconds), or the node's memory is "
        "short: {}",
        limits.time.count(), Message(status));
  }
  if (Says(result, "No such file or directory")) {
    if (const std::string path = TooLongNameBelow(directory, stop); !path.empty()) {
      return InvalidArgument("mkfs.erofs cannot store a name of {} bytes: {}", NAME_MAX,
                             Printable(path, kLongestPath));
    }
  }
  return status;
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

ConfinementRules MkfsErofsRules() {
  ConfinementRules rules;
  rules.program = "mkfs.erofs";
  // Layers have files of any owner and mode. The kernel shows attributes named trusted.* (overlayfs marks
  // opaque directories with one) to CAP_SYS_ADMIN alone; all else that it allows takes calls that are not
  // below: mount, bpf, setns, unshare, ioctl, perf_event_open, setxattr, keyctl, quotactl, and so on. Nor are
  // open_by_handle_at, which CAP_DAC_READ_SEARCH opens the whole disk with, and what makes processes.
  rules.capabilities = {CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN};
  for (const char* name :
       {// the layer
        "openat", "close", "read", "pread64", "lseek", "getdents64", "newfstatat", "fstat", "lstat", "stat",
        "statx", "readlink", "readlinkat", "llistxattr", "lgetxattr", "access", "faccessat", "faccessat2",
        "fadvise64",
        // the image
        "write", "pwrite64", "writev", "pwritev", "fallocate", "ftruncate", "fsync", "fdatasync",
        // itself: memory, start and end
        "brk", "mmap", "munmap", "mprotect", "mremap", "madvise", "arch_prctl", "set_tid_address",
        "set_robust_list", "rseq", "futex", "getrandom", "getpid", "getppid", "gettid", "getuid", "geteuid",
        "getgid", "getegid", "getcwd", "sysinfo", "uname", "clock_gettime", "gettimeofday", "time",
        "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "tgkill", "restart_syscall"}) {
    rules.system_calls.push_back({name});
  }
  rules.system_calls.push_back({"prlimit64", 2});  // to read one
  return rules;
}

absl::StatusOr<std::shared_ptr<const Confinement>> ErofsMaker::Prepared() {
  MutexLock lock(mutex_);
  if (prepared_ != nullptr) return prepared_;
  ASSIGN_OR_RETURN(Confinement made, Confinement::Prepare(MkfsErofsRules()));
  if (!made.shortfall().ok())
    LogWarning("layers are read with less confinement: {}", Message(made.shortfall()));
  prepared_ = std::make_shared<const Confinement>(std::move(made));
  return prepared_;
}

absl::Status ErofsMaker::confinement() {
  const auto prepared = Prepared();
  return prepared.ok() ? (*prepared)->shortfall() : prepared.status();
}

absl::StatusOr<Image> ErofsMaker::Make(const std::string& directory, const std::string& image_path,
                                       uint64_t most_bytes, const std::stop_token& stop) {
  ConvertLimits limits = limits_;
  limits.image_bytes = std::min(limits.image_bytes, most_bytes);
  const std::string bound =
      most_bytes < limits_.image_bytes
          ? "No space left for " + image_path + ": what layers.disk_reserve and layers.disk_budget leave"
          : "layers.convert_size";
  struct stat info {};
  if (stat(directory.c_str(), &info) != 0) return ErrnoStatus(errno, "layer directory " + directory);
  if (!S_ISDIR(info.st_mode)) return InvalidArgument("layer {}: not a directory", directory);
  absl::StatusOr<std::shared_ptr<const Confinement>> prepared = Prepared();
  RETURN_IF_ERROR(Annotate(prepared.status(), "convert layer " + directory));
  const Confinement& confinement = **prepared;
  struct Undo {
    const std::string& path;
    bool keep = false;
    ~Undo() {
      if (!keep) unlink(path.c_str());
    }
  } undo{image_path};
  UniqueFd fd(open(image_path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd) return ErrnoStatus(errno, "create " + image_path);
  const ConfinedFile layer{directory, "/layer"}, image_file{image_path, "/image", true};
  ConfinedRun run;
  run.arguments = {"--quiet",
                   "-U",
                   kUuid,
                   "-E",
                   "force-inode-extended,noinline_data",
                   confinement.PathOf(image_file),
                   confinement.PathOf(layer)};
  // A fixed build time and extended inodes with their own mtimes: equal directories give equal images. -T
  // would give every file that one time; SOURCE_DATE_EPOCH only clamps later ones (the year 9999).
  run.env = {"SOURCE_DATE_EPOCH=253402300799"};
  run.files = {layer, image_file};
  run.memory_bytes = limits.memory_bytes;
  run.file_bytes = limits.image_bytes;
  run.cpu_time = limits.time;
  run.wall_time = limits.time;
  const absl::StatusOr<CommandResult> result = confinement.Run(run, stop);
  if (result.ok() && result->exit_code == 127) {
    // Its loader misses a library: a newer mkfs.erofs may want others. The next call looks again.
    MutexLock lock(mutex_);
    prepared_.reset();
  }
  RETURN_IF_ERROR(
      Annotate(result.ok() ? CheckMkfs(limits, bound, *result, directory, image_path, stop) : result.status(),
               "convert layer " + directory));
  ASSIGN_OR_RETURN(const uint64_t size, SizeOf(fd.get(), image_path));
  const uint64_t rounded = (size + kPage - 1) / kPage * kPage;
  if (rounded != size && ftruncate(fd.get(), static_cast<off_t>(rounded)) != 0)
    return ErrnoStatus(errno, "extend " + image_path);
  if (fsync(fd.get()) != 0) return ErrnoStatus(errno, "fsync " + image_path);
  fd.reset();
  ASSIGN_OR_RETURN(Image image, ExamineErofsImage(image_path, {.stop = stop}));
  undo.keep = true;
  return image;
}

}  // namespace lamina::layers

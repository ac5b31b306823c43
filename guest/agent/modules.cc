#include "guest/agent/modules.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>

#include "base/log.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace lamina::guest {

absl::StatusOr<std::vector<ModuleEntry>> ParseModuleOrder(std::string_view text) {
  std::vector<ModuleEntry> entries;
  for (int number = 1; !text.empty(); ++number) {
    const size_t newline = text.find('\n');
    const std::string_view line = text.substr(0, newline);
    text = newline == std::string_view::npos ? std::string_view() : text.substr(newline + 1);
    if (line.empty() || line[0] == '#') continue;
    const size_t space = line.find(' ');
    if (space == 0 || space == std::string_view::npos || space + 1 == line.size() ||
        line.find_first_of(" \t/", space + 1) != std::string_view::npos) {
      return InvalidArgument("module order, line {}: want \"<group> <module>\", got \"{}\"", number,
                             line.substr(0, 80));
    }
    entries.push_back({std::string(line.substr(0, space)), std::string(line.substr(space + 1))});
  }
  return entries;
}

std::string ModuleGroupOfModalias(std::string_view modalias) {
  constexpr std::string_view kPrefix = "virtio:d";
  if (modalias.substr(0, kPrefix.size()) != kPrefix || modalias.size() < kPrefix.size() + 8) return "";
  unsigned type = 0;
  const char* begin = modalias.data() + kPrefix.size();
  const auto [end, error] = std::from_chars(begin, begin + 8, type, 16);
  if (error != std::errc() || end != begin + 8) return "";
  return fmt::format("virtio-{}", type);
}

absl::Status ModuleLoader::Load(const std::string& group) {
  MutexLock lock(mutex_);
  if (loaded_.count(group) > 0) return absl::OkStatus();
  for (const ModuleEntry& entry : order_) {
    if (entry.group != group) continue;
    const std::string path = directory_ + "/" + entry.name + ".ko";
    UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!fd) return ErrnoStatus(errno, "open " + path);
    if (syscall(SYS_finit_module, fd.get(), "", 0) != 0 && errno != EEXIST) {
      if (errno != ENODEV) return ErrnoStatus(errno, "load the kernel module " + path);
      LogDebug("kernel module {}: no such hardware", entry.name);
    }
    // The initramfs is memory: what has been loaded need not lie there a second time.
    unlink(path.c_str());
  }
  loaded_.insert(group);
  return absl::OkStatus();
}

}  // namespace lamina::guest

#include "tests/bench/pod/host_memory.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/status.h"

namespace lamina::bench {
namespace {

absl::StatusOr<std::string> ReadProc(pid_t pid, const char* file) {
  const std::string path = fmt::format("/proc/{}/{}", pid, file);
  std::ifstream in(path);
  std::ostringstream text;
  text << in.rdbuf();
  if (text.str().empty()) return MakeStatus(absl::StatusCode::kNotFound, "{}: the process is gone", path);
  return text.str();
}

}  // namespace

MappedBytes SumMappings(const std::string& smaps, const std::string& prefix) {
  MappedBytes sum;
  bool counts = false;
  std::istringstream in(smaps);
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string first;
    words >> first;
    if (first.find('-') != std::string::npos && first.back() != ':') {
      // "from-to rwxp offset device inode   path"
      std::string rest, path;
      for (int i = 0; i < 4; ++i) words >> rest;
      std::getline(words >> std::ws, path);
      counts = path.rfind(prefix, 0) == 0;
      continue;
    }
    uint64_t kib = 0;
    if (!counts || !(words >> kib)) continue;
    if (first == "Rss:") sum.resident += kib << 10;
    if (first == "Pss:") sum.proportional += kib << 10;
  }
  return sum;
}

absl::StatusOr<MappedBytes> ProcessMemory(pid_t pid) {
  ASSIGN_OR_RETURN(const std::string text, ReadProc(pid, "smaps_rollup"));
  return SumMappings(text, "");
}

absl::StatusOr<MappedBytes> MappingMemory(pid_t pid, const std::string& prefix) {
  ASSIGN_OR_RETURN(const std::string text, ReadProc(pid, "smaps"));
  return SumMappings(text, prefix);
}

absl::StatusOr<double> CpuSeconds(pid_t pid) {
  ASSIGN_OR_RETURN(const std::string text, ReadProc(pid, "stat"));
  // The name in parentheses may hold spaces; fields 14 and 15 are ticks.
  std::istringstream words(text.substr(text.rfind(')') + 1));
  std::string skipped;
  for (int i = 0; i < 11; ++i) words >> skipped;
  uint64_t user = 0, system = 0;
  words >> user >> system;
  return static_cast<double>(user + system) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

uint64_t BytesOnDisk(const std::string& dir) {
  namespace fs = std::filesystem;
  uint64_t bytes = 0;
  std::error_code error;
  for (auto it = fs::recursive_directory_iterator(dir, error);
       !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    struct stat info;
    if (lstat(it->path().c_str(), &info) == 0) bytes += static_cast<uint64_t>(info.st_blocks) * 512;
  }
  return bytes;
}

}  // namespace lamina::bench

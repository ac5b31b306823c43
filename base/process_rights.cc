#include "base/process_rights.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <map>
#include <sstream>

#include "base/file_system.h"
#include "base/status.h"

namespace lamina {
namespace {

constexpr size_t kLimit = 256 << 10;

std::string Proc(pid_t pid, const std::string& name) { return fmt::format("/proc/{}/{}", pid, name); }

std::map<std::string, std::string> Fields(const std::string& text) {
  std::map<std::string, std::string> fields;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const size_t colon = line.find(":\t");
    if (colon != std::string::npos) fields[line.substr(0, colon)] = line.substr(colon + 2);
  }
  return fields;
}

void AddNumbers(const std::string& text, std::set<uid_t>& to) {
  std::istringstream words(text);
  for (uid_t number; words >> number;) to.insert(number);
}

absl::StatusOr<std::string> Link(const std::string& path) {
  char target[PATH_MAX];
  const ssize_t n = readlink(path.c_str(), target, sizeof target);
  if (n < 0) return ErrnoStatus(errno, "read " + path);
  return std::string(target, static_cast<size_t>(n));
}

absl::StatusOr<std::set<std::string>> OwnNamespaces(pid_t pid, pid_t other) {
  std::set<std::string> own;
  for (const char* kind : {"mnt", "pid", "ipc", "uts", "net", "cgroup", "user"}) {
    ASSIGN_OR_RETURN(const std::string its, Link(Proc(pid, std::string("ns/") + kind)));
    ASSIGN_OR_RETURN(const std::string others, Link(Proc(other, std::string("ns/") + kind)));
    if (its != others) own.insert(kind);
  }
  return own;
}

absl::StatusOr<bool> OwnRoot(pid_t pid, pid_t other) {
  struct stat its {
  }, others{};
  if (stat(Proc(pid, "root/").c_str(), &its) != 0) return ErrnoStatus(errno, Proc(pid, "root"));
  if (stat(Proc(other, "root/").c_str(), &others) != 0) return ErrnoStatus(errno, Proc(other, "root"));
  return its.st_dev != others.st_dev || its.st_ino != others.st_ino;
}

// "Max core file size        0                    unlimited            bytes"
absl::StatusOr<uint64_t> HardCoreLimit(const std::string& text) {
  constexpr std::string_view kLine = "Max core file size";
  const size_t at = text.find(kLine);
  if (at == std::string::npos) return absl::InternalError("limits: no line \"Max core file size\"");
  std::istringstream words(text.substr(at + kLine.size()));
  std::string soft, hard;
  words >> soft >> hard;
  return hard == "unlimited" ? UINT64_MAX : strtoull(hard.c_str(), nullptr, 10);
}

}  // namespace

absl::StatusOr<ProcessRights> ReadProcessRights(pid_t pid, pid_t other) {
  FileSystem& fs = FileSystem::Real();
  ProcessRights rights;
  ASSIGN_OR_RETURN(const std::string status, fs.Read(Proc(pid, "status"), kLimit));
  auto fields = Fields(status);
  AddNumbers(fields["Uid"], rights.users);
  AddNumbers(fields["Gid"], rights.groups);
  AddNumbers(fields["Groups"], rights.groups);
  for (const char* set : {"CapInh", "CapPrm", "CapEff", "CapAmb"})
    rights.capabilities |= strtoull(fields[set].c_str(), nullptr, 16);
  rights.bounding = strtoull(fields["CapBnd"].c_str(), nullptr, 16);
  rights.no_new_privs = fields["NoNewPrivs"] == "1";
  rights.filtered = fields["Seccomp"] == "2";
  ASSIGN_OR_RETURN(rights.namespaces, OwnNamespaces(pid, other));
  ASSIGN_OR_RETURN(rights.own_root, OwnRoot(pid, other));
  ASSIGN_OR_RETURN(rights.root, fs.List(Proc(pid, "root")));
  std::sort(rights.root.begin(), rights.root.end());
  ASSIGN_OR_RETURN(const std::string limits, fs.Read(Proc(pid, "limits"), kLimit));
  ASSIGN_OR_RETURN(rights.core_bytes, HardCoreLimit(limits));
  ASSIGN_OR_RETURN(const std::string score, fs.Read(Proc(pid, "oom_score_adj"), kLimit));
  rights.oom_score_adj = atoi(score.c_str());
  ASSIGN_OR_RETURN(const std::string environment, fs.Read(Proc(pid, "environ"), kLimit));
  std::istringstream words(environment);
  for (std::string word; std::getline(words, word, '\0');) rights.environment.push_back(word);
  return rights;
}

}  // namespace lamina

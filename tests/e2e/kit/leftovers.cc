#include "tests/e2e/kit/leftovers.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace lamina::e2e {
namespace {

namespace fs = std::filesystem;

void Descend(const fs::path& folder, const std::vector<std::string>& names, const Lines& except, int depth,
             Lines& found) {
  std::error_code error;
  for (const auto& entry :
       fs::directory_iterator(folder, fs::directory_options::skip_permission_denied, error)) {
    const std::string path = entry.path(), name = entry.path().filename();
    if (std::any_of(names.begin(), names.end(),
                    [&](const auto& n) { return name.find(n) != std::string::npos; })) {
      found.push_back(path);
      continue;
    }
    if (depth <= 1 || entry.is_symlink(error) || !entry.is_directory(error)) continue;
    if (std::find(except.begin(), except.end(), path) == except.end())
      Descend(entry.path(), names, except, depth - 1, found);
  }
}

}  // namespace

std::string ReadText(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

std::vector<Process> FindProcesses(const std::string& text, const std::vector<int>& except) {
  std::vector<Process> found;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/proc", error)) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    const int pid = std::stoi(name);
    if (pid == getpid() || std::find(except.begin(), except.end(), pid) != except.end()) continue;
    std::string command = ReadText(entry.path() / "cmdline");
    // QEMU knows no path of its pod's; its log is one.
    std::error_code gone;
    const std::string output = fs::read_symlink(entry.path() / "fd/1", gone);
    if (command.find(text) == std::string::npos && output.find(text) == std::string::npos &&
        ReadText(entry.path() / "environ").find(text) == std::string::npos) {
      continue;
    }
    std::replace(command.begin(), command.end(), '\0', ' ');
    found.push_back({pid, command});
  }
  return found;
}

Lines FindMounts(const std::string& text) {
  Lines found;
  std::istringstream in(ReadText("/proc/self/mountinfo"));
  for (std::string line; std::getline(in, line);) {
    if (line.find(text) != std::string::npos) found.push_back(line);
  }
  return found;
}

Lines FindNamed(const std::string& root, const std::vector<std::string>& names, const Lines& except,
                int max_depth) {
  Lines found;
  if (!names.empty()) Descend(root, names, except, max_depth, found);
  return found;
}

Lines FindSockets(const std::string& text) {
  Lines found;
  std::istringstream in(ReadText("/proc/net/unix"));
  for (std::string line; std::getline(in, line);) {
    // "Num RefCount Protocol Flags Type St Inode Path"; the flag 0x10000 marks a listening socket.
    std::istringstream fields(line);
    std::string num, count, protocol, flags, type, state, inode, path;
    fields >> num >> count >> protocol >> flags >> type >> state >> inode >> path;
    if (flags == "00010000" && path.find(text) != std::string::npos) found.push_back(path);
  }
  return found;
}

bool HasOpen(int pid, const std::string& path) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(fmt::format("/proc/{}/fd", pid), error)) {
    std::error_code gone;
    if (fs::read_symlink(entry.path(), gone) == path) return true;
  }
  return false;
}

Lines ListFolder(const std::string& path) {
  Lines names;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path, error)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace lamina::e2e

// What a pod could leave on the host, found by names: each function lists what it sees and changes nothing.
#pragma once

#include <string>
#include <vector>

namespace lamina::e2e {

using Lines = std::vector<std::string>;

std::string ReadText(const std::string& path);
// "pid: command line" of live processes whose command line or environment contains `text`; not `except`, not
// ourselves.
struct Process {
  int pid = 0;
  std::string command;
};
std::vector<Process> FindProcesses(const std::string& text, const std::vector<int>& except);
// Mount points or sources in /proc/self/mountinfo that contain `text`.
Lines FindMounts(const std::string& text);
// Paths below `root` whose last component contains one of `names`; does not descend into `except`.
Lines FindNamed(const std::string& root, const std::vector<std::string>& names, const Lines& except,
                int max_depth);
// Bound unix sockets whose path contains `text`.
Lines FindSockets(const std::string& text);
// True while process `pid` has the file open.
bool HasOpen(int pid, const std::string& path);
// Names in a folder; empty if it does not exist.
Lines ListFolder(const std::string& path);

}  // namespace lamina::e2e

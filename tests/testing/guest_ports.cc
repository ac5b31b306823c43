#include "tests/testing/guest_ports.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <fstream>

namespace lamina::testing {

void LoadBootModules() {
  std::ifstream order("/lib/modules/order");
  for (std::string group, module; order >> group >> module;) {
    if (group != "boot") continue;
    const int fd = open(("/lib/modules/" + module + ".ko").c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    syscall(SYS_finit_module, fd, "", 0);
    close(fd);
  }
}

std::string PortName(const std::string& device) {
  std::ifstream file("/sys/class/virtio-ports/" + device + "/name");
  std::string name;
  file >> name;
  return name;
}

int OpenPort(const std::string& name) {
  for (;;) {
    DIR* dir = opendir("/sys/class/virtio-ports");
    for (const dirent* entry; dir != nullptr && (entry = readdir(dir)) != nullptr;) {
      const std::string port = entry->d_name;
      if (PortName(port) != name) continue;
      const int fd = open(("/dev/" + port).c_str(), O_RDWR | O_CLOEXEC);
      if (fd >= 0) {
        closedir(dir);
        return fd;
      }
    }
    if (dir != nullptr) closedir(dir);
    poll(nullptr, 0, 5);  // nobody tells when a port appears
  }
}

void WriteAll(int fd, const std::string& bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t n = write(fd, bytes.data() + at, bytes.size() - at);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
      pollfd writable{fd, POLLOUT, 0};
      poll(&writable, 1, 100);
      continue;
    }
    if (n <= 0) return;
    at += static_cast<size_t>(n);
  }
}

std::string Noise(size_t size) {
  std::string bytes(size, '\0');
  uint32_t state = 2463534242;
  for (char& byte : bytes) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    byte = static_cast<char>(state);
  }
  return bytes;
}

}  // namespace lamina::testing

// Init of a guest that is not Lamina's, statically linked: what a hostile or broken guest does to its host.
// The kernel's argument stand_in=MODE says which:
//   silent    answers nothing, for ever
//   half      begins an answer and never ends it
//   garbage   floods both ports with noise
//   stranger  answers the first call well-formed, in a protocol of another version
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>

namespace {

void LoadModules() {
  std::ifstream order("/lib/modules/order");
  for (std::string group, module; order >> group >> module;) {
    if (group != "boot") continue;
    const int fd = open(("/lib/modules/" + module + ".ko").c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    syscall(SYS_finit_module, fd, "", 0);
    close(fd);
  }
}

// The port of that name, once the kernel shows it.
int OpenPort(const std::string& name) {
  for (;;) {
    DIR* dir = opendir("/sys/class/virtio-ports");
    for (const dirent* entry; dir != nullptr && (entry = readdir(dir)) != nullptr;) {
      const std::string port = entry->d_name;
      std::ifstream file("/sys/class/virtio-ports/" + port + "/name");
      std::string found;
      if (!(file >> found) || found != name) continue;
      const int fd = open(("/dev/" + port).c_str(), O_RDWR | O_CLOEXEC);
      if (fd >= 0) return fd;
    }
    if (dir != nullptr) closedir(dir);
    poll(nullptr, 0, 5);  // nobody tells when a port appears
  }
}

void Write(int fd, const std::string& bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const ssize_t n = write(fd, bytes.data() + at, bytes.size() - at);
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

// One call's frame: its stream id is the answer's.
std::string ReadCall(int fd) {
  std::string header;
  while (header.size() < 10) {
    char byte;
    if (read(fd, &byte, 1) == 1) {
      header.push_back(byte);
    } else {
      poll(nullptr, 0, 5);
    }
  }
  return header.substr(4, 4);
}

}  // namespace

int main() {
  mount("proc", "/proc", "proc", 0, nullptr);
  mount("sysfs", "/sys", "sysfs", 0, nullptr);
  mount("devtmpfs", "/dev", "devtmpfs", 0, nullptr);
  const char* given = getenv("stand_in");
  const std::string mode = given != nullptr ? given : "silent";
  LoadModules();
  const int rpc = OpenPort("lamina.rpc"), stdio = OpenPort("lamina.stdio");
  if (mode == "half") {
    const std::string stream = ReadCall(rpc);
    Write(rpc, std::string("\0\x10\0\0", 4) + stream + std::string("\x02\0", 2) + "the rest never comes");
  } else if (mode == "garbage") {
    const std::string noise = Noise(1 << 20);
    Write(stdio, noise.substr(0, 4096));
    Write(rpc, noise);
  } else if (mode == "stranger") {
    const std::string stream = ReadCall(rpc);
    // Response { payload = HelloResponse { protocol_version = 99 } }
    Write(rpc, std::string("\0\0\0\x04", 4) + stream + std::string("\x02\0", 2) + "\x12\x02\x08\x63");
  }
  for (;;) pause();
}

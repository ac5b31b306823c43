// Init of a guest that is not Lamina's, statically linked: what a hostile or broken guest does to its host.
// The kernel's argument stand_in=MODE says which:
//   silent    answers nothing, for ever
//   half      begins an answer and never ends it
//   garbage   floods both ports with noise
//   stranger  answers the first call well-formed, in a protocol of another version
#include <poll.h>
#include <sys/mount.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "tests/testing/guest_ports.h"

namespace {

using lamina::testing::LoadBootModules;
using lamina::testing::Noise;
using lamina::testing::OpenPort;
using lamina::testing::WriteAll;

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
  LoadBootModules();
  const int rpc = OpenPort("lamina.rpc"), stdio = OpenPort("lamina.stdio");
  if (mode == "half") {
    const std::string stream = ReadCall(rpc);
    WriteAll(rpc, std::string("\0\x10\0\0", 4) + stream + std::string("\x02\0", 2) + "the rest never comes");
  } else if (mode == "garbage") {
    const std::string noise = Noise(1 << 20);
    WriteAll(stdio, noise.substr(0, 4096));
    WriteAll(rpc, noise);
  } else if (mode == "stranger") {
    const std::string stream = ReadCall(rpc);
    // Response { payload = HelloResponse { protocol_version = 99 } }
    WriteAll(rpc, std::string("\0\0\0\x04", 4) + stream + std::string("\x02\0", 2) + "\x12\x02\x08\x63");
  }
  for (;;) pause();
}

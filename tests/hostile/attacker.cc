// A guest that is its host's enemy: init of a guest image. Lamina's agent runs as ever, as PID 1, and beside
// it this program, as root, waits until a container writes a word into /dev/shm/attack. The agent's ports are
// its own from then on: it takes the agent's descriptors. What it found out it leaves in /dev/shm/result.
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "tests/testing/guest_ports.h"

namespace lamina::hostile {
namespace {

using testing::Noise;
using testing::PortName;
using testing::WriteAll;

constexpr char kAgent[] = "/lamina-agent";
constexpr char kShm[] = "/run/lamina/shm/";  // the containers' /dev/shm

std::vector<std::string> Names(const std::string& directory) {
  std::vector<std::string> names;
  DIR* dir = opendir(directory.c_str());
  for (const dirent* entry; dir != nullptr && (entry = readdir(dir)) != nullptr;) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  if (dir != nullptr) closedir(dir);
  return names;
}

void Say(const std::string& result) {
  std::ofstream(std::string(kShm) + "result.new") << result << "\n";
  rename((std::string(kShm) + "result.new").c_str(), (std::string(kShm) + "result").c_str());
}

// The agent's own descriptor of a port: the kernel lets a port be opened once.
int TakePort(const std::string& wanted) {
  const int agent = static_cast<int>(syscall(SYS_pidfd_open, 1, 0));
  for (const std::string& number : Names("/proc/1/fd")) {
    char target[256];
    const ssize_t n = readlink(("/proc/1/fd/" + number).c_str(), target, sizeof target);
    const std::string path(target, static_cast<size_t>(n > 0 ? n : 0));
    if (path.rfind("/dev/vport", 0) != 0 || PortName(path.substr(5)) != wanted) continue;
    return static_cast<int>(syscall(SYS_pidfd_getfd, agent, atoi(number.c_str()), 0));
  }
  return -1;
}

void StopAgent() {
  for (const std::string& task : Names("/proc/1/task")) {
    const int tid = atoi(task.c_str());
    if (ptrace(PTRACE_SEIZE, tid, 0, 0) == 0) ptrace(PTRACE_INTERRUPT, tid, 0, 0);
  }
}

std::string Big(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}
std::string Little(uint32_t value) {
  const std::string big = Big(value);
  return {big.rbegin(), big.rend()};
}
// One of ttrpc: 1 a call, 2 an answer.
std::string RpcFrame(uint32_t stream, char type, const std::string& payload) {
  return Big(static_cast<uint32_t>(payload.size())) + Big(stream) + type + '\0' + payload;
}
// One of the stdio port: 1 data, 2 credit, 3 end, 4 reset.
std::string StdioFrame(uint32_t stream, char kind, const std::string& payload, uint32_t length) {
  return Little(stream) + kind + std::string(3, '\0') + Little(length) + payload;
}

[[noreturn]] void Flood(int fd, const std::string& bytes) {
  for (;;) WriteAll(fd, bytes);
}

[[noreturn]] void RpcAnswers(int fd) {
  for (uint32_t stream = 1;; stream += 2) WriteAll(fd, RpcFrame(stream, 2, std::string(64 << 10, 'a')));
}

[[noreturn]] void RpcCalls(int fd) {
  for (uint32_t stream = 1;; stream += 2) WriteAll(fd, RpcFrame(stream, 1, "\x0a\x01x\x12\x01y"));
}

[[noreturn]] void StdioBytes(int fd) {
  std::string frames;
  for (uint32_t stream = 1; stream <= 1024; ++stream) frames += StdioFrame(stream, 1, "x", 1);
  Flood(fd, frames);
}

[[noreturn]] void StdioWindows(int fd) {
  const std::string data(64 << 10, 'x');
  for (uint32_t stream = 1;; ++stream)
    for (int i = 0; i < 4; ++i) WriteAll(fd, StdioFrame(stream, 1, data, 64 << 10));
}

// Writes to all that it has of disks and persistent memory. The kernel knows which are read-only: a device
// that lets itself be written is asked to.
void WriteDevices() {
  int opened = 0, written = 0;
  for (const std::string& name : Names("/sys/block")) {
    const std::string path = "/dev/" + name;
    const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd < 0) continue;
    ++opened;
    const std::string bytes = Noise(1 << 20);
    if (pwrite(fd, bytes.data(), bytes.size(), 0) > 0 && fsync(fd) == 0) ++written;
    void* map = mmap(nullptr, 1 << 20, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map != MAP_FAILED) {
      const pid_t writer = fork();  // it may not survive
      if (writer == 0) {
        memcpy(map, bytes.data(), bytes.size());
        msync(map, 1 << 20, MS_SYNC);
        _exit(0);
      }
      waitpid(writer, nullptr, 0);
      munmap(map, 1 << 20);
    }
    close(fd);
  }
  Say("opened " + std::to_string(opened) + ", written " + std::to_string(written));
}

// The word that stands in another tenant's image, put together here so that it is not found in this program.
void ReadDevices() {
  std::string word = "neighbours";
  word += "-secret";
  uint64_t bytes = 0;
  int found = 0;
  for (const std::string& name : Names("/sys/block")) {
    const int fd = open(("/dev/" + name).c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) continue;
    std::string kept;
    std::vector<char> chunk(1 << 20);
    for (ssize_t n; (n = read(fd, chunk.data(), chunk.size())) > 0;) {
      bytes += static_cast<uint64_t>(n);
      kept.append(chunk.data(), static_cast<size_t>(n));
      if (kept.find(word) != std::string::npos) ++found;
      kept.erase(0, kept.size() - std::min(kept.size(), word.size() - 1));
    }
    close(fd);
  }
  Say("read " + std::to_string(bytes >> 20) + " MiB, found " + std::to_string(found));
}

// Noise into the registers of every PCI device.
void PokeDevices() {
  const std::string noise = Noise(4096);
  for (int round = 0; round < 200; ++round) {
    for (const std::string& device : Names("/sys/bus/pci/devices")) {
      const std::string dir = "/sys/bus/pci/devices/" + device + "/";
      for (const std::string& name : Names(dir)) {
        if (name.rfind("resource", 0) != 0 || name == "resource" || name.find("_wc") != std::string::npos)
          continue;
        struct stat info {};
        const int fd = open((dir + name).c_str(), O_RDWR | O_CLOEXEC);
        if (fd < 0 || fstat(fd, &info) != 0 || info.st_size <= 0 || info.st_size > (1 << 20)) {
          if (fd >= 0) close(fd);
          continue;
        }
        const auto size = static_cast<size_t>(info.st_size);
        void* map = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        close(fd);
        if (map == MAP_FAILED) continue;
        auto* words = static_cast<volatile uint32_t*>(map);
        for (size_t i = 0; i < size / 4 && i < 1024; ++i) {
          uint32_t value;
          memcpy(&value, noise.data() + (i * 4 + static_cast<size_t>(round) * 36) % 4092, sizeof value);
          words[i] = value;
        }
        munmap(map, size);
      }
    }
    Say("poked all devices " + std::to_string(round + 1) + " times");
  }
}

// Touches memory that the host has promised to nobody yet: the device of virtio-mem, without its driver.
void TouchUnplugged() {
  const int memory = open("/dev/mem", O_RDWR | O_CLOEXEC);
  if (memory < 0) return Say("no /dev/mem: " + std::string(strerror(errno)));
  for (const std::string& device : Names("/sys/bus/virtio/drivers/virtio_mem"))
    if (device.rfind("virtio", 0) == 0) std::ofstream("/sys/bus/virtio/drivers/virtio_mem/unbind") << device;
  constexpr uint64_t kFirst = 4ULL << 30, kStep = 128ULL << 20;
  uint64_t touched = 0;
  for (uint64_t at = kFirst; at < kFirst + (64ULL << 30); at += kStep) {
    void* map = mmap(nullptr, kStep, PROT_READ | PROT_WRITE, MAP_SHARED, memory, static_cast<off_t>(at));
    if (map == MAP_FAILED) continue;
    const pid_t writer = fork();  // what is not there may end it
    if (writer == 0) {
      memset(map, 0x5a, kStep);
      _exit(0);
    }
    int status = 0;
    waitpid(writer, &status, 0);
    munmap(map, kStep);
    if (status == 0) touched += kStep;
    Say("touched " + std::to_string(touched >> 20) + " MiB");
  }
}

void Attack(const std::string& word) {
  if (word == "write-devices") return WriteDevices();
  if (word == "read-devices") return ReadDevices();
  if (word == "poke-devices") return PokeDevices();
  if (word == "touch-unplugged") return TouchUnplugged();
  if (word == "panic") {
    std::ofstream("/proc/sys/kernel/sysrq") << "1";
    std::ofstream("/proc/sysrq-trigger") << "c";
    return;
  }
  const int rpc = TakePort("lamina.rpc"), stdio = TakePort("lamina.stdio");
  StopAgent();
  if (word == "rpc-noise") Flood(rpc, Noise(1 << 20));
  if (word == "rpc-answers") RpcAnswers(rpc);
  if (word == "rpc-calls") RpcCalls(rpc);
  if (word == "rpc-half") WriteAll(rpc, Big(4 << 20) + Big(1) + "\x02" + '\0' + "the rest never comes");
  if (word == "stdio-noise") Flood(stdio, Noise(1 << 20));
  if (word == "stdio-bytes") StdioBytes(stdio);
  if (word == "stdio-windows") StdioWindows(stdio);
  if (word == "stdio-credit") Flood(stdio, StdioFrame(1, 2, "", UINT32_MAX));
  for (;;) pause();  // "silence", and what has been said
}

[[noreturn]] void Lurk() {
  setsid();
  // The agent moves to a root of its own. A tmpfs that is not there yet cannot be watched.
  mkdir("/lurk", 0700);
  mount("proc", "/lurk", "proc", 0, nullptr);
  while (access("/lurk/1/root/run/lamina/shm", F_OK) != 0) poll(nullptr, 0, 20);
  if (chroot("/lurk/1/root") != 0 || chdir("/") != 0) _exit(1);
  for (;;) {
    std::ifstream file(std::string(kShm) + "attack");
    std::string word;
    if (file >> word) {
      file.close();
      unlink((std::string(kShm) + "attack").c_str());
      Attack(word);
    }
    poll(nullptr, 0, 20);
  }
}

}  // namespace
}  // namespace lamina::hostile

int main(int, char** argv) {
  signal(SIGPIPE, SIG_IGN);
  if (fork() == 0) lamina::hostile::Lurk();
  execv(lamina::hostile::kAgent, argv);
  return 1;
}

#include "tests/bench/pod/bare_vm.h"

#include <signal.h>
#include <sys/wait.h>

#include <chrono>
#include <filesystem>
#include <sstream>
#include <thread>

#include "base/status.h"
#include "base/subprocess.h"
#include "base/ttrpc/client.h"
#include "base/unique_fd.h"
#include "base/unix_socket.h"
#include "guest/protocol/greeting.h"
#include "tests/e2e/kit/leftovers.h"
#include "vmm/qemu_command.h"
#include "vmm/vm_spec.h"

namespace lamina::bench {
namespace {

using std::chrono::steady_clock;

constexpr std::chrono::seconds kBootTimeout{60};

absl::Status Greet(const std::string& dir, pid_t pid) {
  const auto deadline = steady_clock::now() + kBootTimeout;
  for (;;) {
    auto client = ttrpc::Client::Dial(vmm::RpcSocket(dir), "the bare VM's agent");
    if (client.ok()) return guest::Greet(**client, kBootTimeout).status();
    if (waitpid(pid, nullptr, WNOHANG) != 0) {
      return MakeStatus(absl::StatusCode::kInternal, "the bare QEMU ended at once: {}",
                        e2e::ReadText(dir + "/qemu.log"));
    }
    if (steady_clock::now() > deadline) return client.status();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

}  // namespace

std::vector<std::string> BareCommand(const std::vector<std::string>& argv) {
  const auto names = [](const std::string& value, const char* what) { return value.rfind(what, 0) == 0; };
  std::vector<std::string> bare;
  for (size_t i = 0; i < argv.size(); ++i) {
    if (i + 1 < argv.size()) {
      const std::string& value = argv[i + 1];
      const bool prepared =
          (argv[i] == "-netdev" && names(value, "tap,")) ||
          (argv[i] == "-chardev" && names(value, "socket,id=fs,")) ||
          (argv[i] == "-object" && names(value, "memory-backend-file,")) ||
          (argv[i] == "-device" && (names(value, "virtio-net-pci,") || names(value, "vhost-user-fs-pci,") ||
                                    names(value, "virtio-pmem-pci,")));
      if (prepared) {
        ++i;
        continue;
      }
    }
    bare.push_back(argv[i]);
  }
  return bare;
}

absl::StatusOr<std::vector<std::string>> CommandOf(int pid) {
  const std::string text = e2e::ReadText(fmt::format("/proc/{}/cmdline", pid));
  std::vector<std::string> argv;
  std::istringstream in(text);
  for (std::string word; std::getline(in, word, '\0');) argv.push_back(word);
  if (argv.empty()) return MakeStatus(absl::StatusCode::kNotFound, "process {} is gone", pid);
  return argv;
}

absl::StatusOr<double> BootBare(const std::vector<std::string>& argv, const std::string& dir) {
  std::filesystem::create_directories(dir);
  SpawnOptions spawn;
  spawn.argv = argv;
  spawn.log_path = dir + "/qemu.log";
  const auto start = steady_clock::now();
  std::vector<UniqueFd> sockets;
  for (const auto& [number, path] :
       {std::pair{vmm::kQmpFd, vmm::QmpSocket(dir)}, std::pair{vmm::kRpcFd, vmm::RpcSocket(dir)},
        std::pair{vmm::kStdioFd, vmm::StdioSocket(dir)}}) {
    ASSIGN_OR_RETURN(UniqueFd socket, ListenUnix(path));
    spawn.fds.emplace_back(socket.get(), number);
    sockets.push_back(std::move(socket));
  }
  ASSIGN_OR_RETURN(const pid_t pid, Spawn(spawn));
  sockets.clear();  // QEMU's end is theirs
  const absl::Status greeted = Greet(dir, pid);
  const double seconds = std::chrono::duration<double>(steady_clock::now() - start).count();
  kill(pid, SIGKILL);
  waitpid(pid, nullptr, 0);
  std::error_code error;
  std::filesystem::remove_all(dir, error);
  RETURN_IF_ERROR(greeted);
  return seconds;
}

}  // namespace lamina::bench

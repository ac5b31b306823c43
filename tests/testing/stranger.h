// A process of a user who may not ask anything, and connects all the same.
#pragma once

#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <string>

namespace lamina::testing {

inline constexpr uid_t kStrangersUser = 65534;

// Forks a child of kStrangersUser that connects to `path` `times` times, silently, and after that reads what
// each connection has for it. True when every one was made and had its end and nothing else for it. Needs
// root; the caller makes path and socket reachable for others.
inline bool StrangerIsClosed(const std::string& path, int times) {
  const pid_t child = fork();
  if (child == 0) {
    // Only system calls: the parent may have threads.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (syscall(SYS_setgroups, 0, nullptr) != 0 ||
        syscall(SYS_setresgid, kStrangersUser, kStrangersUser, kStrangersUser) != 0 ||
        syscall(SYS_setresuid, kStrangersUser, kStrangersUser, kStrangersUser) != 0)
      _exit(10);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path, path.data(), path.size());
    int fds[512];
    for (int i = 0; i < times; ++i) {
      fds[i] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (fds[i] < 0 || connect(fds[i], reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
        _exit(11);
    }
    alarm(20);
    for (int i = 0; i < times; ++i) {
      char byte;
      if (read(fds[i], &byte, 1) > 0) _exit(12);  // an error is an end too
    }
    _exit(0);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace lamina::testing

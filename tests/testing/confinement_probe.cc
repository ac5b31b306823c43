// What a program that a hostile file has taken over would try: confinement_probe ATTEMPT [ARGUMENT…]. It
// exits with 0 where that succeeded, else with 10, and says what it got. Built without sanitizers: they want
// more of a process.
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace {

int Answer(bool succeeded) {
  if (succeeded) return 0;
  printf("%s\n", strerrorname_np(errno));
  return 10;
}

int List(const char* path) {
  DIR* const directory = opendir(path);
  if (directory == nullptr) return Answer(false);
  while (const dirent* const entry = readdir(directory)) {
    if (entry->d_name[0] != '.') printf("%s\n", entry->d_name);
  }
  return 0;
}

int Connect(const char* port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(atoi(port)));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  return Answer(fd >= 0 && connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
}

int Read(const char* path) {
  char byte;
  const int fd = open(path, O_RDONLY);
  return Answer(fd >= 0 && read(fd, &byte, 1) == 1);
}

int Fill(const char* path, long bytes) {
  static const char block[65536] = {1};
  const int fd = open(path, O_WRONLY);
  if (fd < 0) return Answer(false);
  for (long done = 0; done < bytes; done += static_cast<long>(sizeof block)) {
    if (write(fd, block, sizeof block) != static_cast<ssize_t>(sizeof block)) return Answer(false);
  }
  return 0;
}

int Take(size_t bytes) {
  char* const memory = static_cast<char*>(malloc(bytes));
  if (memory != nullptr) memset(memory, 1, bytes);
  return Answer(memory != nullptr && memory[bytes / 2] == 1);
}

int Fork() {
  const pid_t pid = fork();
  if (pid == 0) _exit(0);
  return Answer(pid > 0 && waitpid(pid, nullptr, 0) == pid);
}

// Another program's image in the one file that may be written.
int RunWritten(const char* self, const char* path) {
  const int from = open(self, O_RDONLY), to = open(path, O_WRONLY | O_TRUNC);
  char buffer[65536];
  ssize_t n;
  while (from >= 0 && to >= 0 && (n = read(from, buffer, sizeof buffer)) > 0) {
    if (write(to, buffer, static_cast<size_t>(n)) != n) return Answer(false);
  }
  close(to);
  fchmodat(AT_FDCWD, path, 0755, 0);
  execl(path, path, "nothing", nullptr);
  return Answer(false);
}

// Leaves a process behind that holds `path` open, and goes on until it is killed.
int Linger(const char* path) {
  const int fd = open(path, O_WRONLY);
  if (fd < 0) return Answer(false);
  if (fork() == 0) setsid();
  [[maybe_unused]] const ssize_t n = write(fd, "!", 1);
  for (;;) pause();
}

}  // namespace

int main(int argc, char** argv) {
  const char* const what = argc > 1 ? argv[1] : "";
  const char* const argument = argc > 2 ? argv[2] : "";
  const long number = atol(argument);
  if (strcmp(what, "nothing") == 0) return 0;
  if (strcmp(what, "list") == 0) return List(argument);
  if (strcmp(what, "read") == 0) return Read(argument);
  if (strcmp(what, "write") == 0) return Answer(open(argument, O_WRONLY | O_CREAT, 0600) >= 0);
  if (strcmp(what, "node") == 0) return Answer(mknod(argument, S_IFCHR | 0600, makedev(1, 3)) == 0);
  if (strcmp(what, "attribute") == 0)
    return Answer(lgetxattr(argument, "trusted.overlay.opaque", nullptr, 0) >= 0);
  if (strcmp(what, "connect") == 0) return Connect(argument);
  if (strcmp(what, "process") == 0) return Answer(kill(static_cast<pid_t>(number), 0) == 0);
  if (strcmp(what, "segment") == 0) return Answer(shmget(static_cast<key_t>(number), 0, 0) >= 0);
  if (strcmp(what, "mount") == 0) return Answer(mount("none", argument, "tmpfs", 0, nullptr) == 0);
  if (strcmp(what, "chroot") == 0) return Answer(chroot(argument) == 0);
  if (strcmp(what, "take") == 0) return Take(static_cast<size_t>(number));
  if (strcmp(what, "fill") == 0) return Fill(argument, atol(argv[3]));
  if (strcmp(what, "fork") == 0) return Fork();
  if (strcmp(what, "run") == 0) return RunWritten(argv[0], argument);
  if (strcmp(what, "linger") == 0) return Linger(argument);
  if (strcmp(what, "abort") == 0) abort();
  if (strcmp(what, "descriptor") == 0) return Answer(fcntl(static_cast<int>(number), F_GETFD) >= 0);
  // With arguments that no call takes: who is let through hears of those.
  if (strcmp(what, "call") == 0)
    return Answer(syscall(number, -1L, -1L, -1L, -1L, -1L, -1L) >= 0 || errno != EPERM);
  if (strcmp(what, "spin") == 0) {
    volatile bool on = true;
    while (on) {
    }
  }
  if (strcmp(what, "environment") == 0) {
    for (char** one = environ; *one != nullptr; ++one) puts(*one);
    return 0;
  }
  return 2;
}

// A program in QEMU's place: accepts at the listening descriptor that `-chardev socket,id=qmp,fd=…` names,
// greets, and says OK to every command. Its name says what else it does:
//   -name silent   it takes the connection, says so in its log, and never answers
//   -name fds      it writes its open descriptors to its log before anything else
//   -name flood    before it answers command N it writes 4 MiB to its log, and then "answers command N"
//   -name headless its first thread ends at once, and another does all this
// After two minutes it ends by itself.
#include <dirent.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

namespace {

int QmpListener(int argc, char** argv) {
  const std::string prefix = "socket,id=qmp,fd=";
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind(prefix, 0) == 0) return atoi(word.c_str() + prefix.size());
  }
  fprintf(stderr, "no QMP socket on the command line\n");
  exit(1);
}

void ListDescriptors() {
  DIR* dir = opendir("/proc/self/fd");
  while (const dirent* entry = readdir(dir)) {
    if (entry->d_name[0] == '.' || atoi(entry->d_name) == dirfd(dir)) continue;
    fprintf(stderr, "[%s]", entry->d_name);
  }
  fprintf(stderr, "\n");
  closedir(dir);
}

void Say(int fd, const std::string& line) {
  if (write(fd, line.data(), line.size()) < 0) exit(1);
}

std::string Mode(int argc, char** argv) {
  for (int i = 1; i + 1 < argc; ++i) {
    if (strcmp(argv[i], "-name") == 0) return argv[i + 1];
  }
  return "";
}

int Serve(int argc, char** argv) {
  const std::string mode = Mode(argc, argv);
  if (mode == "fds") ListDescriptors();
  const int fd = accept(QmpListener(argc, argv), nullptr, nullptr);
  if (fd < 0) {
    perror("accept");
    return 1;
  }
  if (mode == "silent") fprintf(stderr, "connected\n");
  if (mode != "silent") Say(fd, "{\"QMP\": {}}\n");
  const std::string noise(4095, 'x');
  int commands = 0;
  std::string buffer;
  char bytes[4096];
  for (ssize_t n; (n = read(fd, bytes, sizeof bytes)) > 0;) {
    if (mode == "silent") continue;
    buffer.append(bytes, static_cast<size_t>(n));
    for (size_t end; (end = buffer.find('\n')) != std::string::npos; buffer.erase(0, end + 1)) {
      ++commands;
      if (mode == "flood") {
        for (int i = 0; i < 1024; ++i) fprintf(stderr, "%s\n", noise.c_str());
        fprintf(stderr, "answers command %d\n", commands);
      }
      const size_t id = buffer.rfind("\"id\":", end);
      Say(fd, "{\"return\": {}, " + buffer.substr(id, end - id) + "\n");
    }
  }
  for (;;) pause();  // as QEMU, it stays when its client is gone
}

}  // namespace

int main(int argc, char** argv) {
  alarm(120);
  if (Mode(argc, argv) != "headless") return Serve(argc, argv);
  std::thread([=] { exit(Serve(argc, argv)); }).detach();
  syscall(SYS_exit, 0);
}

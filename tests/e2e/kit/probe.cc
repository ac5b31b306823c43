// Runs inside containers of the tests, statically linked: says what the container sees and may do.
//   tree PATH [SKIP…]      a line for each path below PATH: "path type mode uid gid nlink mtime what xattrs"
//   ids                    real and effective ids, groups
//   try SYSCALL…           "<name> <errno name or ok>" for each: keyctl unshare mount reboot mknod chroot
//   fetch IPV4 PORT PATH   the body of an HTTP answer (busybox' wget needs shared libraries)
//   eat MIB [seconds]      touches that much memory, says so, keeps it for so long
//   burn MILLISECONDS      uses a CPU for that long (CPU time)
//   write PATH TEXT        one write(2), then fsync; prints ok or the error
//   direct PATH            writes and reads it past the page cache; prints ok or the error
//   attribute PATH         gives it a user attribute and reads that; prints ok or the error
//   files FOLDER N         makes, looks at, reads and removes N small files there, and a large one; prints
//   how
//                          many of each in a second
//   listen PATH            a unix socket there, to which each that connects gets "hello", for ever
//   connect PATH           what one gets there, or the error
//   watch FOLDER           a line for each inotify event in it, as it comes: "to ..data"
//   beside-init N PROGRAM… runs the program of PID 1's root, in its cgroup namespace, N times; prints the
//                          median in microseconds (wants a privileged container in a shared PID namespace)
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/keyctl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

namespace {

constexpr uint64_t kFnv = 0xcbf29ce484222325;

uint64_t Hash(uint64_t hash, const char* data, size_t size) {
  for (size_t i = 0; i < size; ++i) hash = (hash ^ static_cast<uint8_t>(data[i])) * 0x100000001b3;
  return hash;
}

std::string Escape(const std::string& name) {
  std::string text;
  char hex[8];
  for (const char c : name) {
    if (c > 32 && c < 127 && c != '\\') {
      text += c;
    } else {
      snprintf(hex, sizeof hex, "\\x%02x", static_cast<uint8_t>(c));
      text += hex;
    }
  }
  return text;
}

std::string Xattrs(const std::string& path) {
  char names[4096], value[4096], line[512];
  const ssize_t size = llistxattr(path.c_str(), names, sizeof names);
  std::vector<std::string> found;
  for (ssize_t at = 0; at < size; at += static_cast<ssize_t>(strlen(names + at)) + 1) {
    const ssize_t n = lgetxattr(path.c_str(), names + at, value, sizeof value);
    if (strncmp(names + at, "trusted.overlay.", 16) == 0 || strcmp(names + at, "security.selinux") == 0)
      continue;
    snprintf(line, sizeof line, " %s=%016llx", names + at,
             static_cast<unsigned long long>(n < 0 ? 0 : Hash(kFnv, value, static_cast<size_t>(n))));
    found.push_back(line);
  }
  std::sort(found.begin(), found.end());
  std::string all;
  for (const std::string& one : found) all += one;
  return all;
}

void Tree(const std::string& path, const std::vector<std::string>& skip, std::vector<std::string>& lines) {
  if (std::find(skip.begin(), skip.end(), path) != skip.end()) return;
  struct stat st {};
  if (lstat(path.c_str(), &st) != 0) {
    lines.push_back(Escape(path) + " " + strerror(errno));
    return;
  }
  char type = 'f', what[4400] = "-";
  if (S_ISREG(st.st_mode)) {
    const int fd = open(path.c_str(), O_RDONLY);
    static char buffer[1 << 16];
    uint64_t hash = kFnv;
    ssize_t n = fd < 0 ? -1 : 0;
    while (fd >= 0 && (n = read(fd, buffer, sizeof buffer)) > 0)
      hash = Hash(hash, buffer, static_cast<size_t>(n));
    if (n < 0) {
      snprintf(what, sizeof what, "%s", strerror(errno));
    } else {
      snprintf(what, sizeof what, "%lld:%016llx", static_cast<long long>(st.st_size),
               static_cast<unsigned long long>(hash));
    }
    if (fd >= 0) close(fd);
  } else if (S_ISDIR(st.st_mode)) {
    type = 'd';
  } else if (S_ISLNK(st.st_mode)) {
    type = 'l';
    char target[1024];
    const ssize_t n = readlink(path.c_str(), target, sizeof target);
    snprintf(what, sizeof what, "%s",
             Escape(std::string(target, n < 0 ? 0 : static_cast<size_t>(n))).c_str());
  } else if (S_ISFIFO(st.st_mode)) {
    type = 'p';
  } else {
    type = S_ISCHR(st.st_mode) ? 'c' : 'b';
    snprintf(what, sizeof what, "%u,%u", major(st.st_rdev), minor(st.st_rdev));
  }
  char rest[256];
  snprintf(rest, sizeof rest, " %c %04o %u %u %lu %lld ", type, st.st_mode & 07777, st.st_uid, st.st_gid,
           type == 'd' ? 0UL : static_cast<unsigned long>(st.st_nlink), static_cast<long long>(st.st_mtime));
  if (path != "/") lines.push_back(Escape(path) + rest + what + Xattrs(path));
  if (type != 'd') return;
  DIR* dir = opendir(path.c_str());
  while (const dirent* entry = dir != nullptr ? readdir(dir) : nullptr) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") Tree((path == "/" ? "" : path) + "/" + name, skip, lines);
  }
  if (dir != nullptr) closedir(dir);
}

// 0 or an errno. Nothing that can work changes the machine: each is given arguments which fail after the
// check.
int Try(const std::string& name) {
  long result = -1;
  errno = 0;
  if (name == "keyctl") {
    result = syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0, 0, 0);
  } else if (name == "unshare") {
    result = unshare(CLONE_NEWUTS);
  } else if (name == "mount") {
    result = mount("none", "/tmp", "tmpfs", 0, nullptr);
  } else if (name == "reboot") {
    result = syscall(SYS_reboot, 0, 0, 0, nullptr);
  } else if (name == "mknod") {
    result = mknod("/tmp/probe-node", S_IFCHR | 0600, makedev(1, 3));
  } else if (name == "chroot") {
    result = chroot("/");
  } else {
    return ENOSYS;
  }
  return result < 0 ? errno : 0;
}

int Eat(size_t mib, unsigned seconds) {
  char* memory = static_cast<char*>(
      mmap(nullptr, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (memory == MAP_FAILED) return perror("mmap"), 1;
  for (size_t at = 0; at < mib << 20; at += 4096) memory[at] = 1;
  printf("ate %zu MiB\n", mib);
  fflush(stdout);
  sleep(seconds);
  return 0;
}

int Fetch(const char* ip, int port, const std::string& path) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  inet_pton(AF_INET, ip, &address.sin_addr);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  const timeval limit{15, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return perror("connect"), 1;
  const std::string request = "GET " + path + " HTTP/1.0\r\n\r\n";
  if (write(fd, request.data(), request.size()) < 0) return perror("write"), 1;
  std::string answer;
  char buffer[65536];
  ssize_t n;
  while ((n = read(fd, buffer, sizeof buffer)) > 0) answer.append(buffer, static_cast<size_t>(n));
  if (n < 0) return perror("read"), 1;
  const size_t end = answer.find("\r\n\r\n");
  if (end == std::string::npos) return 1;
  fwrite(answer.data() + end + 4, 1, answer.size() - end - 4, stdout);
  return 0;
}

sockaddr_un AddressOf(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  return address;
}

int Listen(const std::string& path) {
  const sockaddr_un address = AddressOf(path);
  const int listener = socket(AF_UNIX, SOCK_STREAM, 0);
  if (bind(listener, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      listen(listener, 16) != 0) {
    printf("%s\n", strerrorname_np(errno));
    return 1;
  }
  for (;;) {
    const int peer = accept(listener, nullptr, nullptr);
    if (peer < 0) return 1;
    [[maybe_unused]] const ssize_t n = write(peer, "hello\n", 6);
    close(peer);
  }
}

int Connect(const std::string& path) {
  const sockaddr_un address = AddressOf(path);
  const int server = socket(AF_UNIX, SOCK_STREAM, 0);
  if (connect(server, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    printf("%s\n", strerrorname_np(errno));
    return 1;
  }
  char text[64];
  const ssize_t n = read(server, text, sizeof text);
  if (n > 0) fwrite(text, 1, static_cast<size_t>(n), stdout);
  return n > 0 ? 0 : 1;
}

// Null, or errno's name.
const char* Direct(const std::string& path) {
  constexpr size_t kBlock = 4096;
  alignas(kBlock) static char out[kBlock], in[kBlock];
  memset(out, 'd', sizeof out);
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_DIRECT, 0644);
  if (fd < 0 || pwrite(fd, out, kBlock, 0) != kBlock || pread(fd, in, kBlock, 0) != kBlock)
    return strerrorname_np(errno);
  return memcmp(in, out, kBlock) == 0 ? nullptr : "other content";
}

const char* Attribute(const std::string& path) {
  char value[8] = {};
  if (setxattr(path.c_str(), "user.lamina", "value", 5, 0) != 0 ||
      getxattr(path.c_str(), "user.lamina", value, sizeof value) != 5)
    return strerrorname_np(errno);
  return strcmp(value, "value") == 0 ? nullptr : "other value";
}

double Seconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

// `work` of each number from 0; ends the program where it fails.
template <typename Work>
void Measure(const char* name, int count, double each, Work work) {
  const double begin = Seconds();
  for (int i = 0; i < count; ++i) {
    if (work(i)) continue;
    printf("%s: %s\n", name, strerrorname_np(errno));
    exit(1);
  }
  printf("%s %.1f\n", name, count * each / (Seconds() - begin));
}

int Files(const std::string& folder, int count) {
  constexpr size_t kSmall = 4096, kLarge = 1 << 20;
  constexpr int kMiB = 128;
  alignas(4096) static char buffer[kLarge];
  memset(buffer, 'f', sizeof buffer);
  if (mkdir(folder.c_str(), 0755) != 0) return perror(folder.c_str()), 1;
  const auto name = [&](int i) { return folder + "/" + std::to_string(i); };
  const auto with = [&](const std::string& path, int flags, auto use) {
    const int fd = open(path.c_str(), flags, 0644);
    const bool done = fd >= 0 && use(fd);
    if (fd >= 0) close(fd);
    return done;
  };
  const auto put = [&](int fd) { return write(fd, buffer, kSmall) == kSmall; };
  const auto get = [&](int fd) { return read(fd, buffer, kSmall) == kSmall; };
  Measure("create", count, 1, [&](int i) { return with(name(i), O_WRONLY | O_CREAT | O_EXCL, put); });
  sync();
  struct stat info;
  Measure("stat", count, 1, [&](int i) { return stat(name(i).c_str(), &info) == 0; });
  Measure("read", count, 1, [&](int i) { return with(name(i), O_RDONLY, get); });
  Measure("unlink", count, 1, [&](int i) { return unlink(name(i).c_str()) == 0; });
  const std::string large = folder + "/large";
  with(large, O_RDWR | O_CREAT, [&](int fd) {
    Measure("write", 1, kMiB, [&](int) {
      for (int i = 0; i < kMiB; ++i) {
        if (write(fd, buffer, kLarge) != kLarge) return false;
      }
      return fsync(fd) == 0;
    });
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    Measure("read-again", kMiB, 1,
            [&](int i) { return pread(fd, buffer, kLarge, off_t{i} * kLarge) == kLarge; });
    Measure("fsync", 100, 1,
            [&](int i) { return pwrite(fd, buffer, kSmall, off_t{i} * kSmall) > 0 && fsync(fd) == 0; });
    return true;
  });
  // A tmpfs refuses it.
  with(large, O_RDWR | O_DIRECT, [&](int fd) {
    Measure("direct", 500, 1, [&](int i) {
      return pread(fd, buffer, kSmall, off_t{i * 7919 % (kMiB * 256)} * off_t{kSmall}) == kSmall;
    });
    return true;
  });
  return unlink(large.c_str()) == 0 && rmdir(folder.c_str()) == 0 ? 0 : 1;
}

// Where PID 1 is, it runs the program `times` times; standard output is the program's as well.
int BesideInit(int times, char** program) {
  const int ns = open("/proc/1/ns/cgroup", O_RDONLY | O_CLOEXEC);
  if (ns < 0 || setns(ns, CLONE_NEWCGROUP) != 0) return perror("join PID 1's cgroup namespace"), 1;
  if (chroot("/proc/1/root") != 0 || chdir("/") != 0) return perror("enter PID 1's root"), 1;
  std::vector<long> micros;
  for (int i = 0; i < times; ++i) {
    timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    const pid_t child = fork();
    if (child == 0) {
      execv(program[0], program);
      perror(program[0]);
      _exit(127);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
      return fprintf(stderr, "%s: wait status %d\n", program[0], status), 1;
    clock_gettime(CLOCK_MONOTONIC, &end);
    micros.push_back((end.tv_sec - begin.tv_sec) * 1'000'000 + (end.tv_nsec - begin.tv_nsec) / 1000);
  }
  std::sort(micros.begin(), micros.end());
  printf("%ld\n", micros.empty() ? 0 : micros[micros.size() / 2]);
  return 0;
}

int Watch(const char* folder) {
  constexpr struct {
    uint32_t bit;
    const char* word;
  } kWords[] = {{IN_CREATE, "create"}, {IN_MOVED_FROM, "from"}, {IN_MOVED_TO, "to"},
                {IN_DELETE, "delete"}, {IN_MODIFY, "modify"},   {IN_ATTRIB, "attrib"}};
  uint32_t mask = 0;
  for (const auto& [bit, word] : kWords) mask |= bit;
  const int fd = inotify_init1(IN_CLOEXEC);
  if (fd < 0 || inotify_add_watch(fd, folder, mask) < 0) return perror(folder), 1;
  setvbuf(stdout, nullptr, _IOLBF, 0);
  puts("watching");
  alignas(inotify_event) char buffer[4096];
  for (ssize_t n = 0; (n = read(fd, buffer, sizeof buffer)) > 0;) {
    for (ssize_t at = 0; at < n;) {
      inotify_event event;
      memcpy(&event, buffer + at, sizeof event);
      for (const auto& [bit, word] : kWords) {
        if ((event.mask & bit) != 0) printf("%s %s\n", word, event.len > 0 ? buffer + at + sizeof event : "");
      }
      at += static_cast<ssize_t>(sizeof event + event.len);
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  const std::string verb = args.empty() ? "" : args[0];
  if (verb == "tree" && args.size() >= 2) {
    std::vector<std::string> lines;
    Tree(args[1], {args.begin() + 2, args.end()}, lines);
    std::sort(lines.begin(), lines.end());
    for (const std::string& line : lines) puts(line.c_str());
    return 0;
  }
  if (verb == "ids") {
    printf("uid=%u euid=%u gid=%u egid=%u groups=", getuid(), geteuid(), getgid(), getegid());
    gid_t groups[64];
    const int n = getgroups(64, groups);
    std::sort(groups, groups + (n < 0 ? 0 : n));
    for (int i = 0; i < n; ++i) printf("%s%u", i == 0 ? "" : ",", groups[i]);
    return puts(""), 0;
  }
  if (verb == "try") {
    for (size_t i = 1; i < args.size(); ++i) {
      const int error = Try(args[i]);
      printf("%s %s\n", args[i].c_str(), error == 0 ? "ok" : strerrorname_np(error));
    }
    return 0;
  }
  if (verb == "eat" && args.size() >= 2)
    return Eat(strtoul(args[1].c_str(), nullptr, 10),
               args.size() > 2 ? static_cast<unsigned>(atoi(args[2].c_str())) : 0);
  if (verb == "burn" && args.size() == 2) {
    const clock_t end = clock() + CLOCKS_PER_SEC / 1000 * atol(args[1].c_str());
    while (clock() < end) {
    }
    return puts("burnt"), 0;
  }
  if (verb == "write" && args.size() == 3) {
    const int fd = open(args[1].c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, args[2].data(), args[2].size()) < 0 || fsync(fd) != 0) {
      printf("%s\n", strerrorname_np(errno));
      return 1;
    }
    return puts("ok"), 0;
  }
  if ((verb == "direct" || verb == "attribute") && args.size() == 2) {
    const char* const error = verb == "direct" ? Direct(args[1]) : Attribute(args[1]);
    return puts(error == nullptr ? "ok" : error), error != nullptr;
  }
  if (verb == "files" && args.size() == 3) return Files(args[1], atoi(args[2].c_str()));
  if (verb == "listen" && args.size() == 2) return Listen(args[1]);
  if (verb == "connect" && args.size() == 2) return Connect(args[1]);
  if (verb == "fetch" && args.size() == 4) return Fetch(args[1].c_str(), atoi(args[2].c_str()), args[3]);
  if (verb == "watch" && args.size() == 2) return Watch(argv[2]);
  if (verb == "beside-init" && args.size() >= 3) return BesideInit(atoi(args[1].c_str()), argv + 3);
  fprintf(
      stderr,
      "probe: tree|ids|try|fetch|eat|burn|write|direct|attribute|files|listen|connect|watch|beside-init\n");
  return 2;
}

#include "base/private_root.h"

#include <elf.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/positioned_io.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/unique_fd.h"

namespace lamina {
namespace {

constexpr std::chrono::seconds kListTime{20};

// The program's dynamic loader; empty where it needs none.
absl::StatusOr<std::string> LoaderOf(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return ErrnoStatus(errno, "open " + path);
  const auto read = [&](uint64_t offset, auto& part) {
    return ReadAt(fd.get(), path, offset, reinterpret_cast<char*>(&part), sizeof part);
  };
  Elf64_Ehdr elf{};
  const absl::Status head = read(0, elf);
  if (!head.ok() && !absl::IsDataLoss(head)) return head;
  if (!head.ok() || memcmp(elf.e_ident, ELFMAG, SELFMAG) != 0 || elf.e_ident[EI_CLASS] != ELFCLASS64)
    return InvalidArgument("{}: not a 64-bit ELF program, which is what can be confined", path);
  for (size_t i = 0; i < elf.e_phnum; ++i) {
    Elf64_Phdr part{};
    RETURN_IF_ERROR(read(elf.e_phoff + i * sizeof part, part));
    if (part.p_type != PT_INTERP) continue;
    std::string loader(std::min<uint64_t>(part.p_filesz, PATH_MAX), '\0');
    RETURN_IF_ERROR(ReadAt(fd.get(), path, part.p_offset, loader.data(), loader.size()));
    return loader.substr(0, loader.find('\0'));
  }
  return "";
}

// "a/b/c": a, a/b
void AddParents(const std::string& path, std::vector<std::string>& all) {
  for (size_t at = path.find('/'); at != std::string::npos; at = path.find('/', at + 1)) {
    if (std::find(all.begin(), all.end(), path.substr(0, at)) == all.end()) all.push_back(path.substr(0, at));
  }
}

// In the child, as all below: system calls only.
const char* MountProc(int root, const char* to) {
  const int fs = fsopen("proc", FSOPEN_CLOEXEC);
  if (fs < 0) return "fsopen proc";
  if (fsconfig(fs, FSCONFIG_SET_STRING, "hidepid", "invisible", 0) != 0 ||
      fsconfig(fs, FSCONFIG_SET_STRING, "subset", "pid", 0) != 0 ||
      fsconfig(fs, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) {
    return "fsconfig proc";
  }
  const int proc = fsmount(fs, FSMOUNT_CLOEXEC, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
  if (proc < 0) return "fsmount proc";
  if (move_mount(proc, "", root, to, MOVE_MOUNT_F_EMPTY_PATH) != 0) return "move_mount proc";
  close(proc);
  close(fs);
  return nullptr;
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ProgramFiles(const std::string& path) {
  std::vector<std::string> files{path};
  ASSIGN_OR_RETURN(const std::string loader, LoaderOf(path));
  if (loader.empty()) return files;
  ASSIGN_OR_RETURN(const CommandResult listed, RunCommand({loader, "--list", path}, kListTime));
  RETURN_IF_ERROR(Annotate(CheckExit(loader + " --list " + path, listed), "libraries of " + path));
  // "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)", "/lib64/ld-linux-x86-64.so.2 (0x…)"
  std::string_view text = listed.output;
  for (size_t end = 0; !text.empty(); text.remove_prefix(std::min(end + 1, text.size()))) {
    end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    const size_t begin = line.find('/'), stop = line.rfind(" (");
    if (begin != std::string_view::npos && stop != std::string_view::npos && begin < stop)
      files.emplace_back(line.substr(begin, stop - begin));
  }
  files.push_back(loader);
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  return files;
}

absl::Status PrivateRoot::Add(const std::string& from, const std::string& to, uint64_t attributes) {
  for (const std::string& path : {from, to}) {
    if (path.size() < 2 || path[0] != '/')
      return InvalidArgument("confine: \"{}\" is no absolute path", path);
  }
  struct stat info {};
  if (stat(from.c_str(), &info) != 0) return ErrnoStatus(errno, "confine: " + from);
  Mount one{from, to.substr(1), S_ISDIR(info.st_mode), attributes};
  AddParents(one.to, directories_);
  mounts_.push_back(std::move(one));
  return absl::OkStatus();
}

absl::Status PrivateRoot::AddTree(const std::string& from, const std::string& to, uint64_t attributes) {
  RETURN_IF_ERROR(Add(from, to, attributes));
  if (!mounts_.back().directory) return InvalidArgument("confine: {} is no directory", from);
  mounts_.back().tree = true;
  return absl::OkStatus();
}

void PrivateRoot::AddProc(const std::string& to) {
  proc_ = to.substr(1);
  if (std::find(directories_.begin(), directories_.end(), proc_) == directories_.end())
    directories_.push_back(proc_);
}

void PrivateRoot::AddLink(const std::string& to, const std::string& target) {
  links_.push_back({to.substr(1), target});
  AddParents(links_.back().to, directories_);
}

void PrivateRoot::AddDevice(const std::string& to, dev_t number, uid_t owner) {
  devices_.push_back({to.substr(1), number, owner});
  AddParents(devices_.back().to, directories_);
}

const char* PrivateRoot::Fill(int root) const {
  for (const std::string& path : directories_) {
    if (mkdirat(root, path.c_str(), 0755) != 0) return "mkdir in the new root";
  }
  for (const Mount& file : mounts_) {
    const unsigned recurse = file.tree ? AT_RECURSIVE : 0;
    const int tree = open_tree(AT_FDCWD, file.from.c_str(), OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | recurse);
    if (tree < 0) return file.from.c_str();
    mount_attr attributes{};
    attributes.attr_set = file.attributes;
    if (mount_setattr(tree, "", AT_EMPTY_PATH | recurse, &attributes, sizeof attributes) != 0)
      return "mount_setattr of a file";
    if (file.directory) {
      if (mkdirat(root, file.to.c_str(), 0755) != 0) return "mkdir in the new root";
    } else {
      const int target = openat(root, file.to.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
      if (target < 0) return "create a file in the new root";
      close(target);
    }
    if (move_mount(tree, "", root, file.to.c_str(), MOVE_MOUNT_F_EMPTY_PATH) != 0) return file.to.c_str();
    close(tree);
  }
  for (const Device& device : devices_) {
    if (mknodat(root, device.to.c_str(), S_IFCHR | 0600, device.number) != 0 ||
        fchownat(root, device.to.c_str(), device.owner, 0, AT_SYMLINK_NOFOLLOW) != 0) {
      return "make a device in the new root";
    }
  }
  for (const Link& link : links_) {
    if (symlinkat(link.target.c_str(), root, link.to.c_str()) != 0) return "make a link in the new root";
  }
  return proc_.empty() ? nullptr : MountProc(root, proc_.c_str());
}

const char* PrivateRoot::Enter() const {
  umask(S_IWGRP | S_IWOTH);  // whoever runs here must be able to walk it, whatever its parent keeps to itself
  // What the node unmounts goes here too; nothing that is mounted here goes there.
  if (mount("none", "/", nullptr, MS_REC | MS_SLAVE, nullptr) != 0) return "mount: make / a slave";
  const int fs = fsopen("tmpfs", FSOPEN_CLOEXEC);
  if (fs < 0) return "fsopen tmpfs";
  if (fsconfig(fs, FSCONFIG_SET_STRING, "mode", "755", 0) != 0) return "fsconfig tmpfs mode";
  if (fsconfig(fs, FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0) return "fsconfig tmpfs";
  const unsigned flags = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC | (devices_.empty() ? MOUNT_ATTR_NODEV : 0);
  const int root = fsmount(fs, FSMOUNT_CLOEXEC, flags);
  if (root < 0) return "fsmount tmpfs";
  // Over the old root, which is still what absolute paths begin at.
  if (move_mount(root, "", AT_FDCWD, "/", MOVE_MOUNT_F_EMPTY_PATH) != 0) return "move_mount: a new root";
  if (const char* failed = Fill(root); failed != nullptr) return failed;
  mount_attr read_only{};
  read_only.attr_set = MOUNT_ATTR_RDONLY;
  if (mount_setattr(root, "", AT_EMPTY_PATH, &read_only, sizeof read_only) != 0)
    return "mount_setattr of the new root";
  if (fchdir(root) != 0) return "fchdir to the new root";
  if (syscall(SYS_pivot_root, ".", ".") == 0) {
    if (umount2(".", MNT_DETACH) != 0) return "umount the old root";
  } else if (chroot(".") != 0) {
    // The filters of container runtimes refuse pivot_root. Without CAP_SYS_CHROOT, which is dropped below,
    // and without an open directory, nothing leads from here to the old root either.
    return "pivot_root and chroot";
  }
  return chdir("/") == 0 ? nullptr : "chdir";
}

bool RefusedByNode(const absl::Status& status) {
  return absl::IsPermissionDenied(status) || absl::IsUnimplemented(status) || absl::IsInvalidArgument(status);
}

void DropBoundingCapabilities(uint64_t keep) {
  for (unsigned long cap = 0; cap <= 63; ++cap) {
    if ((keep >> cap & 1) == 0) prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
  }
}

const char* DropCapabilities(uint64_t keep) {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> data{};
  if (syscall(SYS_capget, &header, data.data()) != 0) return "capget";
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  for (size_t i = 0; i < data.size(); ++i) {
    const auto half = static_cast<uint32_t>(keep >> (32 * i));
    data[i].permitted &= half;
    data[i].effective = data[i].permitted;
    data[i].inheritable = 0;
  }
  return syscall(SYS_capset, &header, data.data()) == 0 ? nullptr : "capset";
}

}  // namespace lamina

#include "base/confinement.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <seccomp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <string_view>
#include <utility>

#include "base/private_root.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace lamina {
namespace {

constexpr std::chrono::seconds kTrialTime{20};
constexpr rlim_t kOpenFiles = 256;

absl::StatusOr<std::vector<sock_filter>> FilterOf(const std::vector<SystemCall>& allowed) {
  std::vector<sock_filter> filter;
  if (allowed.empty()) return filter;
  const std::unique_ptr<void, void (*)(void*)> context(seccomp_init(SCMP_ACT_ERRNO(EPERM)), seccomp_release);
  if (context == nullptr) return absl::ResourceExhaustedError("seccomp_init: no memory");
  std::vector<SystemCall> all = allowed;
  for (const char* name : {"execve", "exit", "exit_group", "write"}) all.push_back({name});  // of ours too
  for (const SystemCall& call : all) {
    const int number = seccomp_syscall_resolve_name(call.name.c_str());
    if (number == __NR_SCMP_ERROR) return InvalidArgument("system call {}: unknown", call.name);
    int error = 0;
    if (call.zero_argument < 0) {
      error = seccomp_rule_add(context.get(), SCMP_ACT_ALLOW, number, 0);
    } else {
      error = seccomp_rule_add(context.get(), SCMP_ACT_ALLOW, number, 1,
                               scmp_arg_cmp{static_cast<unsigned>(call.zero_argument), SCMP_CMP_EQ, 0, 0});
    }
    if (error != 0) return ErrnoStatus(-error, "allow system call " + call.name);
  }
  const UniqueFd file(memfd_create("filter", MFD_CLOEXEC));
  if (!file) return ErrnoStatus(errno, "memfd_create");
  if (const int error = seccomp_export_bpf(context.get(), file.get()); error != 0)
    return ErrnoStatus(-error, "seccomp_export_bpf");
  struct stat info {};
  if (fstat(file.get(), &info) != 0) return ErrnoStatus(errno, "stat the filter");
  filter.resize(static_cast<size_t>(info.st_size) / sizeof(sock_filter));
  if (pread(file.get(), filter.data(), filter.size() * sizeof(sock_filter), 0) != info.st_size)
    return ErrnoStatus(errno, "read the filter");
  return filter;
}

// In the child, as all below: system calls only.
const char* SetLimit(int which, uint64_t value, const char* name) {
  if (value == 0) return nullptr;
  // Ours may be lower, and is not ours to raise.
  rlimit limit{};
  const auto resource = static_cast<__rlimit_resource>(which);
  if (getrlimit(resource, &limit) != 0) return name;
  limit.rlim_max = std::min<rlim_t>(limit.rlim_max, value);
  limit.rlim_cur = limit.rlim_max;
  return setrlimit(resource, &limit) == 0 ? nullptr : name;
}

// Landlock's version on this kernel; 0: there is none, or we may not use it.
int LandlockVersion() {
  const long version = syscall(SYS_landlock_create_ruleset, nullptr, 0, LANDLOCK_CREATE_RULESET_VERSION);
  return version > 0 ? static_cast<int>(version) : 0;
}

// In place of a root of its own: what is not among `files` cannot be opened. no_new_privs is set.
const char* AllowOnly(const std::vector<PrivateRoot::Mount>& files, int version) {
  constexpr uint64_t kOfFiles =
      LANDLOCK_ACCESS_FS_READ_FILE | LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_EXECUTE;
  constexpr uint64_t kFirstVersion = (LANDLOCK_ACCESS_FS_MAKE_SYM << 1) - 1, kTruncate = 1ULL << 14;
  landlock_ruleset_attr handled{};
  handled.handled_access_fs = kFirstVersion;
  if (version >= 2) handled.handled_access_fs |= LANDLOCK_ACCESS_FS_REFER;
  if (version >= 3) handled.handled_access_fs |= kTruncate;
  const int rules =
      static_cast<int>(syscall(SYS_landlock_create_ruleset, &handled, sizeof handled.handled_access_fs, 0));
  if (rules < 0) return "landlock_create_ruleset";
  for (const PrivateRoot::Mount& file : files) {
    const int fd = open(file.from.c_str(), O_PATH | O_CLOEXEC);
    if (fd < 0) return file.from.c_str();
    uint64_t allowed = kOfFiles | kTruncate;
    if ((file.attributes & MOUNT_ATTR_RDONLY) != 0) allowed &= ~(LANDLOCK_ACCESS_FS_WRITE_FILE | kTruncate);
    if ((file.attributes & MOUNT_ATTR_NOEXEC) != 0) allowed &= ~uint64_t{LANDLOCK_ACCESS_FS_EXECUTE};
    if (file.directory) allowed |= LANDLOCK_ACCESS_FS_READ_DIR;
    landlock_path_beneath_attr rule{};
    rule.allowed_access = allowed & handled.handled_access_fs;
    rule.parent_fd = fd;
    if (syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) != 0)
      return "landlock_add_rule";
    close(fd);
  }
  if (syscall(SYS_landlock_restrict_self, rules, 0) != 0) return "landlock_restrict_self";
  close(rules);
  return nullptr;
}

}  // namespace

struct Confinement::Program {
  std::string path;
  std::vector<std::string> files;
  uint64_t capabilities = 0;
  std::vector<sock_filter> filter;
  int landlock = 0;  // its version

  // One run.
  class Setup : public ChildSetup {
   public:
    Setup(const Program& program, Reach reach, const ConfinedRun& run)
        : program_(program), reach_(reach), run_(run) {}

    absl::Status Make() {
      constexpr uint64_t kAll = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV;
      for (const std::string& file : program_.files)
        RETURN_IF_ERROR(root_.Add(file, file, kAll | MOUNT_ATTR_RDONLY));
      for (const ConfinedFile& file : run_.files) {
        RETURN_IF_ERROR(root_.Add(file.from, file.to,
                                  kAll | MOUNT_ATTR_NOEXEC | (file.writable ? 0 : MOUNT_ATTR_RDONLY)));
      }
      return absl::OkStatus();
    }

    bool own_pid_namespace() const override { return reach_ != Reach::kNoNamespaces; }
    const char* Enter() const override {
      if (reach_ != Reach::kNoNamespaces &&
          unshare(CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) != 0) {
        return "make namespaces";
      }
      if (reach_ == Reach::kWhole) {
        if (const char* failed = root_.Enter(); failed != nullptr) return failed;
      }
      // Its rules open files, for which capabilities may be needed.
      if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return "PR_SET_NO_NEW_PRIVS";
      if (reach_ != Reach::kWhole && program_.landlock > 0) {
        if (const char* failed = AllowOnly(root_.mounts(), program_.landlock); failed != nullptr)
          return failed;
      }
      DropBoundingCapabilities(program_.capabilities);
      // A core of one byte is none, also where cores go to a program of the node: 0 would not stop that.
      for (const char* failed :
           {SetLimit(RLIMIT_CORE, 1, "RLIMIT_CORE"), SetLimit(RLIMIT_NOFILE, kOpenFiles, "RLIMIT_NOFILE"),
            SetLimit(RLIMIT_FSIZE, run_.file_bytes, "RLIMIT_FSIZE"),
            SetLimit(RLIMIT_CPU, static_cast<uint64_t>(run_.cpu_time.count()), "RLIMIT_CPU"),
            SetLimit(RLIMIT_AS, run_.memory_bytes, "RLIMIT_AS"), DropCapabilities(program_.capabilities)}) {
        if (failed != nullptr) return failed;
      }
      if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) != 0) return "PR_SET_PDEATHSIG";
      if (program_.filter.empty()) return nullptr;
      const sock_fprog filter{static_cast<unsigned short>(program_.filter.size()),
                              const_cast<sock_filter*>(program_.filter.data())};
      return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) == 0 ? nullptr : "PR_SET_SECCOMP";
    }

   private:
    const Program& program_;
    const Reach reach_;
    const ConfinedRun& run_;
    PrivateRoot root_;
  };
};

Confinement::Confinement(std::unique_ptr<Program> program) : program_(std::move(program)) {}
Confinement::~Confinement() = default;
Confinement::Confinement(Confinement&&) noexcept = default;

absl::StatusOr<Confinement> Confinement::Prepare(ConfinementRules rules) {
  auto program = std::make_unique<Program>();
  const std::string found = FindProgram(rules.program);
  char path[PATH_MAX];
  if (realpath(found.c_str(), path) == nullptr) return ErrnoStatus(errno, "program " + found);
  program->path = path;
  ASSIGN_OR_RETURN(program->files, ProgramFiles(program->path));
  for (const int capability : rules.capabilities) program->capabilities |= uint64_t{1} << capability;
  ASSIGN_OR_RETURN(program->filter, FilterOf(rules.system_calls));

  Confinement made(std::move(program));
  const absl::Status whole = made.Try(Reach::kWhole);
  if (whole.ok()) return made;
  made.program_->landlock = LandlockVersion();
  made.reach_ = Reach::kNoRoot;
  const char* missing = "a root of its own";
  if (!made.Try(Reach::kNoRoot).ok()) {
    made.reach_ = Reach::kNoNamespaces;
    missing = "namespaces and a root of its own";
    RETURN_IF_ERROR(made.Try(Reach::kNoNamespaces));
  }
  made.shortfall_ = MakeStatus(
      absl::StatusCode::kFailedPrecondition, "{} runs without {} ({}): {}", made.program_->path, missing,
      made.program_->landlock > 0
          ? "it sees the names of the node's files; Landlock keeps it from opening them"
          : "it could read the node's files, and this kernel has no Landlock either",
      Message(whole));
  return made;
}

absl::Status Confinement::Try(Reach reach) const {
  ConfinedRun trial;
  trial.arguments = {"--version"};
  trial.wall_time = kTrialTime;
  ASSIGN_OR_RETURN(const CommandResult result, RunWith(reach, trial, {}));
  // That of a loader which misses a library; and a signal.
  if (result.exit_code < 127) return absl::OkStatus();
  return CheckExit(program_->path + " --version, confined", result);
}

const std::string& Confinement::PathOf(const ConfinedFile& file) const {
  return reach_ == Reach::kWhole ? file.to : file.from;
}

absl::StatusOr<CommandResult> Confinement::Run(const ConfinedRun& run, const std::stop_token& stop) const {
  return RunWith(reach_, run, stop);
}

absl::StatusOr<CommandResult> Confinement::RunWith(Reach reach, const ConfinedRun& run,
                                                   const std::stop_token& stop) const {
  Program::Setup setup(*program_, reach, run);
  RETURN_IF_ERROR(setup.Make());
  SpawnOptions options;
  options.argv = {program_->path};
  options.argv.insert(options.argv.end(), run.arguments.begin(), run.arguments.end());
  options.env = run.env;
  options.env.emplace_back("LC_ALL=C");
  options.working_directory = "/";
  options.oom_score_adj = 1000;  // where memory is short, this is what is ended
  options.core_files = true;     // Enter has its own way
  options.setup = &setup;
  return RunSpawned(std::move(options), run.wall_time, stop);
}

}  // namespace lamina

// `lamina doctor`: whether this host can run Lamina's pods, and what has lost its owner.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/file_system.h"
#include "base/proc.h"
#include "base/process.h"
#include "base/process_rights.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/unique_fd.h"
#include "base/version.h"
#include "cli/cli.h"
#include "persist/state_store.h"
#include "vmm/confinement_check.h"
#include "vmm/guest_image.h"

namespace lamina::cli {
namespace {

constexpr std::chrono::seconds kProbeTimeout{10};
constexpr std::chrono::seconds kRepairTimeout{60};
constexpr char kContainerdConfig[] = "/etc/containerd/config.toml";

enum class Verdict { kOk, kWarning, kFailure };

struct Finding {
  std::string check;
  Verdict verdict;
  std::string detail;
};

const char* Name(Verdict verdict) {
  switch (verdict) {
    case Verdict::kOk:
      return "ok";
    case Verdict::kWarning:
      return "warning";
    case Verdict::kFailure:
      return "failure";
  }
  return "";
}

std::string FirstLine(const std::string& text) { return Printable(text.substr(0, text.find('\n'))); }

// The device opens and, for /dev/kvm, speaks the API that QEMU needs.
Finding CheckKvm(const Config& config) {
  const UniqueFd fd(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  constexpr unsigned long kGetApiVersion = 0xAE00;
  const Verdict without = config.hypervisor.accel == "kvm" ? Verdict::kFailure : Verdict::kWarning;
  if (!fd)
    return {"kvm", without,
            Message(ErrnoStatus(errno, "open /dev/kvm")) +
                "; VMs run under software emulation, many times slower"};
  const int version = ioctl(fd.get(), kGetApiVersion, 0);
  if (version != 12)
    return {"kvm", without, fmt::format("/dev/kvm speaks API version {}, QEMU needs 12", version)};
  return {"kvm", Verdict::kOk, "/dev/kvm opens; whether VMs really run on it is found out at the first pod"};
}

Finding CheckCgroups() {
  FileSystem& fs = FileSystem::Real();
  if (fs.Exists("/sys/fs/cgroup/cgroup.controllers")) return {"cgroups", Verdict::kOk, "version 2"};
  if (fs.Exists("/sys/fs/cgroup/memory")) return {"cgroups", Verdict::kOk, "version 1"};
  return {"cgroups", Verdict::kFailure, "/sys/fs/cgroup has neither version's memory controller"};
}

Finding CheckProgram(const std::string& check, const std::vector<std::string>& argv) {
  const absl::StatusOr<CommandResult> result = RunCommand(argv, kProbeTimeout);
  if (!result.ok()) return {check, Verdict::kFailure, Message(result.status())};
  if (result->exit_code != 0) {
    return {check, Verdict::kFailure,
            fmt::format("{} exits with {}: {}", argv[0], result->exit_code, FirstLine(result->output))};
  }
  return {check, Verdict::kOk, FirstLine(result->output)};
}

Finding CheckFiles(const std::string& check, const std::vector<std::string>& paths, const std::string& hint) {
  for (const std::string& path : paths) {
    if (access(path.c_str(), R_OK) != 0)
      return {check, Verdict::kFailure, Message(ErrnoStatus(errno, "read " + path)) + hint};
  }
  return {check, Verdict::kOk, fmt::format("{}", fmt::join(paths, ", "))};
}

Finding CheckContainerd() {
  const absl::StatusOr<std::string> text = FileSystem::Real().Read(kContainerdConfig, 1 << 20);
  if (!text.ok())
    return {"containerd", Verdict::kWarning,
            Message(text.status()) + "; the runtime must be named in containerd's config"};
  if (text->find("io.containerd.lamina.v2") == std::string::npos) {
    return {"containerd", Verdict::kWarning,
            fmt::format("{} names no runtime of type io.containerd.lamina.v2", kContainerdConfig)};
  }
  return {"containerd", Verdict::kOk, fmt::format("{} names the runtime", kContainerdConfig)};
}

void CheckLaminad(const Common& common, std::vector<Finding>& findings) {
  const absl::StatusOr<LaminadAnswer> answer = AskLaminad(common);
  if (!answer.ok()) {
    findings.push_back({"laminad", Verdict::kFailure, Message(answer.status())});
    return;
  }
  findings.push_back({"laminad", Verdict::kOk, answer->sentence});
  if (answer->unconfined.empty()) {
    findings.push_back(
        {"confinement", Verdict::kOk, "layers are read in a root and namespaces of their own"});
  } else {
    findings.push_back({"confinement", Verdict::kWarning, answer->unconfined});
  }
}

// The shim beside this program, else the one in PATH.
std::string ShimProgram() {
  constexpr char kName[] = "containerd-shim-lamina-v2";
  const std::string self = OwnProgram().value_or("");
  std::string path = self.substr(0, self.rfind('/') + 1) + kName;
  return !self.empty() && access(path.c_str(), X_OK) == 0 ? path : kName;
}

// The shim's own clean-up, which looks again whether the shim lives before it touches anything.
Finding Repair(const persist::SandboxState& state) {
  const std::string check = "sandbox " + ShortId(state.sandbox_id);
  const absl::StatusOr<CommandResult> result = RunCommand(
      {ShimProgram(), "-namespace", "k8s.io", "-id", state.sandbox_id, "-bundle", state.bundle, "delete"},
      kRepairTimeout);
  if (!result.ok()) return {check, Verdict::kFailure, "not repaired: " + Message(result.status())};
  if (result->exit_code != 0) return {check, Verdict::kFailure, "not repaired: " + FirstLine(result->output)};
  return {check, Verdict::kOk, "had no shim: its VM, mounts, claim and state are removed"};
}

// As the kernel shows it, not as it was meant to be.
Finding CheckPod(const Config& config, const persist::SandboxState& state) {
  const std::string check = "sandbox " + ShortId(state.sandbox_id);
  std::vector<std::string> who, excess;
  for (const bool qemu : {true, false}) {
    const int64_t pid = qemu ? state.vmm.pid : state.virtiofsd.pid;
    const auto rights = ReadProcessRights(static_cast<pid_t>(pid), static_cast<pid_t>(state.shim.pid));
    if (absl::IsNotFound(rights.status())) return {check, Verdict::kOk, "its VM is starting, or has ended"};
    if (!rights.ok()) return {check, Verdict::kWarning, "not looked at: " + Message(rights.status())};
    who.push_back(fmt::format("{} (pid {}, user {})", qemu ? "QEMU" : "virtiofsd", pid,
                              fmt::join(rights->users, ", ")));
    const auto found =
        qemu ? vmm::QemuExcess(*rights, config.hypervisor.users) : vmm::VirtiofsdExcess(*rights);
    if (!found.empty())
      excess.push_back(fmt::format("{} has of the node: {}", who.back(), fmt::join(found, "; ")));
  }
  if (!excess.empty()) return {check, Verdict::kWarning, fmt::format("{}", fmt::join(excess, ". "))};
  return {check, Verdict::kOk,
          fmt::format("{} have nothing of the node but the pod's volumes", fmt::join(who, ", "))};
}

void CheckSandboxes(const Config& config, bool repair, std::vector<Finding>& findings) {
  const persist::StateStore store(FileSystem::Real(), config.paths.state_dir);
  const absl::StatusOr<std::vector<std::string>> ids = store.List();
  if (!ids.ok()) {
    findings.push_back({"sandboxes", Verdict::kFailure, Message(ids.status())});
    return;
  }
  size_t owned = 0;
  const std::string boot_id = BootId();
  for (const std::string& id : *ids) {
    const absl::StatusOr<persist::SandboxState> state = store.Load(id);
    if (!state.ok()) {
      findings.push_back({"sandbox " + ShortId(id), Verdict::kFailure, Message(state.status())});
      continue;
    }
    // After a reboot its pids name nobody, whatever their numbers are now.
    const bool this_boot = state->boot_id.empty() || state->boot_id == boot_id;
    if (this_boot && ProcessAlive(static_cast<pid_t>(state->shim.pid), state->shim.start_time)) {
      ++owned;
      findings.push_back(CheckPod(config, *state));
    } else if (repair) {
      findings.push_back(Repair(*state));
    } else {
      const bool runs = this_boot && ProcessAlive(static_cast<pid_t>(state->vmm.pid), state->vmm.start_time);
      findings.push_back(
          {"sandbox " + ShortId(id), Verdict::kFailure,
           fmt::format("its shim (pid {}) is gone, its VM {}; `lamina doctor --repair` ends it",
                       state->shim.pid, runs ? fmt::format("(pid {}) still runs", state->vmm.pid) : "too")});
    }
  }
  findings.push_back({"sandboxes", Verdict::kOk, fmt::format("{} with a living shim", owned)});
}

Finding CheckImage(const Config& config) {
  const absl::Status status = vmm::CheckGuestImage(config);
  if (!status.ok()) {
    return {"guest image", Verdict::kFailure,
            Message(status) + "; ./dev build makes it, paths.guest_dir says where it is"};
  }
  return {"guest image", Verdict::kOk,
          fmt::format("{} and {} are what their build wrote", config.kernel(), config.initramfs())};
}

}  // namespace

absl::Status Doctor(const Common& common, bool repair) {
  ASSIGN_OR_RETURN(const Config config, ReadConfig(common));
  // What is run below reads the same file.
  if (!common.config.empty()) setenv("LAMINA_CONFIG", common.config.c_str(), 1);
  std::vector<Finding> findings = {
      CheckKvm(config),
      CheckCgroups(),
      CheckProgram("qemu", {config.hypervisor.qemu, "--version"}),
      CheckFiles("firmware", {config.hypervisor.firmware}, "; package seabios or qemu-system-data has it"),
      CheckFiles("virtiofsd", {config.hypervisor.virtiofsd},
                 "; package qemu-system-common or virtiofsd has it"),
      CheckProgram("erofs-utils", {"mkfs.erofs", "--help"}),
      CheckProgram("e2fsprogs", {"mke2fs", "-V"}),
      CheckImage(config),
      CheckContainerd(),
  };
  CheckLaminad(common, findings);
  CheckSandboxes(config, repair, findings);

  size_t failures = 0;
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  Table table({"CHECK", "VERDICT", "DETAIL"});
  for (const Finding& finding : findings) {
    failures += finding.verdict == Verdict::kFailure ? 1 : 0;
    list.push_back(
        {{"check", finding.check}, {"verdict", Name(finding.verdict)}, {"detail", finding.detail}});
    table.Add({finding.check, Name(finding.verdict), Printable(finding.detail)});
  }
  if (common.json) {
    fmt::print("{}\n", nlohmann::ordered_json({{"findings", list}, {"failures", failures}})
                           .dump(2, ' ', true, nlohmann::json::error_handler_t::replace));
  } else {
    fmt::print("{}", table.ToString());
  }
  if (failures == 0) return absl::OkStatus();
  return MakeStatus(absl::StatusCode::kInternal, "{} of {} checks failed", failures, findings.size());
}

absl::Status Version(const Common& common) {
  if (common.json) {
    fmt::print("{{\"version\":\"{}\"}}\n", lamina::Version());
  } else {
    fmt::print("lamina {}\n", lamina::Version());
  }
  return absl::OkStatus();
}

}  // namespace lamina::cli

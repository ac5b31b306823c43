#include "cri/cleanup.h"

#include "base/clock.h"
#include "base/file_system.h"
#include "base/log.h"
#include "base/process.h"
#include "base/status.h"
#include "cri/cgroup.h"
#include "cri/command_line.h"
#include "cri/disk_image.h"
#include "cri/network.h"
#include "cri/volumes.h"
#include "persist/state_store.h"
#include "proto/laminad.pb.h"

namespace lamina::cri {
namespace {

constexpr std::chrono::seconds kKillTimeout{10};

}  // namespace

std::string RuntimeDir(const Config& config, const std::string& sandbox_id) {
  return config.paths.run_dir + "/s/" + ShortId(sandbox_id, 16);
}

absl::Status CleanUpSandbox(const Config& config, LaminadClient& laminad,
                            const persist::SandboxState& state) {
  absl::Status first;
  const auto note = [&](const absl::Status& status) {
    if (status.ok()) return;
    LogWarning("clean up sandbox {}: {}", state.sandbox_id, Message(status));
    if (first.ok()) first = status;
  };
  if (state.boot_id.empty() || state.boot_id == BootId()) {
    note(KillProcess(static_cast<pid_t>(state.vmm.pid), state.vmm.start_time, kKillTimeout));
    note(KillProcess(static_cast<pid_t>(state.virtiofsd.pid), state.virtiofsd.start_time, kKillTimeout));
  }
  // While a process lives its memory is in use and its files may be: the claim and the directory stay.
  if (!first.ok()) return first;
  const std::string dir =
      state.runtime_dir.empty() ? RuntimeDir(config, state.sandbox_id) : state.runtime_dir;
  const absl::Status unmounted = UnmountTree(dir);
  note(unmounted);
  note(TearDownNetwork(state.netns_path));
  for (const persist::PodDisk& disk : state.disks) {
    if (!disk.image.empty()) note(RemoveDiskImage(disk.image));
  }
  note(RemoveHostCgroup(state.cgroup_dirs, kKillTimeout));
  // Never through a mount: what is shared belongs to others.
  if (unmounted.ok()) note(FileSystem::Real().RemoveTree(dir));
  laminad::v1::ReleaseRequest release;
  release.set_sandbox_id(state.sandbox_id);
  release.set_generation(state.claim_generation);
  const absl::Status released = laminad.Release(release);
  if (!released.ok())
    LogWarning("sandbox {}: laminad was not told of its end: {}", state.sandbox_id, Message(released));
  if (!first.ok()) return first;
  persist::StateStore store(FileSystem::Real(), config.paths.state_dir);
  return store.Remove(state.sandbox_id);
}

}  // namespace lamina::cri

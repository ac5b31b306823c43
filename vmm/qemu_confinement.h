// What a VM monitor gives up before it runs, so that a guest that takes it over owns nothing of the node.
#pragma once

#include <sys/types.h>

#include <vector>

#include "absl/status/status.h"
#include "base/private_root.h"
#include "base/subprocess.h"
#include "vmm/vm_spec.h"

namespace lamina::vmm {

enum class QemuReach {
  kPrivate,   // mount, pid, IPC, UTS and network namespaces, and a root, of its own
  kUserOnly,  // none of these
};

// Either way it runs as user and group `uid`, in no other group (but, without a root of its own, in the one
// that may use /dev/kvm), without capabilities, with no_new_privs.
// `spec.qemu` is the program's path. `network`: it joins a network namespace that is made for the pod; else
// it has an empty one of its own.
class QemuConfinement : public ChildSetup {
 public:
  // NotFound: a file that it must open is missing. FailedPrecondition: one that its user cannot read.
  static absl::StatusOr<QemuConfinement> Make(const VmSpec& spec, QemuReach reach, uid_t uid, bool network);

  bool own_pid_namespace() const override { return reach_ == QemuReach::kPrivate; }
  const char* Enter() const override;

 private:
  QemuConfinement(QemuReach reach, uid_t uid, bool network) : reach_(reach), uid_(uid), network_(network) {}
  absl::Status AddFiles(const VmSpec& spec);

  QemuReach reach_;
  uid_t uid_;
  bool network_;
  std::vector<gid_t> groups_;
  PrivateRoot root_;
};

}  // namespace lamina::vmm

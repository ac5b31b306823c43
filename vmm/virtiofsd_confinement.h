// What virtiofsd gives up before it runs: it works for a guest, and what it may do with a pod's volumes is
// all that it may do.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/private_root.h"
#include "base/subprocess.h"

namespace lamina::vmm {

// What it keeps, a bit for each: it uses them as the guest's root would. CHOWN, DAC_OVERRIDE, FOWNER, FSETID,
// SETGID, SETUID, SETFCAP.
inline constexpr uint64_t kVirtiofsdCapabilities =
    1ULL << 0 | 1ULL << 1 | 1ULL << 3 | 1ULL << 4 | 1ULL << 6 | 1ULL << 7 | 1ULL << 31;

enum class VirtiofsdReach {
  kPrivate,  // mount, pid, IPC, UTS and network namespaces, and a root, of its own
  kShared,   // none of these
};

// Either way it runs as root, which it must be to act as any user of the guest, in no group, with the
// capabilities that files need (docs/security.md) and none to make device nodes, with no_new_privs. Its
// capabilities stay while it acts as a user (no_setuid_fixup): the guest's kernel has checked
// that user's rights, and knows his groups.
class VirtiofsdConfinement : public ChildSetup {
 public:
  // `program`: its path. `shared_dir` has the same path in its root; what is mounted there later is seen
  // where it is a mount with shared propagation. NotFound: one of them is missing. InvalidArgument: with a
  // root of its own, a program that is no 64-bit ELF.
  static absl::StatusOr<VirtiofsdConfinement> Make(const std::string& program, const std::string& shared_dir,
                                                   VirtiofsdReach reach);

  bool own_pid_namespace() const override { return reach_ == VirtiofsdReach::kPrivate; }
  const char* Enter() const override;

 private:
  explicit VirtiofsdConfinement(VirtiofsdReach reach) : reach_(reach) {}

  VirtiofsdReach reach_;
  PrivateRoot root_;
};

}  // namespace lamina::vmm

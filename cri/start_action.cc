#include "cri/start_action.h"

#include <unistd.h>

#include <cerrno>

#include "base/file_system.h"
#include "base/proc.h"
#include "base/safe_id.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "base/unix_socket.h"
#include "cri/oci_spec.h"
#include "persist/sandbox_state.h"

namespace lamina::cri {
namespace {

absl::Status StartServer(const CommandLine& line, const Config& config, const std::string& path,
                         const std::string& bundle) {
  RETURN_IF_ERROR(FileSystem::Real().MakeDirectories(config.paths.run_dir + "/shim", 0700));
  ASSIGN_OR_RETURN(const UniqueFd listener, ListenUnix(path));
  ASSIGN_OR_RETURN(const std::string self, OwnProgram());
  SpawnOptions options;
  options.argv = {self, "-namespace", line.ns, "-address", line.address, "-id", line.id};
  if (line.debug) options.argv.push_back("-debug");
  options.argv.push_back("serve");
  options.fds = {{listener.get(), kListenFd}};
  options.working_directory = bundle;
  // The server comes last: nothing that fails after it would leave it without an owner.
  absl::Status status = WriteFileAtomically(FileSystem::Real(), bundle + "/address", "unix://" + path, 0600);
  if (status.ok()) status = Spawn(options).status();
  if (!status.ok()) unlink(path.c_str());
  return status;
}

}  // namespace

absl::StatusOr<std::string> StartShim(const CommandLine& line, const Config& config) {
  char cwd[4096];
  if (getcwd(cwd, sizeof cwd) == nullptr) return ErrnoStatus(errno, "getcwd");
  const std::string bundle = cwd;
  std::string sandbox_id = line.id;
  // With containerd's Sandbox service a pod has no config.json: its description comes in CreateSandbox.
  if (FileSystem::Real().Exists(bundle + "/config.json")) {
    ASSIGN_OR_RETURN(const BundleSpec spec, ReadSpec(bundle));
    sandbox_id = spec.sandbox_id(line.id);
  }
  if (!IsSafeId(sandbox_id))
    return InvalidArgument("sandbox id \"{}\" is not safe as a file name", sandbox_id);
  const std::string path = ShimSocket(config.paths.run_dir, line.ns, sandbox_id);
  if (SomebodyListens(path)) {
    RETURN_IF_ERROR(WriteFileAtomically(FileSystem::Real(), bundle + "/address", "unix://" + path, 0600));
    return "unix://" + path;
  }
  if (sandbox_id != line.id) {
    return MakeStatus(absl::StatusCode::kFailedPrecondition,
                      "container {}: the shim of its sandbox {} does not run", line.id, sandbox_id);
  }
  RETURN_IF_ERROR(StartServer(line, config, path, bundle));
  return "unix://" + path;
}

}  // namespace lamina::cri

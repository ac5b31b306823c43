// A Kubernetes node in a private folder: a real containerd with its own sockets, CNI network and images, and
// a laminad beside it. Nothing of the machine's own containerd is touched. Another containerd than Debian
// 12's is taken from PATH; with LAMINA_E2E_SANDBOXER=shim a containerd 2.x hands pods to the shim's Sandbox
// service, with LAMINA_E2E_SNAPSHOTTER=erofs it keeps image layers as EROFS blobs.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "tests/e2e/kit/cri_client.h"
#include "tests/e2e/kit/image.h"

namespace lamina::e2e {

struct NodeOptions {
  std::string handler = "lamina";  // "lamina" or "runc": what pods run with unless they say otherwise
  bool laminad = true;             // start it; with "runc" it is not needed
  // Lamina's configuration over the kit's own: "layers.max_layer_size" -> TOML value, quotes included.
  std::map<std::string, std::string> config;
  // Where programs and the guest's image are; empty: this build's.
  std::string bin_dir, guest_dir;
  // More environment for containerd and laminad: KEY=VALUE.
  std::vector<std::string> env;
};

// Not thread-safe, except for cri().
class Node {
 public:
  // Returns when containerd, its network and laminad answer. On failure everything is taken down again and
  // the error shows the end of the daemons' logs.
  static absl::StatusOr<std::unique_ptr<Node>> Start(const NodeOptions& options);
  ~Node();  // Stop()

  CriClient& cri() { return *cri_; }
  const std::string& dir() const { return dir_; }
  const std::string& handler() const { return options_.handler; }
  const std::string& guest_dir() const { return options_.guest_dir; }
  std::string config_path() const { return dir_ + "/lamina.toml"; }
  std::string run_dir() const { return dir_ + "/run"; }    // paths.run_dir
  std::string state_dir() const { return dir_ + "/var"; }  // paths.state_dir
  std::string containerd_socket() const { return dir_ + "/containerd.sock"; }
  std::string volumes_dir() const { return dir_ + "/volumes"; }  // for tests' host files; emptied by Stop

  absl::Status Import(const Image& image);
  // `ctr -n k8s.io <arguments>` with this node's containerd; a non-zero exit is an error.
  absl::Status Ctr(const std::vector<std::string>& arguments);

  // Until containerd has written all of a log and closed it. It does so a moment after the container's exit.
  absl::Status WaitLogComplete(const std::string& log_path, Deadline deadline);

  absl::Status StartLaminad();
  absl::Status StopLaminad(int signal = 15);  // and waits for its end
  absl::Status StartContainerd();
  absl::Status StopContainerd(int signal = 15);
  // Writes the configuration anew with these changes over the node's; read by each new shim and laminad.
  absl::Status Reconfigure(const std::map<std::string, std::string>& changes);

  // What `lamina <arguments>` writes, whatever its exit code, with this node's configuration.
  absl::StatusOr<std::string> Lamina(std::vector<std::string> arguments);

  // The body of laminad's answer to GET `path`; an error unless it says 200.
  absl::StatusOr<std::string> Rest(const std::string& path);
  int laminad_pid() const { return laminad_; }
  std::string rest_address() const { return "127.0.0.1:" + std::to_string(rest_port_); }

  // The pods' network: its gateway is the host. `outside` is an address in a network namespace beyond the
  // host.
  std::string pod_prefix() const { return pod_prefix_; }  // "10.1.2."
  std::string gateway() const { return pod_prefix_ + "1"; }
  int mtu() const { return 1450; }
  std::string outside_address() const { return outside_prefix_ + "2"; }
  std::string outside_netns() const { return "/run/netns/" + outside_name_; }

  // What pods have left behind, waited for at most until the deadline; empty when there is nothing. Call when
  // every pod is removed: processes, mounts, network namespaces, addresses, host interfaces, cgroups,
  // sockets, folders named after a pod or container, temporary files, memory claims.
  std::vector<std::string> Leftovers(Deadline deadline);
  // Removes all pods. Errors are collected.
  absl::Status RemoveAllPods();
  // Removes all pods, ends the daemons, then removes network and folder. FailedPrecondition lists leftovers.
  absl::Status Stop();
  // The last lines of the daemons' and shims' logs, for a failed test.
  std::string LogTails(size_t lines_each = 40);
  // Ids of processes whose command line or environment names this node's folder, without its own daemons.
  std::vector<int> PodProcesses();

 private:
  Node() = default;
  absl::Status Prepare();
  absl::Status SetUpNetwork();
  void TearDownNetwork();
  std::vector<std::string> FindLeftovers(bool daemons_run);
  absl::Status StopProcess(int& pid, uint64_t start_time, int signal, const char* what);

  NodeOptions options_;
  std::map<std::string, std::string> config_;
  std::string dir_, tag_, bridge_, pod_prefix_, outside_prefix_, outside_name_;
  uint16_t rest_port_ = 0;
  int containerd_ = 0, laminad_ = 0;
  uint64_t containerd_start_ = 0, laminad_start_ = 0;
  bool had_hostport_chains_ = false;
  std::unique_ptr<CriClient> cri_;
};

// True where this build has the programs and the guest image that the handler "lamina" needs; else says what
// lacks.
absl::Status LaminaIsBuilt();

// Folder of downloaded packages, the probe program, and the guest's stand-in, of this build.
std::string CacheDir();
std::string ProbePath();
std::string StandInPath();

}  // namespace lamina::e2e

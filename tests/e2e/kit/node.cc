#include "tests/e2e/kit/node.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "base/process.h"
#include "base/status.h"
#include "base/subprocess.h"
#include "tests/e2e/kit/confinement.h"
#include "tests/e2e/kit/images.h"
#include "tests/e2e/kit/kubelet_cgroup.h"
#include "tests/e2e/kit/leftovers.h"

namespace lamina::e2e {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using std::chrono::seconds;

// {0} private folder, {1} pause image, {2} snapshotter. The internal opt plugin would make /opt/containerd.
constexpr char kContainerdConfig[] = R"(version = 2
root = "{0}/containerd"
state = "{0}/containerd-run"
oom_score = 0
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{0}/containerd.sock"
[debug]
  level = "info"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{1}"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
  tolerate_missing_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{0}/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{2}"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.lamina]
      runtime_type = "io.containerd.lamina.v2"
      pod_annotations = ["lamina.io/*"]
)";

// What every node of the tests starts from: small, emulated, everything in the private folder.
std::map<std::string, std::string> DefaultConfig() {
  return {
      {"sizing.overhead_cpu", "\"0.5\""},    {"sizing.overhead_memory", "\"96MiB\""},
      {"sizing.default_cpu", "\"1\""},       {"sizing.default_memory", "\"192MiB\""},
      {"hypervisor.accel", "\"tcg\""},       {"hypervisor.boot_timeout_seconds", "60"},
      {"layers.arena_size", "\"256MiB\""},   {"layers.max_layer_size", "\"24MiB\""},
      {"memory.capacity", "\"4GiB\""},       {"memory.reserve", "\"64MiB\""},
      {"memory.min_available", "\"64MiB\""}, {"laminad.log_level", "\"debug\""},
  };
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  std::ofstream out(path, std::ios::trunc);
  out << text;
  out.close();
  return out ? absl::OkStatus() : MakeStatus(absl::StatusCode::kInternal, "cannot write {}", path);
}

std::string Tail(const std::string& path, size_t lines) {
  std::istringstream in(ReadText(path));
  std::vector<std::string> all;
  for (std::string line; std::getline(in, line);) {
    if (line.find("loading plugin") == std::string::npos) all.push_back(line.substr(0, 600));
  }
  std::string text;
  for (size_t i = all.size() - std::min(lines, all.size()); i < all.size(); ++i) text += all[i] + "\n";
  return text;
}

absl::Status Ip(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "ip");
  return RunChecked(arguments, seconds(10));
}

bool Missing(const std::string& path) { return access(path.c_str(), R_OK) != 0; }

}  // namespace

std::string CacheDir() { return LAMINA_E2E_CACHE; }
std::string ProbePath() { return LAMINA_E2E_PROBE; }
std::string StandInPath() { return LAMINA_E2E_STAND_IN; }

absl::Status LaminaIsBuilt() {
  for (const std::string path : {LAMINA_BIN_DIR "/containerd-shim-lamina-v2", LAMINA_BIN_DIR "/laminad",
                                 LAMINA_GUEST_DIR "/vmlinux", LAMINA_GUEST_DIR "/initramfs.img"}) {
    if (Missing(path)) return MakeStatus(absl::StatusCode::kNotFound, "{} is not built", path);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Node>> Node::Start(const NodeOptions& options) {
  std::unique_ptr<Node> node(new Node);
  node->options_ = options;
  if (node->options_.bin_dir.empty()) node->options_.bin_dir = LAMINA_BIN_DIR;
  if (node->options_.guest_dir.empty()) node->options_.guest_dir = LAMINA_GUEST_DIR;
  absl::Status status = node->Prepare();
  if (status.ok()) status = node->SetUpNetwork();
  if (status.ok() && options.laminad) status = node->StartLaminad();
  if (status.ok()) status = node->StartContainerd();
  if (status.ok()) return node;
  return Annotate(status, "start a node; " + node->LogTails());
}

Node::~Node() { Stop().IgnoreError(); }

absl::Status Node::Prepare() {
  char name[] = "/tmp/lamina-XXXXXX";
  if (mkdtemp(name) == nullptr) return ErrnoStatus(errno, "make a folder in /tmp");
  dir_ = name;
  tag_ = dir_.substr(dir_.rfind('-') + 1);
  for (const char* sub : {"net.d", "logs", "run", "var", "volumes", "tmp"})
    fs::create_directories(dir_ + "/" + sub);
  ASSIGN_OR_RETURN(rest_port_, FreePort());
  config_ = DefaultConfig();
  config_["volumes.sockets"] = "[\"" + volumes_dir() + "/sockets/\"]";
  config_["paths.run_dir"] = '"' + run_dir() + '"';
  config_["paths.state_dir"] = '"' + state_dir() + '"';
  config_["paths.guest_dir"] = '"' + options_.guest_dir + '"';
  config_["laminad.rest_address"] = '"' + rest_address() + '"';
  RETURN_IF_ERROR(Reconfigure(options_.config));
  const char* snapshotter = getenv("LAMINA_E2E_SNAPSHOTTER");
  std::string containerd =
      fmt::format(kContainerdConfig, dir_, kPauseImage, snapshotter == nullptr ? "overlayfs" : snapshotter);
  // The last table is lamina's.
  if (const char* sandboxer = getenv("LAMINA_E2E_SANDBOXER"))
    containerd += fmt::format("      sandboxer = \"{}\"\n", sandboxer);
  if (snapshotter != nullptr &&
      std::string_view(snapshotter) == "erofs")  // the layers' archives become blobs
    containerd +=
        "[plugins.\"io.containerd.service.v1.diff-service\"]\n  default = [\"erofs\", \"walking\"]\n";
  RETURN_IF_ERROR(WriteFile(dir_ + "/containerd.toml", containerd));
  cri_ =
      CriClient::Create({containerd_socket(), options_.handler, dir_ + "/logs", "/lamina-" + tag_,
                         [dir = state_dir()](const std::string& pod) { return CheckConfinement(dir, pod); }});
  return absl::OkStatus();
}

absl::Status Node::Reconfigure(const std::map<std::string, std::string>& changes) {
  for (const auto& [key, value] : changes) config_[key] = value;
  std::string text, section;
  for (const auto& [key, value] : config_) {
    const size_t dot = key.find('.');
    if (key.substr(0, dot) != section) {
      section = key.substr(0, dot);
      text += "[" + section + "]\n";
    }
    text += key.substr(dot + 1) + " = " + value + "\n";
  }
  return WriteFile(config_path(), text);
}

absl::Status Node::SetUpNetwork() {
  bridge_ = "lm-" + tag_;
  outside_name_ = "lamina-" + tag_;
  ASSIGN_OR_RETURN(const CommandResult routes,
                   RunCommand({"ip", "-4", "route", "show", "table", "all"}, seconds(10)));
  std::random_device random;
  do {
    pod_prefix_ = fmt::format("10.{}.{}.", 64 + random() % 128, random() % 128 * 2);
  } while (routes.output.find(pod_prefix_) != std::string::npos);
  const size_t third = pod_prefix_.find('.', 3) + 1;
  outside_prefix_ =
      pod_prefix_.substr(0, third) + std::to_string(atoi(pod_prefix_.c_str() + third) + 1) + ".";
  const nlohmann::json bridge = {{"type", "bridge"},
                                 {"bridge", bridge_},
                                 {"isGateway", true},
                                 {"hairpinMode", true},
                                 {"mtu", mtu()},
                                 {"ipam",
                                  {{"type", "host-local"},
                                   {"dataDir", dir_ + "/ipam"},
                                   {"ranges", {{{{"subnet", pod_prefix_ + "0/24"}}}}},
                                   {"routes", {{{"dst", "0.0.0.0/0"}}}}}}};
  const nlohmann::json portmap = {{"type", "portmap"}, {"capabilities", {{"portMappings", true}}}};
  const nlohmann::json list = {
      {"cniVersion", "0.4.0"}, {"name", outside_name_}, {"plugins", {bridge, portmap}}};
  RETURN_IF_ERROR(WriteFile(dir_ + "/net.d/10-lamina.conflist", list.dump(2)));
  ASSIGN_OR_RETURN(const CommandResult chains,
                   RunCommand({"iptables", "-w", "-t", "nat", "-S"}, seconds(10)));
  had_hostport_chains_ = chains.output.find("CNI-HOSTPORT-DNAT") != std::string::npos;

  const std::string veth = "lmo-" + tag_;
  RETURN_IF_ERROR(Ip({"netns", "add", outside_name_}));
  RETURN_IF_ERROR(Ip({"link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", outside_name_}));
  RETURN_IF_ERROR(Ip({"addr", "add", outside_prefix_ + "1/30", "dev", veth}));
  RETURN_IF_ERROR(Ip({"link", "set", veth, "up"}));
  RETURN_IF_ERROR(Ip({"-n", outside_name_, "addr", "add", outside_address() + "/30", "dev", "eth0"}));
  RETURN_IF_ERROR(Ip({"-n", outside_name_, "link", "set", "eth0", "up"}));
  return Ip({"-n", outside_name_, "route", "add", "default", "via", outside_prefix_ + "1"});
}

void Node::TearDownNetwork() {
  if (outside_name_.empty()) return;
  Ip({"netns", "del", outside_name_}).IgnoreError();  // takes the veth pair along
  Ip({"link", "del", "lmo-" + tag_}).IgnoreError();
  Ip({"link", "del", bridge_}).IgnoreError();
  const auto chains = RunCommand({"iptables", "-w", "-t", "nat", "-S"}, seconds(10));
  if (had_hostport_chains_ || !chains.ok() || chains->output.find("CNI-HOSTPORT-DNAT") == std::string::npos)
    return;
  // portmap leaves its top chains for the next pod; -X refuses where another node still has rules in them.
  for (const char* chain : {"PREROUTING", "OUTPUT", "POSTROUTING"}) {
    std::istringstream in(chains->output);
    for (std::string line; std::getline(in, line);) {
      if (line.rfind(std::string("-A ") + chain, 0) != 0 || line.find("CNI-HOSTPORT") == std::string::npos)
        continue;
      RunCommand({"sh", "-c", "iptables -w -t nat -D " + line.substr(3)}, seconds(10)).status().IgnoreError();
    }
  }
  for (const char* chain : {"CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK"}) {
    if (chain[13] != 'D')
      RunCommand({"iptables", "-w", "-t", "nat", "-F", chain}, seconds(10)).status().IgnoreError();
    RunCommand({"iptables", "-w", "-t", "nat", "-X", chain}, seconds(10)).status().IgnoreError();
  }
}

namespace {

// Our environment with the given programs first in PATH and the private temporary folder.
std::vector<std::string> DaemonEnv(const NodeOptions& options, const std::string& dir,
                                   const std::string& config) {
  const char* path = getenv("PATH");
  const char* usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
  std::vector<std::string> env = {
      fmt::format("PATH={}:{}:{}", options.bin_dir, path != nullptr ? path : usual, usual),
      "LAMINA_CONFIG=" + config, "TMPDIR=" + dir + "/tmp", "HOME=/root"};
  env.insert(env.end(), options.env.begin(), options.env.end());
  return env;
}

}  // namespace

absl::Status Node::StartContainerd() {
  SpawnOptions spawn;
  spawn.argv = {"containerd", "--config", dir_ + "/containerd.toml"};
  spawn.env = DaemonEnv(options_, dir_, config_path());
  spawn.log_path = dir_ + "/containerd.log";
  spawn.working_directory = dir_;
  ASSIGN_OR_RETURN(containerd_, Spawn(spawn));
  ASSIGN_OR_RETURN(containerd_start_, ProcessStartTime(containerd_));
  // Only then a first RPC: gRPC would wait for seconds before it tries a refused address again.
  RETURN_IF_ERROR(Eventually(In(seconds(30)), [this] { return ProbeUnixSocket(containerd_socket()); }));
  return cri_->WaitReady(In(seconds(30)));
}

absl::Status Node::StartLaminad() {
  SpawnOptions spawn;
  spawn.argv = {options_.bin_dir + "/laminad", "--config", config_path()};
  spawn.env = DaemonEnv(options_, dir_, config_path());
  spawn.log_path = dir_ + "/laminad.log";
  spawn.working_directory = dir_;
  ASSIGN_OR_RETURN(laminad_, Spawn(spawn));
  ASSIGN_OR_RETURN(laminad_start_, ProcessStartTime(laminad_));
  return Eventually(In(seconds(30)), [this]() -> absl::Status {
    if (!ProcessAlive(laminad_, laminad_start_)) {
      return MakeStatus(absl::StatusCode::kInternal, "laminad ended at once: {}",
                        Tail(dir_ + "/laminad.log", 20));
    }
    return Rest("/readyz").status();
  });
}

absl::Status Node::StopProcess(int& pid, uint64_t start_time, int signal, const char* what) {
  if (pid == 0) return absl::OkStatus();
  kill(pid, signal);
  const auto reaped = [&]() -> absl::Status {
    const pid_t done = waitpid(pid, nullptr, WNOHANG);
    if (done == pid || (done < 0 && errno == ECHILD)) return absl::OkStatus();
    return MakeStatus(absl::StatusCode::kDeadlineExceeded, "{} (pid {}) did not end on signal {}", what, pid,
                      signal);
  };
  const absl::Status status = Eventually(In(seconds(20)), reaped);
  if (!status.ok()) {
    kill(pid, SIGKILL);
    Eventually(In(seconds(5)), reaped).IgnoreError();
  }
  pid = 0;
  return status;
}

absl::Status Node::StopLaminad(int signal) {
  return StopProcess(laminad_, laminad_start_, signal, "laminad");
}
absl::Status Node::StopContainerd(int signal) {
  return StopProcess(containerd_, containerd_start_, signal, "containerd");
}

absl::StatusOr<std::string> Node::Lamina(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), {options_.bin_dir + "/lamina", "--config", config_path()});
  ASSIGN_OR_RETURN(const CommandResult result, RunCommand(arguments, seconds(60)));
  return result.output;
}

absl::StatusOr<std::string> Node::Rest(const std::string& path) {
  ASSIGN_OR_RETURN(HttpResponse response, HttpGet("127.0.0.1", rest_port_, path, In(seconds(10))));
  if (response.code != 200)
    return MakeStatus(absl::StatusCode::kUnavailable, "GET {}: {} {}", path, response.code, response.body);
  return std::move(response.body);
}

absl::Status Node::Ctr(const std::vector<std::string>& arguments) {
  std::vector<std::string> argv = {"ctr", "--address", containerd_socket(), "--namespace", "k8s.io"};
  argv.insert(argv.end(), arguments.begin(), arguments.end());
  return RunChecked(argv, seconds(120));
}

absl::Status Node::Import(const Image& image) {
  const std::string archive = dir_ + "/tmp/image.tar";
  RETURN_IF_ERROR(WriteOciArchive(image, archive));
  const absl::Status imported = Ctr({"images", "import", archive});
  fs::remove(archive);
  RETURN_IF_ERROR(imported);
  // The CRI learns of it by an event.
  return Eventually(In(seconds(10)), [&]() -> absl::Status {
    ASSIGN_OR_RETURN(const auto names, cri_->ListImages());
    if (std::find(names.begin(), names.end(), image.name) != names.end()) return absl::OkStatus();
    return MakeStatus(absl::StatusCode::kNotFound, "the CRI does not list {}", image.name);
  });
}

absl::Status Node::WaitLogComplete(const std::string& log_path, Deadline deadline) {
  return Eventually(deadline, [&]() -> absl::Status {
    if (!HasOpen(containerd_, log_path)) return absl::OkStatus();
    return MakeStatus(absl::StatusCode::kDeadlineExceeded, "containerd still writes {}", log_path);
  });
}

std::vector<int> Node::PodProcesses() {
  std::vector<int> pids;
  for (const Process& process : FindProcesses(dir_, {containerd_, laminad_})) pids.push_back(process.pid);
  return pids;
}

std::vector<std::string> Node::FindLeftovers(bool daemons_run) {
  Lines left;
  const auto add = [&left](const char* what, const Lines& found) {
    for (const std::string& one : found) left.push_back(std::string(what) + ": " + one);
  };
  for (const Process& process : FindProcesses(dir_, {containerd_, laminad_}))
    left.push_back(fmt::format("process: {} {}", process.pid, process.command));
  Lines mounts = FindMounts(dir_);
  // containerd keeps an image's blobs mounted as long as it has the image, and beyond its own end.
  const auto blob = [](const std::string& mount) {
    return mount.find("io.containerd.snapshotter.v1.erofs/snapshots/") != std::string::npos &&
           mount.find(" - erofs ") != std::string::npos;
  };
  mounts.erase(std::remove_if(mounts.begin(), mounts.end(), blob), mounts.end());
  add("mount", mounts);
  add("cgroup", FindCgroups(cri_->options().cgroup_parent));
  Lines sockets = FindSockets(dir_);
  if (daemons_run) {
    const auto own = [this](const std::string& path) {
      return path.rfind(containerd_socket(), 0) == 0 || path == run_dir() + "/shim.sock" ||
             path == run_dir() + "/laminad.sock";
    };
    sockets.erase(std::remove_if(sockets.begin(), sockets.end(), own), sockets.end());
  }
  add("socket", sockets);
  add("interface", ListFolder("/sys/class/net/" + bridge_ + "/brif"));
  add("network namespace", ListFolder(dir_ + "/containerd-run/netns"));
  for (const std::string& address : ListFolder(dir_ + "/ipam/" + outside_name_)) {
    if (address != "lock" && address.rfind("last_reserved_ip", 0) != 0) left.push_back("address: " + address);
  }
  for (const std::string& result : ListFolder("/var/lib/cni/results")) {
    if (result.find(outside_name_) != std::string::npos) left.push_back("CNI result: " + result);
  }
  add("temporary file", ListFolder(dir_ + "/tmp"));
  const Lines images = {dir_ + "/containerd/io.containerd.content.v1.content",
                        dir_ + "/containerd/io.containerd.snapshotter.v1.overlayfs", dir_ + "/logs",
                        dir_ + "/volumes"};
  const std::vector<std::string> ids = cri_->KnownIds();
  add("path", FindNamed(dir_, ids, images, 8));
  for (const char* root : {"/run", "/tmp", "/dev/shm", "/var/lib", "/sys/fs/cgroup"})
    add("path", FindNamed(root, ids, {dir_}, 5));
  for (const char* kind : {"sandboxes", "containers"})
    add("containerd state", ListFolder(dir_ + "/containerd/io.containerd.grpc.v1.cri/" + kind));
  add("bundle", ListFolder(dir_ + "/containerd-run/io.containerd.runtime.v2.task/k8s.io"));
  add("sandbox state", ListFolder(state_dir() + "/sandboxes"));
  add("sandbox state", ListFolder(run_dir() + "/sandboxes"));
  if (daemons_run && laminad_ != 0) {
    for (const char* path : {"/v1/claims", "/v1/sandboxes"}) {
      const auto body = Rest(path);
      const auto json = body.ok() ? nlohmann::json::parse(*body, nullptr, false) : nlohmann::json();
      const char* key = path + 4;
      const auto& list = json.is_object() && json.contains(key) ? json[key] : json;
      if (!list.is_array() || !list.empty())
        left.push_back(fmt::format("{}: {}", path, body.ok() ? *body : Message(body.status())));
    }
  }
  return left;
}

std::vector<std::string> Node::Leftovers(Deadline deadline) {
  Lines left;
  Eventually(deadline, [&]() -> absl::Status {
    // The parent of the pods' groups is the kit's own, like the kubelet's /kubepods.
    RemoveCgroup(cri_->options().cgroup_parent).IgnoreError();
    left = FindLeftovers(true);
    return left.empty() ? absl::OkStatus() : absl::InternalError("left");
  }).IgnoreError();
  return left;
}

absl::Status Node::RemoveAllPods() {
  ASSIGN_OR_RETURN(const auto pods, cri_->ListPods());
  absl::Status first;
  for (const std::string& pod : pods) first.Update(cri_->RemovePod(pod));
  return first;
}

absl::Status Node::Stop() {
  if (dir_.empty()) return absl::OkStatus();
  absl::Status status;
  Lines left;
  if (containerd_ != 0) {
    status = RemoveAllPods();
    left = Leftovers(In(seconds(15)));
  }
  // With laminad first, a shim that outlives its pods would go unnoticed.
  status.Update(StopContainerd());
  status.Update(StopLaminad());
  if (cri_ != nullptr) {
    RemoveCgroup(cri_->options().cgroup_parent).IgnoreError();
    for (std::string& one : FindLeftovers(false)) {
      if (std::find(left.begin(), left.end(), one) == left.end())
        left.push_back("after the daemons' end: " + one);
    }
  }
  // Whatever was found is removed all the same: the next run starts clean.
  for (const Process& process : FindProcesses(dir_, {})) kill(process.pid, SIGKILL);
  for (int round = 0; round < 10; ++round) {
    const std::string mounts = ReadText("/proc/self/mounts");
    std::istringstream in(mounts);
    std::vector<std::string> points;
    for (std::string source, point, rest; in >> source >> point && std::getline(in, rest);) {
      if (point.rfind(dir_, 0) == 0) points.push_back(point);
    }
    if (points.empty()) break;
    for (auto it = points.rbegin(); it != points.rend(); ++it) umount2(it->c_str(), MNT_DETACH);
  }
  for (const std::string& group : FindCgroups("/lamina-" + tag_)) rmdir(group.c_str());
  TearDownNetwork();
  std::error_code error;
  if (getenv("LAMINA_E2E_KEEP") == nullptr) fs::remove_all(dir_, error);
  if (error) left.push_back("folder: " + dir_ + ": " + error.message());
  dir_.clear();
  if (!left.empty()) {
    std::string text;
    for (const std::string& one : left) text += "\n  " + one;
    status.Update(MakeStatus(absl::StatusCode::kFailedPrecondition, "left behind:{}", text));
  }
  return status;
}

std::string Node::LogTails(size_t lines_each) {
  std::string text = "logs in " + dir_ + "\n";
  for (const char* log : {"containerd.log", "laminad.log"})
    text += fmt::format("--- {}\n{}", log, Tail(dir_ + "/" + log, lines_each));
  std::error_code error;
  for (const char* root : {"/run", "/var"}) {
    for (auto it = fs::recursive_directory_iterator(dir_ + root, error);
         !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
      if (it->path().extension() == ".log")
        text += fmt::format("--- {}\n{}", it->path().string(), Tail(it->path(), lines_each));
    }
  }
  return text;
}

}  // namespace lamina::e2e

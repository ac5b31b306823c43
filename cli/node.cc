// Commands that ask laminad.
#include <fmt/format.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <memory>

#include "base/file_system.h"
#include "base/status.h"
#include "base/units.h"
#include "cli/cli.h"
#include "node/json.h"
#include "persist/state_store.h"
#include "proto/node/node.grpc.pb.h"
#include "sizing/numa.h"

namespace lamina::cli {
namespace {

namespace v1 = node::v1;
using node::ToJson;

constexpr std::chrono::seconds kTimeout{10};
constexpr std::chrono::minutes kGcTimeout{5};
constexpr int kMaxAnswerBytes = 256 << 20;

struct Laminad {
  std::string socket;
  std::unique_ptr<v1::Node::Stub> stub;
};

absl::StatusOr<Laminad> Connect(const Common& common) {
  ASSIGN_OR_RETURN(const Config config, ReadConfig(common));
  Laminad laminad;
  laminad.socket = config.grpc_socket();
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxAnswerBytes);
  laminad.stub = v1::Node::NewStub(
      grpc::CreateCustomChannel("unix:" + laminad.socket, grpc::InsecureChannelCredentials(), arguments));
  return laminad;
}

template <typename Request, typename Response>
absl::Status Call(const Laminad& laminad,
                  grpc::Status (v1::Node::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                  const Request& request, Response* response, std::chrono::seconds timeout = kTimeout) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  const grpc::Status status = ((*laminad.stub).*method)(&context, request, response);
  if (status.ok()) return absl::OkStatus();
  const auto code = static_cast<absl::StatusCode>(status.error_code());  // the same numbers
  if (code == absl::StatusCode::kUnavailable || code == absl::StatusCode::kDeadlineExceeded) {
    return MakeStatus(absl::StatusCode::kUnavailable, "laminad does not answer at {} ({})", laminad.socket,
                      status.error_message());
  }
  return absl::Status(code, status.error_message());
}

template <typename Response>
absl::StatusOr<Response> List(const Common& common,
                              grpc::Status (v1::Node::Stub::*method)(grpc::ClientContext*,
                                                                     const v1::ListRequest&, Response*)) {
  ASSIGN_OR_RETURN(const Laminad laminad, Connect(common));
  Response response;
  RETURN_IF_ERROR(Call(laminad, method, v1::ListRequest(), &response));
  return response;
}

absl::Status PrintJson(const google::protobuf::Message& message) {
  fmt::print("{}", ToJson(message));
  return absl::OkStatus();
}

std::string PodName(const std::string& pod_namespace, const std::string& pod) {
  if (pod_namespace.empty() && pod.empty()) return "-";
  return Printable(pod_namespace + "/" + pod);
}

std::string Percent(uint64_t part, uint64_t whole) {
  return whole == 0 ? "-"
                    : fmt::format("{:.0f}%", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

double BootSeconds(const v1::Sandbox& sandbox) {
  const auto total = sandbox.boot_seconds().find("total");
  return total == sandbox.boot_seconds().end() ? 0 : total->second;
}

const char* StateOf(const v1::Sandbox& sandbox) {
  if (sandbox.vmm_pid() == 0) return "claimed";
  return sandbox.boot_seconds().empty() ? "booting" : "ready";
}

std::string NumaText(const google::protobuf::RepeatedField<uint32_t>& nodes) {
  return nodes.empty() ? "-" : sizing::FormatNumaNodes({nodes.begin(), nodes.end()});
}

void PrintReadiness(const v1::Sandbox& s) {
  if (!s.boot_seconds().empty()) {
    std::vector<std::string> phases;
    for (const auto& [phase, seconds] :
         std::map<std::string, double>(s.boot_seconds().begin(), s.boot_seconds().end())) {
      phases.push_back(fmt::format("{} {:.3f} s", Printable(phase), seconds));
    }
    fmt::print("boot:      {}\n", fmt::join(phases, ", "));
  }
  if (s.guest_mem_total_bytes() != 0)
    fmt::print("guest:     sees {} of memory\n", HumanBytes(s.guest_mem_total_bytes()));
}

absl::StatusOr<v1::Sandbox> FindSandbox(const v1::SandboxList& list, const std::string& wanted) {
  if (wanted.empty()) return absl::InvalidArgumentError("explain: no sandbox named");
  std::vector<const v1::Sandbox*> matches;
  for (const v1::Sandbox& sandbox : list.sandboxes()) {
    if (sandbox.id() == wanted) return sandbox;
    if (sandbox.id().rfind(wanted, 0) == 0 || sandbox.namespace_() + "/" + sandbox.pod() == wanted)
      matches.push_back(&sandbox);
  }
  if (matches.empty())
    return MakeStatus(absl::StatusCode::kNotFound,
                      "no sandbox \"{}\" on this node; `lamina sandboxes` lists them", wanted);
  if (matches.size() > 1)
    return InvalidArgument("\"{}\" names {} sandboxes; give more of the id", wanted, matches.size());
  return *matches[0];
}

// Its own processes know them, and write them into the state; a pod that is just going has none.
void AddVolumes(const Config& config, v1::Sandbox& sandbox) {
  const persist::StateStore store(FileSystem::Real(), config.paths.state_dir);
  const auto state = store.Load(sandbox.id());
  if (!state.ok()) return;
  for (const persist::PodVolume& known : state->volumes) {
    v1::Volume& volume = *sandbox.add_volumes();
    volume.set_name(known.name);
    volume.set_source(known.source);
    volume.set_kind(known.kind);
    volume.set_read_only(known.read_only);
    for (const auto& [id, container] : state->containers) {
      if (std::find(container.mounts.begin(), container.mounts.end(), known.name) != container.mounts.end())
        volume.add_users(id);
    }
  }
}

void PrintVolumes(const v1::Sandbox& sandbox) {
  if (sandbox.volumes_size() == 0) return;
  Table table({"VOLUME", "HOW", "READ ONLY", "CONTAINERS"});
  for (const v1::Volume& volume : sandbox.volumes()) {
    std::vector<std::string> users;
    for (const std::string& user : volume.users()) users.push_back(ShortId(user));
    table.Add({volume.source(), volume.kind(), volume.read_only() ? "yes" : "no",
               users.empty() ? "-" : fmt::format("{}", fmt::join(users, " "))});
  }
  fmt::print("{}\n", table.ToString());
}

}  // namespace

absl::Status Sandboxes(const Common& common) {
  ASSIGN_OR_RETURN(const v1::SandboxList list, List(common, &v1::Node::Stub::ListSandboxes));
  if (common.json) return PrintJson(list);
  Table table({"SANDBOX", "POD", "STATE", "VCPUS", "MEMORY", "EXACT", "BOOT", "VMM"});
  for (const v1::Sandbox& s : list.sandboxes()) {
    const double boot = BootSeconds(s);
    table.Add({ShortId(s.id()), PodName(s.namespace_(), s.pod()), StateOf(s), std::to_string(s.vcpus()),
               HumanBytes(s.memory_bytes()), Printable(s.vcpus_exact()),
               boot > 0 ? fmt::format("{:.2f}s", boot) : "-",
               s.vmm_pid() != 0 ? std::to_string(s.vmm_pid()) : "-"});
  }
  fmt::print("{}", table.ToString());
  return absl::OkStatus();
}

absl::Status Explain(const Common& common, const std::string& wanted) {
  ASSIGN_OR_RETURN(const Config config, ReadConfig(common));
  ASSIGN_OR_RETURN(const Laminad laminad, Connect(common));
  v1::SandboxList list;
  RETURN_IF_ERROR(Call(laminad, &v1::Node::Stub::ListSandboxes, v1::ListRequest(), &list));
  ASSIGN_OR_RETURN(v1::Sandbox s, FindSandbox(list, wanted));
  AddVolumes(config, s);
  if (common.json) return PrintJson(s);
  v1::LayerList layers;
  RETURN_IF_ERROR(Call(laminad, &v1::Node::Stub::ListLayers, v1::ListRequest(), &layers));

  fmt::print("sandbox:   {}\npod:       {}\n", Printable(s.id()), PodName(s.namespace_(), s.pod()));
  fmt::print("state:     {}{}\n", StateOf(s),
             s.vmm_pid() != 0 ? fmt::format(", VMM pid {}", s.vmm_pid()) : "");
  fmt::print("vCPUs:     {} (exactly {}", s.vcpus(), Printable(s.vcpus_exact()));
  if (s.vcpus_if_rounded_per_container() > s.vcpus()) {
    fmt::print("; rounding each container up would take {}", s.vcpus_if_rounded_per_container());
  }
  fmt::print("): limit {}, overhead {:g}\n",
             s.limit_cpus() > 0 ? fmt::format("{:g}", s.limit_cpus()) : "none", s.overhead_cpus());
  fmt::print("memory:    {}: limit {}, overhead {}\n", HumanBytes(s.memory_bytes()),
             s.limit_memory_bytes() > 0 ? HumanBytes(s.limit_memory_bytes()) : "none",
             HumanBytes(s.overhead_memory_bytes()));
  if (s.numa_nodes_size() > 0) fmt::print("NUMA:      {}\n", NumaText(s.numa_nodes()));
  PrintReadiness(s);
  if (!s.state_path().empty()) fmt::print("state at:  {}\n", Printable(s.state_path()));
  fmt::print("why:\n");
  for (const std::string& reason : s.reasons()) fmt::print("  {}\n", Printable(reason));
  PrintVolumes(s);
  Table table({"LAYER", "PLACE", "SIZE", "SHARED WITH"});
  for (const v1::Layer& layer : layers.layers()) {
    if (std::find(layer.users().begin(), layer.users().end(), s.id()) == layer.users().end()) continue;
    table.Add({ShortId(layer.id()),
               layer.kind() == "vpmem" ? fmt::format("{} at {}", layer.arena(), layer.offset())
                                       : "SCSI disk " + Printable(layer.image_path()),
               HumanBytes(layer.payload_bytes()), fmt::format("{} others", layer.users_size() - 1)});
  }
  fmt::print("{}", table.ToString());
  return absl::OkStatus();
}

absl::Status Claims(const Common& common) {
  ASSIGN_OR_RETURN(const v1::ClaimList list, List(common, &v1::Node::Stub::ListClaims));
  if (common.json) return PrintJson(list);
  Table table({"SANDBOX", "POD", "PROMISED", "RESIDENT", "OUTSTANDING", "FLOOR", "LOWERED", "NUMA", "VM",
               "AGE", "GENERATION"});
  for (const v1::Claim& c : list.claims()) {
    table.Add({ShortId(c.id()), PodName(c.namespace_(), c.pod()), HumanBytes(c.target_bytes()),
               HumanBytes(c.resident_bytes()), HumanBytes(c.outstanding_bytes()),
               c.floor_bytes() > 0 ? HumanBytes(c.floor_bytes()) : "-",
               c.uncooperative() ? HumanBytes(c.lowered_bytes()) + " (uncooperative)"
                                 : HumanBytes(c.lowered_bytes()),
               NumaText(c.numa_nodes()), c.bound() ? "yes" : "no", HumanSeconds(c.age_seconds()),
               std::to_string(c.generation())});
  }
  fmt::print("{}{} of {} claimed by {} sandboxes, {} available\n", table.ToString(),
             HumanBytes(list.claimed_bytes()), HumanBytes(list.capacity_bytes()), list.claims_size(),
             HumanBytes(list.available_bytes()));
  if (list.numa_nodes_size() < 2) return absl::OkStatus();
  Table nodes({"NUMA NODE", "CAPACITY", "CLAIMED BY SETS", "AVAILABLE"});
  for (const v1::NumaNode& n : list.numa_nodes()) {
    nodes.Add({std::to_string(n.node()), HumanBytes(n.capacity_bytes()), HumanBytes(n.claimed_bytes()),
               HumanBytes(n.available_bytes())});
  }
  fmt::print("{}", nodes.ToString());
  return absl::OkStatus();
}

absl::Status Arenas(const Common& common) {
  ASSIGN_OR_RETURN(const v1::ArenaList list, List(common, &v1::Node::Stub::ListArenas));
  if (common.json) return PrintJson(list);
  Table table({"ARENA", "DOMAIN", "SIZE", "HELD", "PAYLOAD", "FULL", "REGIONS"});
  for (const v1::Arena& a : list.arenas()) {
    table.Add({a.id(), Printable(a.domain()), HumanBytes(a.bytes()), HumanBytes(a.held_bytes()),
               HumanBytes(a.payload_bytes()), Percent(a.held_bytes(), a.bytes()),
               std::to_string(a.regions())});
  }
  fmt::print("{}", table.ToString());
  return absl::OkStatus();
}

absl::Status Layers(const Common& common) {
  ASSIGN_OR_RETURN(const v1::LayerList list, List(common, &v1::Node::Stub::ListLayers));
  if (common.json) return PrintJson(list);
  Table table({"LAYER", "PLACE", "OFFSET", "HELD", "FILL", "USERS", "WHY NOT VPMEM"});
  uint64_t idle = 0;
  for (const v1::Layer& layer : list.layers()) {
    const bool vpmem = layer.kind() == "vpmem";
    if (layer.users_size() == 0) idle += layer.held_bytes();
    std::vector<std::string> users;
    for (const std::string& user : layer.users()) users.push_back(ShortId(user));
    if (users.size() > 3) {
      const size_t more = users.size() - 2;
      users.resize(2);
      users.push_back(fmt::format("{} more", more));
    }
    table.Add({ShortId(layer.id()),
               vpmem                       ? layer.arena()
               : layer.root_hash().empty() ? "scsi"
                                           : "scsi+verity",
               vpmem ? std::to_string(layer.offset()) : "-", HumanBytes(layer.held_bytes()),
               Percent(layer.payload_bytes(), layer.held_bytes()),
               users.empty() ? "-" : fmt::format("{}", fmt::join(users, ",")),
               vpmem ? "" : Printable(layer.why_scsi())});
  }
  fmt::print("{}{} layers; {} in layers that no sandbox uses\n", table.ToString(), list.layers_size(),
             HumanBytes(idle));
  return absl::OkStatus();
}

absl::Status CollectLayers(const Common& common, const std::string& keep) {
  v1::GcRequest request;
  if (!keep.empty()) {
    ASSIGN_OR_RETURN(const uint64_t bytes, ParseBytes(keep, "--keep"));
    request.set_keep_bytes(bytes);
  }
  ASSIGN_OR_RETURN(const Laminad laminad, Connect(common));
  v1::GcResponse response;
  RETURN_IF_ERROR(Call(laminad, &v1::Node::Stub::GcLayers, request, &response, kGcTimeout));
  if (common.json) return PrintJson(response);
  fmt::print("{} freed\n", HumanBytes(response.freed_bytes()));
  return absl::OkStatus();
}

absl::Status PackLayers(const Common& common) {
  ASSIGN_OR_RETURN(const Laminad laminad, Connect(common));
  v1::PackResponse response;
  RETURN_IF_ERROR(Call(laminad, &v1::Node::Stub::PackLayers, v1::PackRequest(), &response, kGcTimeout));
  if (common.json) return PrintJson(response);
  fmt::print("{} layers moved ({}), {} arenas removed\n", response.moved_layers(),
             HumanBytes(response.moved_bytes()), response.removed_arenas());
  return absl::OkStatus();
}

absl::StatusOr<LaminadAnswer> AskLaminad(const Common& common) {
  ASSIGN_OR_RETURN(const Laminad laminad, Connect(common));
  v1::StatusResponse status;
  RETURN_IF_ERROR(Call(laminad, &v1::Node::Stub::GetStatus, v1::StatusRequest(), &status));
  if (!status.ready())
    return absl::FailedPreconditionError("laminad has not reconciled with the running VMs yet");
  if (!status.pressure().empty())
    return MakeStatus(absl::StatusCode::kFailedPrecondition, "nothing is granted: {}", status.pressure());
  return LaminadAnswer{
      fmt::format("{} answers: {} sandboxes, {} of {} claimed", status.version(), status.sandboxes(),
                  HumanBytes(status.claimed_bytes()), HumanBytes(status.capacity_bytes())),
      status.unconfined()};
}

}  // namespace lamina::cli

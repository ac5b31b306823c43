// Layers in real VMs: what adding one costs, phase by phase; reads through DAX against SCSI; the memory that
// pods of one image take when they share it, against a private copy each. Needs root and the guest image.
//   layers_vm_bench [PODS]     default 10
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>

#include "base/file_system.h"
#include "base/status.h"
#include "base/units.h"
#include "layers/digest.h"
#include "layers/layer_store.h"
#include "layers/verity.h"
#include "tests/integration/vmm/machine.h"

namespace lamina::vmm {
namespace {

namespace fs = std::filesystem;
using layers::LayerStore;
using layers::Placement;
using layers::PlacementKind;
using std::chrono::steady_clock;

constexpr uint64_t kImageBytes = 64 * kMiB;

double Since(steady_clock::time_point start) {
  return std::chrono::duration<double>(steady_clock::now() - start).count();
}

// Ends the bench from where it is: VMs and folders go with their scopes.
struct Failed {
  std::string why;
};

template <typename T>
T Must(absl::StatusOr<T> result) {
  if (result.ok()) return std::move(*result);
  throw Failed{Message(result.status())};
}
void Must(const absl::Status& status) {
  if (status.ok()) return;
  throw Failed{Message(status)};
}

// A directory of `files` files of random bytes, `bytes` in all.
std::string MakeDirectory(const std::string& path, uint64_t bytes, int files) {
  fs::create_directories(path + "/data");
  std::mt19937_64 random(bytes);
  std::string content(bytes / static_cast<uint64_t>(files), '\0');
  for (int i = 0; i < files; ++i) {
    for (size_t at = 0; at + 8 <= content.size(); at += 8) {
      const uint64_t word = random();
      content.replace(at, 8, reinterpret_cast<const char*>(&word), 8);
    }
    std::ofstream(path + "/data/" + std::to_string(i)) << content;
  }
  return path;
}

// Bytes of the file in the host's page cache.
uint64_t Cached(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  const uint64_t bytes = fs::file_size(path);
  void* map = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (map == MAP_FAILED) return 0;
  std::vector<unsigned char> pages((bytes + 4095) / 4096);
  uint64_t resident = 0;
  if (mincore(map, bytes, pages.data()) == 0) {
    for (const unsigned char page : pages) resident += (page & 1) * 4096;
  }
  munmap(map, bytes);
  return resident;
}

void DropFromCache(const std::string& path) {
  const UniqueFd fd(open(path.c_str(), O_RDWR | O_CLOEXEC));
  fsync(fd.get());
  posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED);
}

// The proportional share of `pid` in its mappings of `path`, from /proc.
uint64_t PssOf(pid_t pid, const std::string& path) {
  std::ifstream smaps("/proc/" + std::to_string(pid) + "/smaps");
  uint64_t sum = 0;
  bool ours = false;
  for (std::string line; std::getline(smaps, line);) {
    if (line.find('-') != std::string::npos && line.find(" r") != std::string::npos)
      ours = line.find(path) != std::string::npos;
    if (ours && line.rfind("Pss:", 0) == 0) sum += strtoull(line.c_str() + 4, nullptr, 10) * kKiB;
  }
  return sum;
}

uint64_t GuestCache(Machine& machine) {
  return Must(machine.Call(guest::kGuestInfo, agent::v1::Empty())).page_cache_bytes();
}

struct Add {
  Placement placement;
  double attach = 0;
  agent::v1::LayerResult guest;
};

Add Mount(Machine& machine, const Placement& placement, int id) {
  Add add{placement, 0, {}};
  const auto start = steady_clock::now();
  if (placement.kind == PlacementKind::kVpmem) {
    const std::string path =
        Must(machine.vm().AttachArena({placement.arena_id, placement.arena_path, placement.arena_bytes},
                                      placement.offset + placement.payload_bytes));
    add.attach = Since(start);
    add.guest = Must(machine.MountPmem(id, path, placement.offset, placement.payload_bytes));
  } else {
    const auto attach = [&](const std::string& path) {
      return Must(machine.vm().scsi().Map(Must(machine.vm().scsi().Reserve(path))));
    };
    const DiskPlace place = attach(placement.image_path);
    agent::v1::Verity verity;
    if (!placement.tree_path.empty()) {
      *verity.mutable_tree() = Machine::Disk(attach(placement.tree_path), placement.tree.bytes);
      verity.set_root_hash(placement.tree.root_hash);
    }
    add.attach = Since(start);
    add.guest = Must(machine.MountScsi(id, place, placement.payload_bytes, verity));
  }
  return add;
}

// Runs busybox in a container of the layers, topmost first; its wall time.
double Run(Machine& machine, const std::vector<int>& layer_ids, const std::string& script) {
  static int count = 0;
  agent::v1::CreateContainerRequest create;
  create.set_container_id("c" + std::to_string(++count));
  create.set_spec_json(R"({"ociVersion":"1.0.2","process":{"args":["/busybox","sh","-c",")" + script +
                       R"("],"cwd":"/","env":[],"user":{"uid":0,"gid":0}},)"
                       R"("linux":{"namespaces":[{"type":"pid"},{"type":"mount"}]}})");
  for (const int id : layer_ids) create.add_layer_ids(LayerId(id));
  Must(machine.Call(guest::kCreateContainer, create).status());
  agent::v1::ProcessRequest process;
  process.set_container_id(create.container_id());
  const auto start = steady_clock::now();
  Must(machine.Call(guest::kStartProcess, process).status());
  const auto waited = Must(machine.Call(guest::kWaitProcess, process));
  const double seconds = Since(start);
  Must(machine.Call(guest::kDeleteProcess, process).status());
  if (waited.exit_status() != 0) {
    throw Failed{fmt::format("\"{}\" in the guest ended with {}", script, waited.exit_status())};
  }
  return seconds;
}

layers::PlaceRequest Ask(const std::string& source) {
  layers::PlaceRequest request;
  request.sandbox_id = "bench";
  request.domain = "bench";
  request.source = source;
  request.free_arena_slots = 4;
  return request;
}

// VPMem layers from `arena`, disks from `disk`, disks with hash trees from `verity`.
struct Stores {
  explicit Stores(const std::string& dir) {
    layers::StoreOptions options;
    options.dir = dir + "/arena-store";
    arena = Must(LayerStore::Open(FileSystem::Real(), options));
    options.dir = dir + "/disk-store";
    options.vpmem = false;
    disk = Must(LayerStore::Open(FileSystem::Real(), options));
    options.dir = dir + "/verity-store";
    options.scsi_verity = true;
    verity = Must(LayerStore::Open(FileSystem::Real(), options));
  }
  struct Kind {
    const char* name;
    LayerStore& store;
  };
  std::vector<Kind> kinds() { return {{"VPMem", *arena}, {"SCSI", *disk}, {"SCSI, hash tree", *verity}}; }
  std::unique_ptr<LayerStore> arena, disk, verity;
};

void AddByPhase(Machine& machine, Stores& stores, const std::string& dir, int& next_id) {
  fmt::print(
      "\n| adding a layer, seconds | convert | copy | attach | device seen | map | mount |\n"
      "|---|---|---|---|---|---|---|\n");
  const struct {
    const char* name;
    uint64_t bytes;
    int files;
  } sizes[] = {{"small", 64 * kKiB, 8}, {"median", 4 * kMiB, 60}, {"large", 100 * kMiB, 400}};
  for (const Stores::Kind& kind : stores.kinds()) {
    for (const auto& size : sizes) {
      const std::string source = MakeDirectory(dir + "/" + size.name, size.bytes, size.files);
      const Placement placement = Must(kind.store.Place(Ask(source)));
      const Add add = Mount(machine, placement, next_id++);
      fmt::print("| {}, {}, {} | {:.3f} | {:.3f} | {:.3f} | {:.3f} | {:.3f} | {:.3f} |\n", size.name,
                 FormatBytes(size.bytes), kind.name, placement.convert_seconds, placement.copy_seconds,
                 add.attach, add.guest.wait_device_seconds(), add.guest.map_seconds(),
                 add.guest.mount_seconds());
    }
  }
}

// The image's sha256 is taken in any case; a tree takes it too, of the same bytes.
void TreeAgainstDigest(const Placement& disk) {
  double digest = 1e9, tree = 1e9;
  for (int i = 0; i < 3; ++i) {
    auto start = steady_clock::now();
    Must(layers::DigestOf(disk.image_path, 0, disk.payload_bytes).status());
    digest = std::min(digest, Since(start));
    start = steady_clock::now();
    Must(layers::MakeVerityTree({disk.image_path, disk.layer_id, disk.payload_bytes}, disk.tree_path + ".new")
             .status());
    tree = std::min(tree, Since(start));
  }
  fmt::print("\nMaking the hash tree of {} takes {:.3f} s, {:.1f} times its sha256.\n",
             FormatBytes(kImageBytes), tree, tree / digest);
}

// A VM for each kind: none has another's pages to throw out.
void Reads(Stores& stores, const Placement& tools, const std::string& image) {
  fmt::print("\n| reading {} in the guest | first | again | guest page cache |\n|---|---|---|---|\n",
             FormatBytes(kImageBytes));
  std::vector<double> first;
  for (const Stores::Kind& kind : stores.kinds()) {
    const std::unique_ptr<Machine> booted = Must(Machine::Boot({}));
    Machine& machine = *booted;
    Mount(machine, tools, 1);
    Mount(machine, Must(kind.store.Place(Ask(image))), 2);
    Run(machine, {2, 1}, "/busybox true");  // the first process of a VM takes longer
    const double idle = Run(machine, {2, 1}, "/busybox true");
    const uint64_t before = GuestCache(machine);
    const std::string script = "/busybox cat /data/* > /dev/null";
    const double cold = Run(machine, {2, 1}, script), warm = Run(machine, {2, 1}, script);
    const uint64_t after = GuestCache(machine);
    const auto rate = [&](double seconds) {
      return static_cast<double>(kImageBytes) / kMiB / std::max(1e-3, seconds - idle);
    };
    first.push_back(rate(cold));
    fmt::print("| {} | {:.0f} MiB/s | {:.0f} MiB/s | +{:.1f} MiB |\n", kind.name, rate(cold), rate(warm),
               (static_cast<double>(after) - static_cast<double>(before)) / kMiB);
  }
  fmt::print("First reads: DAX is {:.2f} times SCSI, SCSI with a hash tree {:.2f}.\n", first[0] / first[1],
             first[2] / first[1]);
}

void Memory(const Placement& tools, const Placement& image, const std::string& dir, int pods) {
  std::vector<std::unique_ptr<Machine>> machines;
  for (int i = 0; i < pods; ++i) machines.push_back(Must(Machine::Boot({})));
  fmt::print(
      "\n| {} pods that read the same {} | in the guests | in the host's cache | together | a pod |\n"
      "|---|---|---|---|---|---|\n",
      pods, FormatBytes(kImageBytes));
  double sums[2];
  for (const bool shared : {true, false}) {
    std::vector<std::string> files = {image.arena_path};
    if (!shared) {
      files.clear();
      for (int i = 0; i < pods; ++i) {
        files.push_back(dir + "/private-" + std::to_string(i));
        std::ofstream out(files.back(), std::ios::binary);
        std::ifstream in(image.arena_path, std::ios::binary);
        in.seekg(static_cast<std::streamoff>(image.offset));
        std::string bytes(image.payload_bytes, '\0');
        in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
        out << bytes;
      }
    }
    for (const std::string& file : files) DropFromCache(file);
    uint64_t guests = 0, host = 0, pss = 0;
    for (int i = 0; i < pods; ++i) {
      Machine& machine = *machines[static_cast<size_t>(i)];
      if (shared) Mount(machine, tools, 1);
      Placement mine = image;
      if (!shared) {
        mine.kind = PlacementKind::kScsi;
        mine.image_path = files[static_cast<size_t>(i)];
      }
      Mount(machine, mine, shared ? 2 : 3);
      Run(machine, {1}, "true");
      const uint64_t before = GuestCache(machine);
      Run(machine, {shared ? 2 : 3, 1}, "/busybox cat /data/* > /dev/null");
      const uint64_t after = GuestCache(machine);
      guests += after > before ? after - before : 0;
    }
    for (const std::string& file : files) host += Cached(file);
    for (const auto& machine : machines) pss += PssOf(machine->vm().pid(), image.arena_path);
    sums[shared] = static_cast<double>(guests + host) / kMiB;
    fmt::print("| {} | {:.1f} MiB | {:.1f} MiB | {:.1f} MiB | {:.1f} MiB |\n",
               shared ? "one region, DAX" : "a private disk each", static_cast<double>(guests) / kMiB,
               static_cast<double>(host) / kMiB, sums[shared], sums[shared] / pods);
    if (shared)
      fmt::print("(the {} QEMUs' shares of the arena add up to {:.1f} MiB by /proc/PID/smaps)\n", pods,
                 static_cast<double>(pss) / kMiB);
  }
  fmt::print("Private copies take {:.1f} times the memory: {:.1f} MiB are saved.\n", sums[0] / sums[1],
             sums[0] - sums[1]);
}

int Main(int pods) {
  const std::string busybox = std::string(LAMINA_GUEST_CACHE) + "/busybox/bin/busybox";
  if (geteuid() != 0 || !fs::exists(busybox)) {
    fmt::print("skipped: root and {} (fetched by the guest's integration tests) are needed\n", busybox);
    return 0;
  }
  const lamina::testing::TempDir dir;
  Stores stores(dir.path());
  for (const char* name : {"dev", "proc", "sys", "tmp"}) fs::create_directories(dir / "tools/" + name);
  fs::copy_file(busybox, dir / "tools/busybox");
  const Placement tools = Must(stores.arena->Place(Ask(dir / "tools")));
  const std::string image = MakeDirectory(dir / "image", kImageBytes, 64);
  const Placement on_dax = Must(stores.arena->Place(Ask(image)));
  {
    const std::unique_ptr<Machine> machine = Must(Machine::Boot({}));
    int next_id = 1;
    AddByPhase(*machine, stores, dir.path(), next_id);
  }
  TreeAgainstDigest(Must(stores.verity->Place(Ask(image))));
  Reads(stores, tools, image);
  Memory(tools, on_dax, dir.path(), pods);
  return 0;
}

}  // namespace
}  // namespace lamina::vmm

int main(int argc, char** argv) {
  try {
    return lamina::vmm::Main(argc > 1 ? std::max(1, atoi(argv[1])) : 10);
  } catch (const lamina::vmm::Failed& failed) {
    fmt::print(stderr, "{}\n", failed.why);
    return 1;
  }
}

// What files cost: a container's root and its volumes, in a VM and under runc, on one node in one run.
//   files_bench [FILES]   how many small files are made, 10,000 unless said
// Exit code 0: measured; 2: it could not be. docs/SPECIFICATION.md says what the lines mean.
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "base/status.h"
#include "tests/bench/pod/report.h"
#include "tests/e2e/kit/images.h"
#include "tests/e2e/kit/node.h"

namespace lamina::bench {
namespace {

namespace fs = std::filesystem;

struct Where {
  const char* name;
  const char* folder;  // in the container
  bool runc;
  std::map<std::string, std::string> config;
};

const std::vector<Where>& Places() {
  static const std::vector<Where> places = {
      {"runc, root", "/work", true, {}},
      {"runc, emptyDir", "/empty/work", true, {}},
      {"root on disk", "/work", false, {{"volumes.root", "\"disk\""}}},
      {"root in memory", "/work", false, {{"volumes.root", "\"memory\""}}},
      {"emptyDir on disk", "/empty/work", false, {{"volumes.root", "\"disk\""}}},
      {"hostPath (virtiofs)", "/host/work", false, {}},
  };
  return places;
}

// "create 1234.5" lines of the probe.
std::map<std::string, double> Figures(const std::string& text) {
  std::map<std::string, double> figures;
  std::istringstream lines(text);
  std::string name;
  double value = 0;
  while (lines >> name >> value) figures[name] = value;
  return figures;
}

absl::StatusOr<std::map<std::string, double>> MeasureAt(e2e::Node& node, const Where& where, int files) {
  RETURN_IF_ERROR(node.Reconfigure(where.config));
  e2e::CriClient& cri = node.cri();
  const std::string volumes = node.volumes_dir() + "/files";
  fs::remove_all(volumes);
  e2e::PodSpec pod;
  pod.name = "files";
  pod.handler = where.runc ? "runc" : "lamina";
  e2e::ContainerSpec container;
  container.command = {"sleep", "1000000"};
  container.mounts = {{"/empty", volumes + "/pods/uid/volumes/kubernetes.io~empty-dir/empty"},
                      {"/host", volumes + "/host"}};
  container.resources.memory = 512 << 20;
  for (const e2e::MountSpec& mount : container.mounts) fs::create_directories(mount.host_path);
  ASSIGN_OR_RETURN(const std::string pod_id, cri.RunPod(pod));
  const auto measure = [&]() -> absl::StatusOr<std::map<std::string, double>> {
    ASSIGN_OR_RETURN(const std::string id, cri.RunContainer(pod_id, container));
    ASSIGN_OR_RETURN(const e2e::ExecResult result,
                     cri.ExecSync(id, {"/probe", "files", where.folder, std::to_string(files)}, 600));
    if (result.exit_code != 0) return absl::InternalError(result.out + result.err);
    return Figures(result.out);
  };
  auto figures = measure();
  RETURN_IF_ERROR(cri.RemovePod(pod_id));
  return figures;
}

absl::Status Run(e2e::Node& node, int files, Report& report) {
  ASSIGN_OR_RETURN(const e2e::ImageKit images, e2e::ImageKit::Create(e2e::CacheDir(), e2e::ProbePath()));
  for (const e2e::Image& image : {images.Pause(), images.Busybox()}) RETURN_IF_ERROR(node.Import(image));
  const std::vector<std::pair<std::string, std::string>> lines = {
      {"create", "files/s"}, {"stat", "files/s"},     {"read", "files/s"},  {"unlink", "files/s"},
      {"write", "MiB/s"},    {"read-again", "MiB/s"}, {"fsync", "calls/s"}, {"direct", "calls/s"}};
  for (const Where& where : Places()) {
    fmt::print(stderr, "measuring: {} …\n", where.name);
    auto figures = MeasureAt(node, where, files);
    if (!figures.ok()) return Annotate(figures.status(), where.name);
    report.Section(where.name);
    for (const auto& [name, unit] : lines) {
      if (figures->count(name) != 0) report.Show(name, (*figures)[name], unit);
    }
  }
  return absl::OkStatus();
}

int Main(int files) {
  auto node = e2e::Node::Start({});
  if (!node.ok()) {
    fmt::print(stderr, "files_bench: {}\n", Message(node.status()));
    return 2;
  }
  Report report;
  const absl::Status status = Run(**node, files, report);
  if (!status.ok()) fmt::print(stderr, "files_bench: {}\n{}\n", Message(status), (*node)->LogTails());
  const absl::Status stopped = (*node)->Stop();
  if (!stopped.ok()) fmt::print(stderr, "files_bench: {}\n", Message(stopped));
  fmt::print("{}", report.Text());
  return status.ok() && stopped.ok() ? 0 : 2;
}

}  // namespace
}  // namespace lamina::bench

int main(int argc, char** argv) {
  const int files = argc > 1 ? atoi(argv[1]) : 10'000;
  if (files <= 0) {
    fmt::print(stderr, "usage: files_bench [FILES]\n");
    return 2;
  }
  return lamina::bench::Main(files);
}

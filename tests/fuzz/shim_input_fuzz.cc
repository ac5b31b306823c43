// What the shim reads from its side of the world: containerd's spec and flags, cgroup paths, ip's output.
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/safe_id.h"
#include "cri/cgroup.h"
#include "cri/command_line.h"
#include "cri/network.h"
#include "cri/oci_spec.h"
#include "persist/sandbox_state.h"
#include "sizing/annotations.h"
#include "tests/fuzz/check.h"

namespace {

using namespace lamina::cri;

void Spec(const std::string& text) {
  const auto spec = ParseSpec(text, "config.json");
  std::map<size_t, std::string> sources;
  if (spec.ok()) {
    for (size_t i = 0; i < spec->mounts.size(); ++i) {
      if (spec->mounts[i].is_bind()) sources[i] = i % 3 == 2 ? "" : "/run/lamina/shared/v";
    }
    for (const std::string* text_part : {&spec->cgroups_path, &spec->netns_path, &spec->hostname})
      FUZZ_CHECK(text_part->find('\0') == std::string::npos);
    lamina::sizing::LimitsFromAnnotations(spec->annotations).status().IgnoreError();
  }
  FUZZ_CHECK(WithPodFiles(text, "config.json").ok() == spec.ok());
  std::vector<std::string> notes;
  const auto guest = GuestSpec(text, sources, notes);
  if (!guest.ok()) return;
  const auto root = nlohmann::json::parse(*guest, nullptr, false);
  FUZZ_CHECK(root.is_object());
  FUZZ_CHECK(!root.contains("hooks") && !root["linux"].contains("cgroupsPath"));
  for (const auto& item : root["linux"]["namespaces"]) FUZZ_CHECK(item.size() == 1 && item.contains("type"));
  if (!spec.ok()) return;
  for (const auto& mount : root["mounts"]) {
    if (mount.value("type", "") == "bind") FUZZ_CHECK(mount["source"] == "/run/lamina/shared/v");
  }
}

void Path(const std::string& text) {
  const auto path = CgroupPath(text);
  if (!path.ok()) return;
  FUZZ_CHECK(path->size() > 1 && (*path)[0] == '/');
  const std::string closed = *path + "/";
  for (const char* bad : {"//", "/./", "/../"}) FUZZ_CHECK(closed.find(bad) == std::string::npos);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == '\n') {
      parts.emplace_back();
    } else {
      parts.back().push_back(c);
    }
  }
  switch (data[0] % 4) {
    case 0:
      Spec(text);
      break;
    case 1:
      Path(text);
      break;
    case 2:
      parts.resize(3);
      ParseNetwork(parts[0], parts[1], parts[2]).status().IgnoreError();
      break;
    default: {
      const auto line = ParseCommandLine(parts);
      if (line.ok() && !line->id.empty()) {
        FUZZ_CHECK(lamina::IsSafeId(line->id));
        FUZZ_CHECK(ShimSocket("/r", line->ns, line->id).size() < 64);
      }
      break;
    }
  }
  return 0;
}

// Everything the agent parses: specs and processes of the pod's author, kernel files, uevents, addresses. The
// first byte chooses the parser.
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/proc.h"
#include "guest/agent/crun.h"
#include "guest/agent/devices.h"
#include "guest/agent/files.h"
#include "guest/agent/kept_files.h"
#include "guest/agent/modules.h"
#include "guest/agent/network.h"
#include "guest/agent/spec.h"
#include "guest/agent/system.h"
#include "proto/agent.pb.h"
#include "tests/testing/temp_dir.h"

namespace {

// Whatever is sent of a volume, it makes nothing outside the volume's own folder.
void PutFiles(std::string_view text) {
  namespace fs = std::filesystem;
  using namespace lamina::guest;
  static const lamina::testing::TempDir folder;
  lamina::agent::v1::PutFilesRequest request;
  if (!request.ParseFromArray(text.data(), static_cast<int>(text.size()))) return;
  for (const auto& entry : request.entries()) {
    const std::string path = "/" + entry.path() + "/";
    if (CheckFileEntry(entry).ok() &&
        (path.find("/../") != std::string::npos || entry.path().find('\0') != std::string::npos))
      __builtin_trap();
  }
  const std::string volumes = folder / "volumes";
  KeptFiles files({.directory = volumes, .mount = false, .grace = {}});
  request.set_volume("v");
  files.Put(request).IgnoreError();
  request.set_first(true);
  request.set_last(true);
  files.Put(request).IgnoreError();
  files.Read("v").status().IgnoreError();
  for (const std::string& place : {folder.path(), volumes}) {
    for (const auto& entry : fs::directory_iterator(place)) {
      if (entry.path() != volumes && entry.path() != volumes + "/v") __builtin_trap();
    }
  }
  if (!files.Remove("v").ok()) __builtin_trap();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lamina::guest;
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  SpecContext context;
  context.container_id = "c";
  context.has_huge_pages = [](std::string_view page) { return page == "2MB"; };
  switch (data[0] % 15) {
    case 0:
      context.rootfs = "/r";
      PrepareSpec(text, context).status().IgnoreError();
      break;
    case 1: {
      const auto prepared = PrepareSpec(text, context);
      if (prepared.ok() && !IsBelow(prepared->rootfs, context.shared_directory)) __builtin_trap();
      break;
    }
    case 2:
      PrepareProcess(text, true).status().IgnoreError();
      break;
    case 3:
      PrepareResources(text, context.has_huge_pages).status().IgnoreError();
      break;
    case 4:
      ParseUevent(text);
      break;
    case 5:
      ParseFlatKeyed(text);
      break;
    case 6: {
      const auto slots = ParsePciPath(text);
      if (slots.ok() && (slots->empty() || slots->size() > 8)) __builtin_trap();
      break;
    }
    case 7:
      ParseIp(text).status().IgnoreError();
      break;
    case 8:
      ParseMac(text).status().IgnoreError();
      break;
    case 9: {
      const auto path = SysctlPath(text);
      if (path.ok() && (path->find("/../") != std::string::npos || path->rfind("/proc/sys/", 0) != 0))
        __builtin_trap();
      break;
    }
    case 10:
      CrunError("exec", 1, text).IgnoreError();
      break;
    case 11:
      ParseModuleOrder(text).status().IgnoreError();
      break;
    case 12:
      ParseCpuList(text).status().IgnoreError();
      break;
    case 13:
      PutFiles(text);
      break;
    default:
      lamina::KernelBytes(text, "MemTotal");
      lamina::ParseMountinfo(text);
      break;
  }
  return 0;
}

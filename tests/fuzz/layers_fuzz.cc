// What layers/ reads: an image's header, a trace of allocations, the store's index, as it is and behind a
// right checksum. The first byte chooses.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <string>

#include "base/file_system.h"
#include "base/framing.h"
#include "base/status.h"
#include "layers/erofs_image.h"
#include "layers/layer_store.h"
#include "layers/replay.h"
#include "tests/fuzz/check.h"
#include "tests/testing/temp_dir.h"

namespace {

using namespace lamina::layers;

void Header(const std::string& bytes, const std::string& dir) {
  const std::string path = dir + "/image";
  FUZZ_CHECK(lamina::FileSystem::Real().WriteAndSync(path, bytes, 0600).ok());
  const auto image = ExamineErofsImage(path);
  if (!image.ok()) {
    FUZZ_CHECK(lamina::Message(image.status()).find(path) != std::string::npos);
  } else {
    FUZZ_CHECK(image->bytes == bytes.size() && image->digest.size() == 64);
  }
}

void Trace(const std::string& trace, bool dense) {
  ReplayOptions options;
  options.policy = dense ? Policy::kDense : Policy::kClassic;
  options.device_bytes = 1ULL << 30;
  options.devices = 2;
  size_t lines = 0;
  const auto summary = Replay(trace, options, [&](const std::string& json) {
    ++lines;
    FUZZ_CHECK(nlohmann::json::accept(json));
  });
  if (!summary.ok()) return;
  FUZZ_CHECK(lines >= 1 && summary->payload_bytes <= summary->held_bytes);
  FUZZ_CHECK(summary->held_bytes <= summary->capacity_bytes);
  FUZZ_CHECK(summary->pristine == (summary->live == 0));
}

void Index(const std::string& content, const std::string& dir) {
  StoreOptions options;
  options.dir = dir + "/store";
  options.arena_bytes = 64 << 20;
  auto& fs = lamina::FileSystem::Real();
  FUZZ_CHECK(fs.RemoveTree(options.dir).ok() && fs.MakeDirectories(options.dir, 0700).ok());
  FUZZ_CHECK(fs.WriteAndSync(options.dir + "/index.json", content, 0600).ok());
  // One arena that an index may speak of.
  const int fd = open((options.dir + "/arena-1.arena").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  FUZZ_CHECK(fd >= 0 && ftruncate(fd, 64 << 20) == 0);
  close(fd);
  const auto store = LayerStore::Open(fs, options);
  if (!store.ok()) {
    FUZZ_CHECK(!store.status().message().empty());
    return;
  }
  for (const ArenaInfo& arena : (*store)->arenas()) FUZZ_CHECK(arena.held_bytes <= arena.bytes);
  (*store)->RetainSandboxes({}).IgnoreError();
  FUZZ_CHECK((*store)->Gc(0).ok());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const lamina::testing::TempDir dir;
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 5) {
    case 0:
      Header(text, dir.path());
      break;
    case 1:
    case 2:
      Trace(text, data[0] % 5 == 1);
      break;
    case 3:
      Index(lamina::EncodeFrame({"index", 3, 3}, text), dir.path());
      break;
    default:
      Index(text, dir.path());
      break;
  }
  return 0;
}

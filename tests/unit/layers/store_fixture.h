// A store in a folder of its own, with images made by a fake instead of mkfs.erofs.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>

#include "base/file_system.h"
#include "base/status.h"
#include "base/units.h"
#include "layers/arena_file.h"
#include "layers/layer_store.h"

namespace lamina::layers {

// The kernel's files; `before` is told of each call ("create", "copy in", "copy out", "punch") and may block,
// or answer instead.
class HookedArenaFiles : public ArenaFiles {
 public:
  std::function<absl::Status(const std::string& call)> before = [](const std::string&) {
    return absl::OkStatus();
  };

  absl::Status Create(const std::string& path, uint64_t bytes) override {
    RETURN_IF_ERROR(before("create"));
    return Real().Create(path, bytes);
  }
  absl::Status CopyIn(const CopySource& from, const ArenaRange& to, const std::string& digest,
                      const Patience& patience) override {
    RETURN_IF_ERROR(before("copy in"));
    return Real().CopyIn(from, to, digest, patience);
  }
  absl::Status CopyOut(const ArenaRange& from, const std::string& to, const Patience& patience) override {
    RETURN_IF_ERROR(before("copy out"));
    return Real().CopyOut(from, to, patience);
  }
  absl::Status Punch(const ArenaRange& range) override {
    RETURN_IF_ERROR(before("punch"));
    return Real().Punch(range);
  }
};

class StoreFixture : public ::testing::Test {
 protected:
  StoreFixture() {
    char name[] = "/tmp/lamina-layer-store.XXXXXX";
    root_ = mkdtemp(name);
    options_.dir = root_ + "/store";
    options_.arena_bytes = 16 * kMiB;
    options_.max_layer_bytes = 8 * kMiB;
    options_.idle_budget_bytes = kGiB;
  }
  ~StoreFixture() override { std::filesystem::remove_all(root_); }

  // A layer directory whose image is `bytes` long and depends on `content` alone.
  std::string Layer(const std::string& name, const std::string& content, uint64_t bytes) {
    const std::string dir = root_ + "/layers/" + name;
    std::filesystem::create_directories(dir);
    std::ofstream(dir + "/content") << bytes << " " << content;
    return dir;
  }
  static std::string ImageOf(const std::string& content, uint64_t bytes) {
    std::string image(bytes, '\0');
    const uint32_t magic = 0xE0F5E1E2;
    image.replace(1024, sizeof magic, reinterpret_cast<const char*>(&magic), sizeof magic);
    for (size_t at = 4096; at + content.size() < bytes; at += 4096)
      image.replace(at, content.size(), content);
    image.replace(2048, content.size(), content);
    return image;
  }
  absl::StatusOr<Image> Make(const std::string& directory, const std::string& path) {
    ++made_;
    std::ifstream in(directory + "/content");
    uint64_t bytes = 0;
    std::string content;
    if (!(in >> bytes >> content)) return absl::InternalError("fake mkfs: " + directory + ": no content");
    std::ofstream(path) << ImageOf(content, bytes);
    return ExamineErofsImage(path);
  }
  absl::StatusOr<std::unique_ptr<LayerStore>> Open(FileSystem& fs = FileSystem::Real(),
                                                   ArenaFiles& arenas = ArenaFiles::Real()) {
    return LayerStore::Open(
        fs, options_,
        [this](const std::string& directory, const std::string& path, uint64_t, const std::stop_token&) {
          return Make(directory, path);
        },
        arenas);
  }
  PlaceRequest Ask(const std::string& sandbox, const std::string& source, const std::string& domain = "ns") {
    PlaceRequest request;
    request.sandbox_id = sandbox;
    request.domain = domain;
    request.source = source;
    request.free_arena_slots = 4;
    return request;
  }
  // The bytes that a VM with the arena would see.
  static std::string Seen(const Placement& placement) {
    std::ifstream in(placement.kind == PlacementKind::kVpmem ? placement.arena_path : placement.image_path);
    in.seekg(static_cast<std::streamoff>(placement.offset));
    std::string data(placement.payload_bytes, '\0');
    in.read(data.data(), static_cast<std::streamsize>(data.size()));
    data.resize(static_cast<size_t>(in.gcount()));
    return data;
  }
  std::set<std::string> Files() const {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(options_.dir))
      names.insert(entry.path().filename());
    return names;
  }
  static void Damage(const Placement& placement) {
    std::fstream file(placement.kind == PlacementKind::kVpmem ? placement.arena_path : placement.image_path,
                      std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(placement.offset + 5000));
    file << "damage";
  }

  std::string root_;
  StoreOptions options_;
  std::atomic<int> made_ = 0;
};

}  // namespace lamina::layers

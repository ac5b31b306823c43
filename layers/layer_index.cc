#include "layers/layer_index.h"

#include <nlohmann/json.hpp>

#include "base/framing.h"
#include "base/sha256.h"
#include "base/status.h"
#include "base/units.h"

namespace lamina::layers {
namespace {

using nlohmann::json;

constexpr FrameKind kKind{"index", 3, 3};

std::string Text(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

uint64_t Number(const json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number_unsigned() ? it->get<uint64_t>() : 0;
}

std::set<std::string> Users(const json& object) {
  std::set<std::string> users;
  const auto it = object.find("users");
  if (it == object.end() || !it->is_array()) return users;
  for (const json& user : *it) {
    if (user.is_string()) users.insert(user.get<std::string>());
  }
  return users;
}

const json& Array(const json& object, const char* key) {
  static const json empty = json::array();
  const auto it = object.find(key);
  return it != object.end() && it->is_array() ? *it : empty;
}

// Paths need not be UTF-8; what is not is replaced.
std::string Dump(const json& content) { return content.dump(-1, ' ', false, json::error_handler_t::replace); }

json ContentOf(const IndexContent& content) {
  json arenas = json::array(), disks = json::array();
  for (const IndexedArena& arena : content.arenas) {
    json regions = json::array();
    for (const IndexedRegion& region : arena.regions) {
      regions.push_back({{"digest", region.digest},
                         {"offset", region.region.offset},
                         {"held", region.region.held_bytes},
                         {"payload", region.region.payload_bytes},
                         {"generation", region.region.handle.generation},
                         {"last_use", region.last_use},
                         {"users", region.users}});
    }
    arenas.push_back({{"id", arena.id},
                      {"domain", arena.domain},
                      {"policy", NameOf(arena.policy)},
                      {"bytes", arena.bytes},
                      {"regions", std::move(regions)}});
  }
  for (const IndexedDisk& disk : content.disks) {
    disks.push_back({{"digest", disk.digest},
                     {"path", disk.path},
                     {"why", disk.why},
                     {"bytes", disk.bytes},
                     {"last_use", disk.last_use},
                     {"users", disk.users}});
  }
  return {{"next_arena", content.next_arena},
          {"sources", content.sources},
          {"arenas", std::move(arenas)},
          {"disks", std::move(disks)}};
}

absl::StatusOr<IndexedArena> ArenaFrom(const json& object) {
  IndexedArena arena;
  arena.id = Text(object, "id");
  arena.domain = Text(object, "domain");
  arena.bytes = Number(object, "bytes");
  ASSIGN_OR_RETURN(arena.policy, ParsePolicy(Text(object, "policy")));
  for (const json& item : Array(object, "regions")) {
    IndexedRegion region;
    region.digest = Text(item, "digest");
    if (region.digest.size() != 64 && !IsDamaged(region.digest)) continue;
    region.region.offset = region.region.handle.offset = Number(item, "offset");
    region.region.handle.generation = Number(item, "generation");
    region.region.held_bytes = Number(item, "held");
    region.region.payload_bytes = Number(item, "payload");
    region.last_use = Number(item, "last_use");
    region.users = Users(item);
    arena.regions.push_back(std::move(region));
  }
  return arena;
}

absl::StatusOr<IndexContent> ContentFrom(const json& root) {
  IndexContent content;
  content.next_arena = Number(root, "next_arena");
  for (const json& object : Array(root, "arenas")) {
    const std::string id = Text(object, "id");
    if (id.empty() || id.find('/') != std::string::npos) continue;
    ASSIGN_OR_RETURN(IndexedArena arena, ArenaFrom(object));
    content.arenas.push_back(std::move(arena));
  }
  for (const json& object : Array(root, "disks")) {
    IndexedDisk disk;
    disk.digest = Text(object, "digest");
    if (disk.digest.size() != 64 || disk.digest.find('/') != std::string::npos) continue;
    disk.path = Text(object, "path");
    disk.why = Text(object, "why");
    disk.bytes = Number(object, "bytes");
    disk.last_use = Number(object, "last_use");
    disk.users = Users(object);
    content.disks.push_back(std::move(disk));
  }
  if (const auto sources = root.find("sources"); sources != root.end() && sources->is_object()) {
    for (const auto& [key, digest] : sources->items()) {
      if (digest.is_string()) content.sources[key] = digest.get<std::string>();
    }
  }
  return content;
}

// Version 2 was JSON alone: the version, the content's sha256, the content.
absl::StatusOr<IndexContent> DecodeOldIndex(std::string_view text, const FramedFile& file) {
  const json root = json::parse(text, nullptr, false);
  if (!root.is_object()) return DamagedFile(file, "it is not a layer index");
  if (const uint64_t version = Number(root, "version"); version != 2)
    return DamagedFile(file, fmt::format("version {} is not read", version));
  const auto content = root.find("content");
  if (content == root.end() || !content->is_object()) return DamagedFile(file, "it has no content");
  const std::string checksum = Sha256(Dump(*content));
  if (checksum != Text(root, "checksum")) return DamagedFile(file, "its checksum is wrong");
  return ContentFrom(*content);
}

}  // namespace

IndexContent IndexOf(const LayerRecords& records) {
  IndexContent content;
  content.next_arena = records.next_arena;
  content.sources = records.digests;
  for (const auto& [id, arena] : records.arenas) {
    if (!arena.created) continue;
    IndexedArena& indexed = content.arenas.emplace_back();
    indexed.id = id;
    indexed.domain = arena.domain;
    indexed.policy = arena.policy;
    indexed.bytes = arena.bytes;
    for (const auto& [digest, region] : arena.regions) {
      if (region.ready) indexed.regions.push_back({digest, region.region, region.last_use, region.users});
    }
  }
  for (const auto& [key, disk] : records.disks)
    content.disks.push_back({disk.digest, disk.path, disk.why, disk.bytes, disk.last_use, disk.users});
  return content;
}

std::string EncodeIndex(const IndexContent& content) {
  return EncodeFrame(kKind, Dump(ContentOf(content)) + "\n");
}

absl::StatusOr<IndexContent> DecodeIndex(std::string_view text, const std::string& dir) {
  const FramedFile file{dir + "/index.json", fmt::format("remove {} when no Lamina pod runs", dir)};
  if (text.starts_with('{')) return DecodeOldIndex(text, file);
  ASSIGN_OR_RETURN(const Frame frame, OnlyFrame(kKind, text, file));
  const json root = json::parse(frame.payload, nullptr, false);
  if (!root.is_object()) return DamagedFile(file, "its content is not a layer index");
  return ContentFrom(root);
}

absl::StatusOr<IndexContent> IndexFile::Read() {
  if (!fs_.Exists(Path())) return IndexContent();
  ASSIGN_OR_RETURN(const std::string text, fs_.Read(Path(), 256 * kMiB));
  return DecodeIndex(text, dir_);
}

absl::Status IndexFile::Write(uint64_t version, const std::function<Numbered()>& newest) {
  MutexLock lock(mutex_);
  if (written_ >= version) return absl::OkStatus();
  const Numbered now = newest();
  const std::string text = EncodeIndex(now.content);
  RETURN_IF_ERROR(Annotate(WriteFileAtomically(fs_, Path(), text, 0600), "save the layer index"));
  written_ = now.version;
  return absl::OkStatus();
}

}  // namespace lamina::layers

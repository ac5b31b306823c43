// The store's index on disk: <dir>/index.json, replaced atomically after each change.
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "base/status.h"
#include "base/units.h"
#include "layers/arena_file.h"
#include "layers/digest.h"
#include "layers/layer_records.h"

namespace lamina::layers {
namespace {

using nlohmann::json;

constexpr uint64_t kIndexVersion = 2;

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

// Only of regions that lie in order in one arena.
void PunchGaps(const std::string& path, uint64_t arena_bytes, std::map<uint64_t, uint64_t> taken) {
  uint64_t at = 0;
  taken[arena_bytes] = 0;
  for (const auto& [offset, bytes] : taken) {
    if (offset > at) {
      if (const absl::Status status = PunchArena(path, at, offset - at); !status.ok())
        LogWarning("{}", Message(status));
    }
    at = offset + bytes;
  }
}

const json& Array(const json& object, const char* key) {
  static const json empty = json::array();
  const auto it = object.find(key);
  return it != object.end() && it->is_array() ? *it : empty;
}

}  // namespace

absl::Status LayerStore::SaveLocked() {
  json sources = json::object(), arenas = json::array(), disks = json::array();
  for (const auto& [key, digest] : digests_) sources[key] = digest;
  for (const auto& [id, arena] : arenas_) {
    json regions = json::array();
    for (const auto& [digest, entry] : arena->regions) {
      if (!entry.ready) continue;
      regions.push_back({{"digest", digest},
                         {"offset", entry.region.offset},
                         {"held", entry.region.held_bytes},
                         {"payload", entry.region.payload_bytes},
                         {"generation", entry.region.handle.generation},
                         {"last_use", entry.last_use},
                         {"users", entry.users}});
    }
    arenas.push_back({{"id", id},
                      {"domain", arena->domain},
                      {"policy", arena->policy},
                      {"bytes", arena->bytes},
                      {"regions", regions}});
  }
  for (const auto& [key, disk] : disks_) {
    disks.push_back({{"digest", disk->digest},
                     {"path", disk->path},
                     {"why", disk->why},
                     {"bytes", disk->bytes},
                     {"last_use", disk->last_use},
                     {"users", disk->users}});
  }
  const json content = {
      {"next_arena", next_arena_}, {"sources", sources}, {"arenas", arenas}, {"disks", disks}};
  // Paths need not be UTF-8; what is not is replaced before the checksum is taken.
  const std::string text = content.dump(-1, ' ', false, json::error_handler_t::replace);
  ASSIGN_OR_RETURN(const std::string checksum, Sha256(text));
  unsaved_ = true;
  RETURN_IF_ERROR(
      Annotate(WriteFileAtomically(fs_, options_.dir + "/index.json",
                                   fmt::format("{{\"version\":{},\"checksum\":\"{}\",\"content\":\n{}\n}}\n",
                                               kIndexVersion, checksum, text),
                                   0600),
               "save the layer index"));
  unsaved_ = false;
  return absl::OkStatus();
}

absl::Status LayerStore::Load() {
  RETURN_IF_ERROR(fs_.MakeDirectories(options_.dir, 0700));
  const std::string path = options_.dir + "/index.json";
  MutexLock lock(mutex_);
  json root = json::object();
  if (fs_.Exists(path)) {
    ASSIGN_OR_RETURN(const std::string content, fs_.Read(path, 256 * kMiB));
    root = json::parse(content, nullptr, false);
    if (root.is_discarded() || !root.is_object()) {
      return MakeStatus(absl::StatusCode::kDataLoss,
                        "{}: not a layer index; remove {} when no Lamina pod runs", path, options_.dir);
    }
    if (Number(root, "version") > kIndexVersion) {
      return MakeStatus(absl::StatusCode::kFailedPrecondition,
                        "{}: written by a newer Lamina (version {}); left untouched", path,
                        Number(root, "version"));
    }
    if (Number(root, "version") != kIndexVersion) {
      return MakeStatus(absl::StatusCode::kDataLoss,
                        "{}: version {} instead of {}; remove {} when no Lamina pod runs", path,
                        Number(root, "version"), kIndexVersion, options_.dir);
    }
    json stored = std::move(root["content"]);
    ASSIGN_OR_RETURN(const std::string checksum,
                     Sha256(stored.dump(-1, ' ', false, json::error_handler_t::replace)));
    if (!stored.is_object() || checksum != Text(root, "checksum")) {
      return MakeStatus(absl::StatusCode::kDataLoss,
                        "{}: its checksum is wrong; remove {} when no Lamina pod runs", path, options_.dir);
    }
    root = std::move(stored);
  }
  next_arena_ = std::max<uint64_t>(1, Number(root, "next_arena"));
  std::set<std::string> known = {"index.json"};
  for (const json& object : Array(root, "arenas")) {
    auto arena = std::make_unique<Arena>();
    arena->id = Text(object, "id");
    arena->domain = Text(object, "domain");
    arena->bytes = Number(object, "bytes");
    arena->path = options_.dir + "/" + arena->id + ".arena";
    if (arena->id.empty() || arena->id.find('/') != std::string::npos || !fs_.Exists(arena->path)) continue;
    arena->policy = Text(object, "policy");  // an arena keeps the policy that its regions came from
    ASSIGN_OR_RETURN(arena->pool, MakeAllocator(arena->policy, arena->bytes));
    std::map<uint64_t, uint64_t> taken;
    for (const json& item : Array(object, "regions")) {
      Entry entry;
      entry.region.offset = entry.region.handle.offset = Number(item, "offset");
      entry.region.handle.generation = Number(item, "generation");
      entry.region.held_bytes = Number(item, "held");
      entry.region.payload_bytes = Number(item, "payload");
      entry.last_use = Number(item, "last_use");
      entry.users = Users(item);
      entry.ready = true;
      const std::string digest = Text(item, "digest");
      if (digest.size() != 64 && !IsDamaged(digest)) continue;
      // A region that a VM may have mapped must not be given away: better no daemon than that.
      RETURN_IF_ERROR(Annotate(arena->pool->Restore(entry.region), path + ": " + arena->id));
      taken[entry.region.offset] = entry.region.held_bytes;
      use_clock_ = std::max(use_clock_, entry.last_use + 1);
      arena->regions[digest] = std::move(entry);
    }
    PunchGaps(arena->path, arena->bytes, std::move(taken));
    known.insert(arena->id + ".arena");
    const std::string id = arena->id;
    arenas_[id] = std::move(arena);
  }
  for (const json& object : Array(root, "disks")) {
    auto disk = std::make_unique<Disk>();
    const std::string digest = Text(object, "digest");
    disk->digest = digest;
    disk->path = Text(object, "path");
    disk->why = Text(object, "why");
    const bool ours = disk->path.empty() || Ours(disk->path);
    if (ours) disk->path = options_.dir + "/" + digest + ".erofs";
    disk->bytes = Number(object, "bytes");
    disk->last_use = Number(object, "last_use");
    disk->users = Users(object);
    if (digest.size() != 64 || digest.find('/') != std::string::npos || !fs_.Exists(disk->path)) continue;
    use_clock_ = std::max(use_clock_, disk->last_use + 1);
    if (ours) known.insert(digest + ".erofs");
    // Written anew when the disk is first used; until then a pod that was given it may be attaching it.
    if (options_.scsi_verity) known.insert(digest + ".verity");
    const std::string key = ours ? digest : digest + "@" + disk->path;
    disks_[key] = std::move(disk);
  }
  if (const auto sources = root.find("sources"); sources != root.end() && sources->is_object()) {
    for (const auto& [key, digest] : sources->items()) {
      if (digest.is_string()) digests_[key] = digest.get<std::string>();
    }
  }
  // What a conversion or an arena's creation left when the process died.
  ASSIGN_OR_RETURN(const std::vector<std::string> names, fs_.List(options_.dir));
  for (const std::string& name : names) {
    if (known.count(name) == 0) RETURN_IF_ERROR(fs_.Remove(options_.dir + "/" + name));
  }
  return absl::OkStatus();
}

}  // namespace lamina::layers

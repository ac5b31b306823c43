#include "tests/e2e/kit/image.h"

#include <archive.h>
#include <archive_entry.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/file_system.h"
#include "base/status.h"

namespace lamina::e2e {
namespace {

using nlohmann::json;

struct FreeWriter {
  void operator()(archive* a) const { archive_write_free(a); }
};
struct FreeReader {
  void operator()(archive* a) const { archive_read_free(a); }
};
struct FreeEntry {
  void operator()(archive_entry* e) const { archive_entry_free(e); }
};
using Writer = std::unique_ptr<archive, FreeWriter>;
using EntryPtr = std::unique_ptr<archive_entry, FreeEntry>;

absl::Status ArchiveStatus(archive* a, const std::string& what) {
  return MakeStatus(absl::StatusCode::kInternal, "{}: {}", what,
                    archive_error_string(a) != nullptr ? archive_error_string(a) : "unknown error");
}

mode_t FileType(char type) {
  switch (type) {
    case 'd':
      return S_IFDIR;
    case 'l':
      return S_IFLNK;
    case 'c':
      return S_IFCHR;
    case 'b':
      return S_IFBLK;
    case 'p':
      return S_IFIFO;
    default:
      return S_IFREG;
  }
}

absl::Status WriteEntry(archive* a, const Entry& from) {
  const EntryPtr entry(archive_entry_new());
  archive_entry_set_pathname(entry.get(), from.path.c_str());
  archive_entry_set_mtime(entry.get(), from.mtime, 0);
  archive_entry_set_uid(entry.get(), from.uid);
  archive_entry_set_gid(entry.get(), from.gid);
  archive_entry_set_mode(entry.get(), FileType(from.type) | from.mode);
  if (from.type == 'h') archive_entry_set_hardlink(entry.get(), from.content.c_str());
  if (from.type == 'l') archive_entry_set_symlink(entry.get(), from.content.c_str());
  if (from.type == 'c' || from.type == 'b')
    archive_entry_set_rdev(entry.get(), makedev(from.major, from.minor));
  archive_entry_set_size(entry.get(), from.type == 'f' ? static_cast<int64_t>(from.content.size()) : 0);
  for (const auto& [name, value] : from.xattrs)
    archive_entry_xattr_add_entry(entry.get(), name.c_str(), value.data(), value.size());
  if (archive_write_header(a, entry.get()) < ARCHIVE_WARN) return ArchiveStatus(a, "write " + from.path);
  if (from.type == 'f' && archive_write_data(a, from.content.data(), from.content.size()) < 0)
    return ArchiveStatus(a, "write " + from.path);
  return absl::OkStatus();
}

Writer NewPaxWriter() {
  Writer a(archive_write_new());
  archive_write_set_format_pax(a.get());
  // Names are bytes, whatever the locale; containerd reads extended attributes from SCHILY's records.
  archive_write_set_format_option(a.get(), "pax", "hdrcharset", "BINARY");
  archive_write_set_format_option(a.get(), "pax", "xattrheader", "SCHILY");
  archive_write_set_bytes_in_last_block(a.get(), 1);
  return a;
}

la_ssize_t AppendTo(archive*, void* out, const void* data, size_t size) {
  static_cast<std::string*>(out)->append(static_cast<const char*>(data), size);
  return static_cast<la_ssize_t>(size);
}

}  // namespace

Layer& Layer::Add(Entry entry) {
  entries_.push_back(std::move(entry));
  return *this;
}
Layer& Layer::File(const std::string& path, std::string content, uint32_t mode) {
  Entry entry{'f', path, std::move(content)};
  entry.mode = mode;
  return Add(std::move(entry));
}
Layer& Layer::Dir(const std::string& path, uint32_t mode) {
  Entry entry{'d', path, ""};
  entry.mode = mode;
  return Add(std::move(entry));
}
Layer& Layer::Symlink(const std::string& path, const std::string& target) {
  Entry entry{'l', path, target};
  entry.mode = 0777;
  return Add(std::move(entry));
}
Layer& Layer::HardLink(const std::string& path, const std::string& to) {
  // A link's header repeats the file's attributes: unpackers apply them.
  Entry entry{'h', path, to};
  for (const Entry& target : entries_) {
    if (target.path != to) continue;
    entry.mode = target.mode;
    entry.uid = target.uid;
    entry.gid = target.gid;
    entry.mtime = target.mtime;
  }
  return Add(std::move(entry));
}
Layer& Layer::Device(const std::string& path, char type, uint32_t major, uint32_t minor, uint32_t mode) {
  Entry entry{type, path, ""};
  entry.mode = mode;
  entry.major = major;
  entry.minor = minor;
  return Add(std::move(entry));
}
Layer& Layer::Fifo(const std::string& path, uint32_t mode) {
  Entry entry{'p', path, ""};
  entry.mode = mode;
  return Add(std::move(entry));
}
Layer& Layer::Whiteout(const std::string& path) {
  const size_t slash = path.rfind('/') + 1;
  return File(path.substr(0, slash) + ".wh." + path.substr(slash), "");
}
Layer& Layer::Opaque(const std::string& folder) { return File(folder + "/.wh..wh..opq", ""); }
Layer& Layer::WithOwner(uint32_t uid, uint32_t gid) {
  entries_.back().uid = uid;
  entries_.back().gid = gid;
  return *this;
}
Layer& Layer::WithXattr(const std::string& name, std::string value) {
  entries_.back().xattrs[name] = std::move(value);
  return *this;
}

absl::StatusOr<std::string> Layer::Tar() const {
  const Writer a = NewPaxWriter();
  std::string tar;
  if (archive_write_open(a.get(), &tar, nullptr, AppendTo, nullptr) != ARCHIVE_OK)
    return ArchiveStatus(a.get(), "open a layer");
  for (const Entry& entry : entries_) RETURN_IF_ERROR(WriteEntry(a.get(), entry));
  if (archive_write_close(a.get()) != ARCHIVE_OK) return ArchiveStatus(a.get(), "close a layer");
  return tar;
}

absl::StatusOr<Layer> ReadTar(const std::string& path, const std::function<bool(const std::string&)>& keep) {
  const std::unique_ptr<archive, FreeReader> a(archive_read_new());
  archive_read_support_format_tar(a.get());
  if (archive_read_open_filename(a.get(), path.c_str(), 1 << 20) != ARCHIVE_OK)
    return ArchiveStatus(a.get(), "open " + path);
  Layer layer;
  archive_entry* from = nullptr;
  int result;
  while ((result = archive_read_next_header(a.get(), &from)) == ARCHIVE_OK) {
    Entry entry;
    entry.path = archive_entry_pathname(from);
    while (entry.path.rfind("./", 0) == 0) entry.path.erase(0, 2);
    while (!entry.path.empty() && entry.path.back() == '/') entry.path.pop_back();
    if (entry.path.empty() || !keep(entry.path)) continue;
    entry.mode = archive_entry_mode(from) & 07777;
    entry.uid = static_cast<uint32_t>(archive_entry_uid(from));
    entry.gid = static_cast<uint32_t>(archive_entry_gid(from));
    entry.mtime = archive_entry_mtime(from);
    if (const char* target = archive_entry_hardlink(from)) {
      entry.type = 'h';
      entry.content = target;
      while (entry.content.rfind("./", 0) == 0) entry.content.erase(0, 2);
    } else if (archive_entry_filetype(from) == AE_IFDIR) {
      entry.type = 'd';
    } else if (archive_entry_filetype(from) == AE_IFLNK) {
      entry.type = 'l';
      entry.content = archive_entry_symlink(from);
    } else {
      entry.content.resize(static_cast<size_t>(archive_entry_size(from)));
      if (archive_read_data(a.get(), entry.content.data(), entry.content.size()) !=
          static_cast<la_ssize_t>(entry.content.size())) {
        return ArchiveStatus(a.get(), "read " + entry.path + " from " + path);
      }
    }
    layer.Add(std::move(entry));
  }
  if (result != ARCHIVE_EOF) return ArchiveStatus(a.get(), "read " + path);
  return layer;
}

absl::Status ExtendInitramfs(const std::string& initramfs, const Layer& files, const std::string& path) {
  ASSIGN_OR_RETURN(std::string bytes, FileSystem::Real().Read(initramfs, 256 << 20));
  // LZ4 ends at a chunk of no bytes; an archive begins at a multiple of four.
  bytes.append(4 + (4 - bytes.size() % 4) % 4, '\0');
  const Writer a(archive_write_new());
  archive_write_set_format_cpio_newc(a.get());
  archive_write_set_bytes_in_last_block(a.get(), 1);
  if (archive_write_open(a.get(), &bytes, nullptr, AppendTo, nullptr) != ARCHIVE_OK)
    return ArchiveStatus(a.get(), "open an archive");
  for (const Entry& entry : files.entries()) RETURN_IF_ERROR(WriteEntry(a.get(), entry));
  if (archive_write_close(a.get()) != ARCHIVE_OK) return ArchiveStatus(a.get(), "close an archive");
  return FileSystem::Real().WriteAndSync(path, bytes, 0644);
}

absl::Status WriteOciArchive(const Image& image, const std::string& path) {
  Layer layout;
  const auto add_blob = [&layout](std::string data, const char* media_type) {
    const std::string digest = Sha256(data);
    json descriptor = {{"mediaType", media_type}, {"digest", "sha256:" + digest}, {"size", data.size()}};
    layout.File("blobs/sha256/" + digest, std::move(data));
    return descriptor;
  };
  json config = {{"architecture", "amd64"},
                 {"os", "linux"},
                 {"config", json::object()},
                 {"rootfs", {{"type", "layers"}, {"diff_ids", json::array()}}},
                 {"history", json::array()}};
  if (!image.env.empty()) config["config"]["Env"] = image.env;
  if (!image.entrypoint.empty()) config["config"]["Entrypoint"] = image.entrypoint;
  if (!image.command.empty()) config["config"]["Cmd"] = image.command;
  if (!image.working_dir.empty()) config["config"]["WorkingDir"] = image.working_dir;
  if (!image.user.empty()) config["config"]["User"] = image.user;
  json manifest = {{"schemaVersion", 2}, {"layers", json::array()}};
  for (const Layer& layer : image.layers) {
    ASSIGN_OR_RETURN(std::string tar, layer.Tar());
    json descriptor = add_blob(std::move(tar), "application/vnd.oci.image.layer.v1.tar");
    config["rootfs"]["diff_ids"].push_back(descriptor["digest"]);
    config["history"].push_back({{"created_by", "lamina tests"}});
    manifest["layers"].push_back(std::move(descriptor));
  }
  manifest["config"] = add_blob(config.dump(), "application/vnd.oci.image.config.v1+json");
  json descriptor = add_blob(manifest.dump(), "application/vnd.oci.image.manifest.v1+json");
  const size_t colon = image.name.rfind(':');
  descriptor["annotations"] = {{"io.containerd.image.name", image.name},
                               {"org.opencontainers.image.ref.name", image.name.substr(colon + 1)}};
  layout.File("index.json", json{{"schemaVersion", 2}, {"manifests", {descriptor}}}.dump());
  layout.File("oci-layout", R"({"imageLayoutVersion":"1.0.0"})");

  const Writer a = NewPaxWriter();
  if (archive_write_open_filename(a.get(), path.c_str()) != ARCHIVE_OK)
    return ArchiveStatus(a.get(), "open " + path);
  for (const Entry& entry : layout.entries()) RETURN_IF_ERROR(WriteEntry(a.get(), entry));
  if (archive_write_close(a.get()) != ARCHIVE_OK) return ArchiveStatus(a.get(), "close " + path);
  return absl::OkStatus();
}

std::string Sha256(std::string_view data) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int size = 0;
  EVP_Digest(data.data(), data.size(), digest, &size, EVP_sha256(), nullptr);
  std::string hex;
  for (unsigned int i = 0; i < size; ++i) hex += fmt::format("{:02x}", digest[i]);
  return hex;
}

uint64_t ContentHash(std::string_view data) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const char c : data) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return hash;
}

std::string EscapeName(std::string_view name) {
  std::string text;
  for (const char c : name) {
    if (c > 32 && c < 127 && c != '\\') {
      text += c;
    } else {
      text += fmt::format("\\x{:02x}", static_cast<uint8_t>(c));
    }
  }
  return text;
}

std::vector<std::string> ExpectedTree(const Image& image) {
  std::map<std::string, Entry> tree;  // hard links carry their target's path in content
  const auto remove_below = [&tree](const std::string& path) {
    for (auto it = tree.lower_bound(path + "/"); it != tree.end() && it->first.rfind(path + "/", 0) == 0;)
      it = tree.erase(it);
  };
  for (const Layer& layer : image.layers) {
    // Whiteouts speak of lower layers only, wherever they stand in the tar.
    for (const Entry& entry : layer.entries()) {
      const size_t slash = entry.path.rfind('/') + 1;
      const std::string folder = entry.path.substr(0, slash), name = entry.path.substr(slash);
      if (name == ".wh..wh..opq") {
        remove_below(folder.substr(0, folder.size() - 1));
      } else if (name.rfind(".wh.", 0) == 0) {
        remove_below(folder + name.substr(4));
        tree.erase(folder + name.substr(4));
      }
    }
    for (const Entry& entry : layer.entries()) {
      const size_t slash = entry.path.rfind('/') + 1;
      if (entry.path.compare(slash, 4, ".wh.") == 0) continue;
      const auto old = tree.find(entry.path);
      if (old != tree.end() && !(old->second.type == 'd' && entry.type == 'd')) remove_below(entry.path);
      tree[entry.path] = entry;
    }
  }
  std::map<std::string, int> links;
  for (const auto& [path, entry] : tree) ++links[entry.type == 'h' ? entry.content : path];
  std::vector<std::string> lines;
  for (const auto& [path, own] : tree) {
    const std::string inode = own.type == 'h' ? own.content : path;
    const Entry& entry = tree.at(inode);
    std::string what = "-";
    if (entry.type == 'f') what = fmt::format("{}:{:016x}", entry.content.size(), ContentHash(entry.content));
    if (entry.type == 'l') what = EscapeName(entry.content);
    if (entry.type == 'c' || entry.type == 'b') what = fmt::format("{},{}", entry.major, entry.minor);
    std::string xattrs;
    for (const auto& [name, value] : entry.xattrs)
      xattrs += fmt::format(" {}={:016x}", name, ContentHash(value));
    // A folder's link count is the file system's own affair.
    lines.push_back(fmt::format("/{} {} {:04o} {} {} {} {} {}{}", EscapeName(path), entry.type, entry.mode,
                                entry.uid, entry.gid, entry.type == 'd' ? 0 : links[inode], entry.mtime, what,
                                xattrs));
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

}  // namespace lamina::e2e
